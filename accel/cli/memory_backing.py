"""What ``--memory-backing`` says: of which host memory RAM is made, in the words of `accel.memory.backing.Backing`.

The command line is the user's own word, so files may be given here, which a workload file cannot ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import evolve

from accel.errors import OptionError, UsageError
from accel.memory.backing import ADVICE, Backing
from accel.options import Option, nearest
from accel.workload.schema import MACHINE_RAM, Workload

_ALL_KINDS = (
    Option("huge_pages", "size", None, "explicit huge pages of this size"),
    Option("prefault", "bool", False, "touch every page before the guest starts"),
    Option("advice", "choice", (), "advice to the kernel; may be repeated", choices=tuple(ADVICE)),
)
_FILE = (
    Option("path", "str", "", "the file"),
    Option("offset", "size", 0, "where RAM begins in it"),
    Option("shared", "bool", True, "write to the file; otherwise writes stay in this process"),
    Option("readonly", "bool", False, "refuse writes"),
    Option("create", "bool", False, "make the file if it is not there"),
)
#: The options of each kind.
OPTIONS = {"anonymous": _ALL_KINDS, "memfd": _ALL_KINDS, "file": (*_FILE, *_ALL_KINDS)}
_MAKE: Mapping[str, Callable[..., Backing]] = {
    "anonymous": Backing.anonymous,
    "memfd": Backing.memfd,
    "file": Backing.file,
}


def parse_backing(text: str) -> tuple[str, Backing]:
    """Return the region, ``ram`` for the machine's own, and the backing that ``[REGION=]KIND[,OPTION[=VALUE]]…`` means.

    An option without a value is switched on. A comma inside a value is written twice.

    >>> parse_backing("memfd,prefault")[1].prefault
    True

    Raises:
        UsageError: It means nothing.
    """
    first, *words = (word.replace("\0", ",") for word in text.replace(",,", "\0").split(","))
    name, equals, kind = first.rpartition("=")
    if kind not in OPTIONS or bool(equals) != bool(name):
        raise UsageError(
            f"'{text}': must begin with one of {', '.join(OPTIONS)}, or REGION= and one of them, "
            "such as memfd,huge_pages=2M"
        )
    declared = {option.name: option for option in OPTIONS[kind]}
    values: dict[str, object] = {}
    advice: set[object] = set()
    try:
        for word in words:
            option, value = _option(kind, declared, word)
            if option == "advice":
                advice.add(value)
            elif option in values:
                raise OptionError(kind, option, value, "is given twice; leave one out")
            else:
                values[option] = value
        if kind == "file":
            values.setdefault("path", "")  # Backing says what is wrong with it
        return name or MACHINE_RAM, _MAKE[kind](**values, advice=advice)
    except OptionError as error:
        raise UsageError(f"'{text}': {error.option}: {error.problem}") from error


def _option(kind: str, declared: Mapping[str, Option], word: str) -> tuple[str, object]:
    name, equals, value = word.partition("=")
    if name not in declared:
        raise OptionError(kind, name, value, f"no such option of {kind}; {nearest(name, declared)}")
    option = declared[name]
    if not equals and option.kind != "bool":
        raise OptionError(kind, name, value, f"needs a value: {name}=…, {option.help}")
    return name, option.parse(kind, value if equals else True)


def with_backings(workload: Workload, backings: Mapping[str, Backing]) -> Workload:
    """Return `workload` with these backings, by region, in the place of what it says.

    Raises:
        UsageError: There is no such region, it is no RAM, or its backing cannot be written.
    """
    names = [MACHINE_RAM, *(region.name for region in workload.regions if region.kind == "ram")]
    for name in backings:
        if name not in names:
            raise UsageError(f"--memory-backing {name}=…: no region of RAM has this name; {nearest(name, names)}")
    own = backings.get(MACHINE_RAM, workload.machine.backing)
    if own is not None and own.readonly:
        raise UsageError(
            "--memory-backing …,readonly: images go into the machine's RAM; keep writes out of the file with shared=off"
        )
    regions = tuple(
        evolve(region, backing=backings[region.name]) if region.name in backings else region
        for region in workload.regions
    )
    return evolve(workload, machine=evolve(workload.machine, backing=own), regions=regions)
