"""What running a workload came to: the machine's result, the console and the verdicts, as one value."""

from __future__ import annotations

import base64
from typing import Any

from attrs import frozen

from accel.result import Outcome, RunResult
from accel.workload.expect import Verdict

#: The number under ``format`` in the JSON form; it changes when a field of before goes or means something else.
REPORT_FORMAT = 1


@frozen
class RamUse:
    """Host memory behind one region when the run ended.

    Attributes:
        name: The region; ``ram`` is the machine's own.
        size: Bytes in use by the region.
        backing: What it is made of: ``anonymous``, ``memfd`` or ``file``.
        page_size: Bytes of one of its pages.
        resident: Bytes that have a page in the host's memory.
    """

    name: str
    size: int
    backing: str
    page_size: int
    resident: int

    def to_data(self) -> dict[str, str | int]:
        """Return it as plain data for JSON."""
        return {
            "name": self.name,
            "size": self.size,
            "backing": self.backing,
            "page_size": self.page_size,
            "resident_bytes": self.resident,
        }


@frozen
class Report:
    """What a run of a workload came to.

    Attributes:
        name: What ran, for people.
        result: What the machine says.
        console: What the guest printed; its start and end if `console_truncated`.
        console_total: How many bytes it printed.
        changes: How many changes of the memory map were made.
        verdicts: One for each expectation.
        expected_outcome: The ending that the workload expects, if it says.
        ram: The machine's RAM, and each region with memory of its own.
    """

    name: str
    result: RunResult
    console: bytes
    console_total: int
    console_truncated: bool
    changes: int
    verdicts: tuple[Verdict, ...] = ()
    expected_outcome: Outcome | None = None
    ram: tuple[RamUse, ...] = ()

    @property
    def failures(self) -> tuple[Verdict, ...]:
        """The expectations that do not hold."""
        return tuple(verdict for verdict in self.verdicts if not verdict.passed)

    @property
    def passed(self) -> bool:
        """Whether it ended as it should and all expectations hold."""
        ended_well = self.result.outcome in (Outcome.EXITED, Outcome.HALTED, Outcome.PRINTED)
        return not self.failures and (ended_well or self.result.outcome is self.expected_outcome)

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data for JSON.

        ``console`` is text; where the guest's bytes are not UTF-8 they have replacement characters there, and
        ``console_base64`` has the bytes.
        """
        data = {
            "format": REPORT_FORMAT,
            "name": self.name,
            "passed": self.passed,
            **self.result.to_data(),
            "ram": [one.to_data() for one in self.ram],
            "changes": self.changes,
            "console": self.console.decode(errors="replace"),
            "console_bytes": self.console_total,
            "console_truncated": self.console_truncated,
            "expectations": [
                {"name": one.name, "passed": one.passed, "expected": one.expected, "found": one.found}
                for one in self.verdicts
            ],
        }
        try:
            self.console.decode()
        except UnicodeDecodeError:
            data["console_base64"] = base64.b64encode(self.console).decode()
        return data
