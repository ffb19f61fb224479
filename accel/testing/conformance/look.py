"""Having a guest look at its memory: what it finds where, and what comes out.

Layer: above `lane`. Guests are programs, so the same look works on every accelerator that executes programs or x86.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from accel.errors import InhibitTimeoutError
from accel.exits import Exit, IoOut, MmioRead, MmioWrite
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.program import ERRORS, GuestProgram, Load, Op, Out, Store
from accel.result import Outcome, RunResult
from accel.testing.conformance.lane import Answer, Lane, play
from accel.testing.conformance.verdict import Stuck, Violation, due, expect, shown

#: Where tests put memory: beyond the machine's own, and where x86 programs reach.
BASE = 0x1000_0000
#: Where guests report how many errors they have found.
REPORT = 0x84
#: What a load from a hole is answered with.
NOTHING = 0xEE77_DD11


@frozen
class Played:
    """What a program came to.

    Attributes:
        exits: Its exits, without those of its report.
        errors: How often it read something else than it expected.
    """

    exits: list[Exit]
    errors: int


def perform(one: Machine, vcpu: Lane, ops: Sequence[Op], answer: Answer | None = None) -> Played:
    """Have a guest do some operations and report its errors; reads that come out are answered with `answer`, or 0."""
    one.load(GuestProgram([*ops, Out(REPORT, ERRORS, 4)]))
    exits = play(vcpu, answer, most=2 * len(ops) + 100)
    report = due(exits[-1], IoOut, "at the end of a program", port=REPORT, size=4) if exits else None
    if report is None:
        raise Violation("a program that ends with a write to a port halted without it")
    return Played(exits[:-1], int.from_bytes(report.data, "little"))


def look(one: Machine, vcpu: Lane, wanted: Mapping[int, int | None], after: str, size: int = 4) -> None:
    """Have a guest read at some addresses: each has to give its value, or to come out where it is None.

    Raises:
        Violation: Another value was read, or memory was found or missed; the message begins with `after`.
    """
    addresses = sorted(wanted)
    ops: list[Op] = []
    for address in addresses:
        value = wanted[address]
        nothing = NOTHING & (1 << 8 * size) - 1
        ops += [Load(address, size, expect=nothing if value is None else value), Out(REPORT, ERRORS, 4)]
    one.load(GuestProgram(ops))
    exits = play(vcpu, lambda _: NOTHING, most=3 * len(ops) + 100)
    errors = 0
    for address in addresses:
        value = wanted[address]
        found = exits.pop(0) if exits else None
        if value is None:
            if type(found) is IoOut:
                raise Violation(f"{after} the guest finds memory at {address:#x}, where nothing is")
            _check_read(found, address, size, after)
            found = exits.pop(0) if exits else None
        elif isinstance(found, (MmioRead, MmioWrite)):
            raise Violation(f"{after} the guest finds no memory at {address:#x}, where RAM is: {shown(found)}")
        if type(found) is not IoOut:
            raise Violation(f"{after} a load at {address:#x} came out with {found and shown(found)}")
        count = int.from_bytes(found.data, "little")
        expect(
            count == errors,
            f"{after} the guest does not read {'the reply' if value is None else f'{value:#x}'} at {address:#x}",
        )
        errors = count
    expect(not exits, f"{after} there are {len(exits)} exits too many")


def _check_read(found: Exit | None, address: int, size: int, after: str) -> None:
    if found is None:
        raise Violation(f"{after} a load at {address:#x}, where nothing is, did not come out")
    due(
        found,
        MmioRead,
        f"{after} at a load of {size} bytes at {address:#x}, where nothing is,",
        address=address,
        size=size,
    )


def write(one: Machine, vcpu: Lane, values: Mapping[int, int], after: str, size: int = 4) -> None:
    """Have a guest write values at addresses of RAM. Raises Violation if one of them comes out."""
    played = perform(one, vcpu, [Store(address, value, size) for address, value in values.items()])
    for found in played.exits:
        raise Violation(f"{after} the guest cannot write to RAM: {shown(found)}")


def finish(one: Machine, patience: float) -> RunResult:
    """Run a machine to its end, as people do; return the result.

    Raises:
        Stuck: A vCPU did not come out when it was told to.
        Violation: The guest crashed or did not come to its end, or the accelerator failed.
    """
    try:
        result = one.run(timeout=patience)
    except InhibitTimeoutError as error:
        raise Stuck(f"a vCPU does not come out when its run is stopped: {error}") from error
    if result.crash is not None:
        raise Violation(f"the guest crashed: {result.crash}")
    expect(result.outcome is not Outcome.TIMED_OUT, f"a guest did not come to its end within {patience:g} s")
    return result


def judged(one: Machine, ops: Sequence[Op], patience: float, where: str) -> RunResult:
    """Run a machine whose guest does some operations, and finds no error. Raises Violation; `where` goes into it."""
    reports: list[int] = []
    one.port(REPORT)(lambda access: reports.append(access.value))
    one.load(GuestProgram([*ops, Out(REPORT, ERRORS, 4)]))
    result = finish(one, patience)
    expect(len(reports) == one.cpus, f"{one.cpus} guests made {len(reports)} reports {where}")
    expect(not any(reports), f"a guest read {max(reports)} times something else than it had to {where}")
    expect(
        not result.spurious_faults,
        f"{result.spurious_faults} accesses came out {where} though RAM is mapped there",
    )
    return result


def tagged(name: str, page_count: int, tag: int, page: int, max_size: int | None = None) -> MemoryRegion:
    """Return RAM whose pages begin and end with numbers of their own: `tag` plus the page's number.

    Args:
        name: Of the region.
        page_count: Pages.
        tag: Number of the first page.
        page: Bytes of a page.
        max_size: As for `MemoryRegion.ram`.
    """
    region = MemoryRegion.ram(name, page_count * page, max_size=max_size)
    for number in range(page_count):
        data = (tag + number).to_bytes(4, "little")
        region.write(number * page, data)
        region.write((number + 1) * page - 4, data)
    return region


def pages(at: int, tags: Sequence[int | None], page: int) -> dict[int, int | None]:
    """Return what `look` wants of pages from `at` on: the number of each, or None for a hole, at both ends of it."""
    ends = ((at + number * page, tag) for number, tag in enumerate(tags))
    return {address: tag for start, tag in ends for address, tag in ((start, tag), (start + page - 4, tag))}
