"""Judges a run by what its workload expects.

Pure functions from a report's parts to verdicts; text is compared, exactly or by containment, and never taken for a
pattern.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from accel.result import RunResult
from accel.workload.schema import ExpectSpec

_SHOWN = 60


@frozen
class Verdict:
    """What came of one expectation.

    Attributes:
        name: The field in ``[expect]``.
        expected: What the workload says, for people.
        found: What there was, for people.
    """

    name: str
    passed: bool
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.name}: expected {self.expected}, found {self.found}"


def judge(
    expect: ExpectSpec, result: RunResult, console: bytes, *, truncated: bool, changes: int
) -> tuple[Verdict, ...]:
    """Return a verdict for each expectation.

    Args:
        expect: What must be true.
        result: What the run came to.
        console: What the guest printed; its start and end if `truncated`.
        truncated: Whether bytes of the console are left out.
        changes: How many changes were made.
    """
    verdicts = [
        *_equal("outcome", expect.outcome, result.outcome),
        *_equal("exit_status", expect.exit_status, result.exit_status),
        *_equal("accelerator", expect.accelerator, result.accelerator),
        *_equal("spurious_faults", expect.spurious_faults, result.spurious_faults),
        *_at_least("min_spurious_faults", expect.min_spurious_faults, result.spurious_faults),
        *_at_least("min_changes", expect.min_changes, changes),
    ]
    for text in expect.console_contains:
        found = text.encode() in console
        verdicts.append(Verdict("console_contains", found, repr(text), _console(console, truncated=truncated)))
    if expect.console_exact is not None:
        same = not truncated and console == expect.console_exact.encode()
        shown = _console(console, truncated=truncated)
        verdicts.append(Verdict("console_exact", same, _short(expect.console_exact), shown))
    return tuple(verdicts)


def judge_until(text: str | None, console: bytes, *, found: bool, truncated: bool) -> Iterator[Verdict]:
    """Yield the verdict on the text that the guest was run until, if it was; `found` says whether it was printed."""
    if text is not None:
        yield Verdict("until", found, repr(text), _console(console, truncated=truncated))


def _equal(name: str, wanted: object, found: object) -> Iterator[Verdict]:
    if wanted is not None:
        yield Verdict(name, wanted == found, str(wanted), "none" if found is None else str(found))


def _at_least(name: str, wanted: int | None, found: int) -> Iterator[Verdict]:
    if wanted is not None:
        yield Verdict(name, found >= wanted, f"at least {wanted}", str(found))


def _console(console: bytes, *, truncated: bool) -> str:
    shown = _short(console.decode(errors="backslashreplace"))
    return f"{shown} with its middle left out" if truncated else shown


def _short(text: str) -> str:
    """Return the end of `text`, where a guest says how it went, quoted."""
    return repr(text) if len(text) <= _SHOWN else f"…{text[-_SHOWN:]!r}"
