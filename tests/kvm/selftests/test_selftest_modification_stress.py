"""memslot_modification_stress: slots that come and go beside memory which vCPUs touch are no business of theirs.

No hold is taken here and none is needed: this is about what an accelerator promises of the slots that stay.
"""

from __future__ import annotations

import pytest

import accel
from accel.address import PAGE_SIZE, AddressRange
from accel.program import ERRORS, GuestProgram, Load, Loop, Op, Out, Store
from accel.result import Outcome

AT = 0x1000_0000
PAGES = 64
CPUS = 4
ROUND_PORT, ERROR_PORT = 0x80, 0x81


def toucher(window: AddressRange, value: int) -> GuestProgram:
    """Return what writes and reads a page after the other, for ever, and tells of each round and of its errors."""
    ops: list[Op] = []
    for page in range(window.start, window.end, PAGE_SIZE):
        # Where windows overlap each vCPU has a word of its own.
        ops += (Store(page + 8 * value, value), Load(page + 8 * value, expect=value))
    return GuestProgram((Loop((*ops, Out(ROUND_PORT, value), Out(ERROR_PORT, ERRORS, 4)), None),))


@pytest.mark.parametrize("least", [300, pytest.param(20_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("windows", ["partitioned", "overlapping"])
def test_slot_added_and_deleted_beside_memory_in_use_disturbs_no_vcpu(machine, windows, least) -> None:
    whole = AddressRange.sized(AT, PAGES * PAGE_SIZE)
    share = whole.size // CPUS
    parts = [AddressRange.sized(AT + number * share, share) for number in range(CPUS)]
    one = machine(
        *(toucher(part if windows == "partitioned" else whole, number) for number, part in enumerate(parts)),
        hold="unsafe",
    )
    one.memory.add(accel.MemoryRegion.ram("touched", whole.size), at=AT)
    dummy = accel.MemoryRegion.ram("dummy", PAGE_SIZE)
    rounds, errors = [0] * CPUS, [0]

    @one.port(ROUND_PORT)
    def count(access: accel.PortAccess) -> None:
        rounds[access.value] += 1

    @one.port(ERROR_PORT, 4)
    def judge(access: accel.PortAccess) -> None:
        errors.append(access.value)

    run = one.start()
    changes = 0
    while not run.done and (changes < least or min(rounds) < 3):
        one.memory.add(dummy, at=AT - PAGE_SIZE)
        one.memory.remove(dummy)
        changes += 1
    one.stop()
    result = run.wait()
    assert result.outcome is Outcome.STOPPED
    assert min(rounds) >= 3, "every vCPU was at it"
    assert max(errors) == 0
    assert result.exits.get("mmio", 0) == 0
    assert result.spurious_faults == 0
    assert result.memory["unheld"] >= 2 * changes, "nothing was done to protect them"
