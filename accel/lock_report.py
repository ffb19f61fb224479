"""What a lock-order report is made of, and its text.

Layer: values and text, below the graph that finds what to report. The form is that of the Linux kernel's lockdep:
who wants what, what it holds, the chain of dependencies that leads back, the processors as columns, all locks held.
"""

from __future__ import annotations

from types import CodeType, FrameType

from attrs import frozen

from accel.lock_classes import LockUse, Mode

#: Frames of a stack that a report shows.
STACK_DEPTH = 20

#: Frames of these modules at the end of a stack say nothing.
_VALIDATOR = ("accel.locks", "accel.lock_graph", "accel.read_locks")

_RULE = "=" * 54
_THIN_RULE = "-" * 54

#: One call per entry, the innermost first.
Stack = tuple[str, ...]


@frozen
class HeldLock:
    """A lock that a thread holds, and where it took it."""

    use: LockUse
    stack: Stack


@frozen
class Edge:
    """One class wanted while another is held: by a thread that did it, or by declared ranks.

    Attributes:
        held: What was held.
        wanted: What was wanted while that was held.
        held_stack: Where the first was taken; empty for declared ranks.
        wanted_stack: Where the second was wanted; empty for declared ranks.
        thread: Who did it first; empty for declared ranks.
    """

    held: LockUse
    wanted: LockUse
    held_stack: Stack = ()
    wanted_stack: Stack = ()
    thread: str = ""


@frozen
class Attempt:
    """What a thread was about to do when it was stopped.

    Attributes:
        thread: Its name and native id.
        wanted: What it wants.
        stack: Where.
        held: All that it holds, in the order in which it took it.
        against: The one of these that must not be held.
        chain: The dependencies that lead from what is wanted to what is held; empty if both are of one class or rank.
    """

    thread: str
    wanted: LockUse
    stack: Stack
    held: tuple[HeldLock, ...]
    against: HeldLock
    chain: tuple[Edge, ...]


def stack_of(frame: FrameType | None) -> Stack:
    """Return the calls that led to `frame`, those of the validator left out."""
    while frame is not None and frame.f_globals.get("__name__") in _VALIDATOR:
        frame = frame.f_back
    calls: list[str] = []
    while frame is not None and len(calls) < STACK_DEPTH and not _starts_thread(frame):
        calls.append(_call(frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(calls)


def stack_at(code: CodeType, instruction: int, frame: FrameType | None) -> Stack:
    """Return the calls that led to an instruction of `code` that ran earlier.

    Its callers are known if it is still being run on the stack that ends in `frame`; otherwise it stands alone.
    """
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return (_call(code, _line(code, instruction)), *(stack_of(frame.f_back) if frame is not None else ()))


def _starts_thread(frame: FrameType) -> bool:
    """Return whether the frame is of the calls that each thread begins with."""
    return frame.f_globals.get("__name__") == "threading" and frame.f_code.co_name in ("run", "_bootstrap_inner")


def _line(code: CodeType, instruction: int) -> int:
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


def _call(code: CodeType, line: int) -> str:
    name = code.co_qualname.rpartition("<locals>.")[2]
    return f"{name} ({'/'.join(code.co_filename.split('/')[-2:])}:{line})"


def report(attempt: Attempt) -> str:
    """Return the whole text about an attempt."""
    circular = bool(attempt.chain)
    lines = [
        _RULE,
        f"WARNING: possible {'circular locking dependency' if circular else 'recursive locking'} detected",
        _THIN_RULE,
        f"{attempt.thread} is {_acquire(attempt.wanted)}:",
        f"{_named(attempt.wanted)}, at: {_site(attempt.stack)}",
        "",
        "but it already holds:",
        f"{_named(attempt.against.use)}, at: {_site(attempt.against.stack)}",
        "",
    ]
    lines += _dependencies(attempt) if circular else _stacks(attempt)
    lines += ["", "what else is known:", ""]
    if len(attempt.chain) > 1:
        names = [attempt.wanted.name, *(edge.wanted.name for edge in attempt.chain)]
        lines += [" Chain exists of:", f"   {' --> '.join(names)}", ""]
    lines += [" Possible unsafe locking scenario:", "", *_table(attempt), "", *_notes(attempt), " *** DEADLOCK ***", ""]
    count = len(attempt.held)
    lines.append(f"{count} lock{'s' * (count != 1)} held by {attempt.thread}:")
    lines += [f" #{number}: {_named(one.use)}, at: {_site(one.stack)}" for number, one in enumerate(attempt.held)]
    return "\n".join(lines)


def _acquire(use: LockUse) -> str:
    return "about to wait for" if use.mode in (Mode.SYNC, Mode.WAIT) else "trying to acquire lock"


def _named(use: LockUse) -> str:
    return f"({use.name}){{{use.mode.name.lower()}}}"


def _site(stack: Stack) -> str:
    return stack[0] if stack else "?"


def _dependencies(attempt: Attempt) -> list[str]:
    lines = ["which comes after the wanted one elsewhere;", "", "the existing dependency chain (in reverse order) is:"]
    for number in range(len(attempt.chain), 0, -1):
        edge = attempt.chain[number - 1]
        lines += ["", f"-> #{number} {_named(edge.wanted)}:"]
        if edge.thread:
            lines += _indented(edge.wanted_stack)
            lines += [f"     while {edge.thread} held {_named(edge.held)}, taken at:", *_indented(edge.held_stack)]
        else:
            before, after = edge.held.lock_class, edge.wanted.lock_class
            lines.append(f"       declared: {before.name} (rank {before.rank}) is taken before rank {after.rank}")
    return [*lines, "", f"-> #0 {_named(attempt.wanted)}:", *_now(attempt)]


def _stacks(attempt: Attempt) -> list[str]:
    return ["and one at a time is the rule:", "", f"-> #0 {_named(attempt.wanted)}:", *_now(attempt)]


def _now(attempt: Attempt) -> list[str]:
    held = attempt.against
    return [
        *_indented(attempt.stack),
        f"     while {attempt.thread} holds {_named(held.use)}, taken at:",
        *_indented(held.stack),
    ]


def _indented(stack: Stack) -> list[str]:
    return [f"       {call}" for call in stack]


def _links(attempt: Attempt) -> list[tuple[LockUse, LockUse]]:
    """Return what each party holds and wants; each waits for the next, and the last for the first."""
    return [(attempt.against.use, attempt.wanted), *((edge.held, edge.wanted) for edge in attempt.chain)]


def _table(attempt: Attempt) -> list[str]:
    """Return who does what on a processor each: first all that they hold, then all that they want."""
    if not attempt.chain:
        return ["       CPU0", "       ----", f"  {attempt.against.use};", f"  {attempt.wanted};"]
    links = _links(attempt)
    width = max(24, *(len(f"  {use};  ") for link in links for use in link))
    heads = [f"       CPU{number}" for number in range(len(links))]
    rows = [heads, [f"       {'-' * len(head.strip())}" for head in heads]]
    order = [*((column, 0) for column in range(len(links))), *((column, 1) for column in range(1, len(links))), (0, 1)]
    for column, which in order:
        rows.append([""] * column + [f"  {links[column][which]};"])
    return ["".join(cell.ljust(width) for cell in row).rstrip() for row in rows]


def _notes(attempt: Attempt) -> list[str]:
    """Return what the table cannot show: readers that wait for readers."""
    links = _links(attempt)
    holders = [held for held, _ in links[1:] + links[:1]]
    waiting = dict.fromkeys(
        wanted.name
        for (_, wanted), held in zip(links, holders, strict=True)
        if wanted.mode is Mode.SHARED and held.mode is not Mode.EXCLUSIVE
    )
    lines = [f" A reader of {name} waits for another as soon as a writer waits between them." for name in waiting]
    return [*lines, ""] if lines else []
