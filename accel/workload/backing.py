"""The backing of RAM as a workload file may ask for it: a part of what `accel.memory.backing` can do.

Layer: above `schema`, below `convert`. A workload file comes from a stranger. It may say how much of the host's memory
its RAM takes and in which pages, which is bounded by what the host has; it may not name a file of the host that the
guest then reads and writes, nor let the kernel merge its pages with those of other guests, by which one finds out what
the others hold. Whoever trusts a workload says that with ``accelctl run --memory-backing``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from attrs import Factory, frozen

from accel.errors import OptionError, WorkloadError
from accel.memory.backing import ADVICE, Backing
from accel.options import nearest
from accel.workload.schema import Size, Texts

#: Advice that a workload file may give.
FILE_ADVICE = tuple(name for name in ADVICE if name != "mergeable")

_OF_FILES = ("path", "offset", "shared", "readonly", "create")
_FILE = "[REGION=]file,path=FILE"
_FLAG = "give it on the command line, if you trust the workload: accelctl run --memory-backing"


@frozen
class BackingTable:
    """``[machine.backing]`` and ``[region.backing]``, with the fields as `Backing` has them."""

    kind: Literal["anonymous", "memfd"] = "anonymous"
    huge_pages: Size | None = None
    prefault: bool = False
    advice: Texts = Factory(lambda: Texts(()))

    def __attrs_post_init__(self) -> None:
        for name in self.advice:
            if name == "mergeable":
                raise _problem("advice", name, f"is not for a workload file; {_FLAG} [REGION=]anonymous,advice={name}")
            if name not in FILE_ADVICE:
                raise _problem("advice", name, f"no such advice; {nearest(name, FILE_ADVICE)}")
        self.backing()

    @classmethod
    def of(cls, backing: Backing) -> Self:
        """Return the table that means `backing`. Raises WorkloadError where none does."""
        if backing.kind == "file" or "mergeable" in backing.advice:
            what = f"file '{backing.path}'" if backing.kind == "file" else "mergeable"
            raise _problem("backing", what, "cannot be in a workload file; save it without, and give it with each run")
        return cls(
            kind=backing.kind,
            huge_pages=None if backing.huge_pages is None else Size(backing.huge_pages),
            prefault=backing.prefault,
            advice=Texts(tuple(sorted(backing.advice))),
        )

    def backing(self) -> Backing:
        """Return what it means. Raises WorkloadError where the fields contradict each other."""
        make = Backing.memfd if self.kind == "memfd" else Backing.anonymous
        try:
            return make(huge_pages=self.huge_pages, prefault=self.prefault, advice=self.advice)
        except OptionError as error:
            raise _problem(error.option, error.value, error.problem) from error


def refuse_files(table: Mapping[str, object]) -> None:
    """Raise WorkloadError if a table asks for a file, or has a field that only files have."""
    if table.get("kind") == "file":
        raise _problem("kind", "file", f"would let a workload file read and write files of this host; {_FLAG} {_FILE}")
    for name in _OF_FILES:
        if name in table:
            raise _problem(name, table[name], f"is about files, which a workload file cannot have; {_FLAG} {_FILE}")


def _problem(field: str, value: object, problem: str) -> WorkloadError:
    return WorkloadError("workload", field, value, problem)
