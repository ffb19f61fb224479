"""The scenarios of the model's shadow page table: each right one holds over all schedules, each mistake is found.

The bound is each scenario's own; `soak` takes one preemption more.
"""

from __future__ import annotations

import importlib

import pytest
from mock_mistakes import holds, is_found_and_repeats

from accel.testing.explore.report import step_table
from accel.testing.explore.scenario import SCENARIOS
from accel.testing.explore.schedule import schedule_text

MODULES = ("shadow_mmu", "flushes", "writes", "fast_faults", "access_tracking", "zaps", "dirty_rings")
for _name in MODULES:
    importlib.import_module(f"accel_mock.scenarios.{_name}")
OURS = {
    name: one
    for name, one in SCENARIOS.items()
    if one.module.rpartition(".")[0] == "accel_mock.scenarios" and one.module.rpartition(".")[2] in MODULES
}
RIGHT = {name: one for name, one in OURS.items() if not one.wrong}

_USED = "the guest uses a page that is not its own any more"
_UNSEEN = "the guest writes to a page table that KVM shadows"
_MISSED = "no log says so"

#: What is found of each mistake.
WRONG = {
    "mock/tlb-wrong-no-flush": _USED,
    "mock/tlb-wrong-no-zap": _USED,
    "mock/tlb-delete-wrong-no-zap": _USED,
    "mock/flush-fault-wrong-waits": "host: wait for a condition",
    "mock/flush-return-wrong-no-look": "the guest uses memory at 0x10000 that is freed",
    "mock/flush-return-wrong-no-walk": "the guest uses memory at 0x10000 that is freed",
    "mock/write-protect-wrong-no-flush": _MISSED,
    "mock/fast-fault-wrong-store": _USED,
    "mock/fast-fault-log-wrong-no-note": _MISSED,
    "mock/fast-fault-shared-wrong-host-writable": "the guest can write a page that others share",
    "mock/fast-fault-watched-wrong-mmu-writable": _UNSEEN,
    "mock/fast-fault-indirect-wrong-aba": "the guest wrote its page 1, and the log has 0b01",
    "mock/dirty-bit-wrong-not-atomic": "the guest wrote the page, and the Dirty bit is lost",
    "mock/dirty-bit-protect-wrong-not-atomic": "the guest wrote the page, and the Dirty bit is lost",
    "mock/access-tracking-wrong-no-flush": "the guest used a page since the host asked, and no entry tells",
    "mock/access-tracking-log-wrong-keeps-w": _MISSED,
    "mock/access-tracking-watched-wrong-keeps-w": _UNSEEN,
    "mock/access-tracking-restore-wrong-store": _USED,
    "mock/access-tracking-dirty-wrong-not-told": "the guest wrote the page, and the host was never told",
    "mock/access-tracking-dirty-wrong-not-atomic": "the guest wrote the page, and the host was never told",
    "mock/dirty-ring-reset-wrong-read-first": "no ring says so",
    "mock/dirty-ring-full-wrong-goes-on": "the guest wrote both pages",
    "mock/coalesced-wrong-not-drained": "the writes arrived as",
    "mock/coalesced-wrong-index-first": "the writes arrived as",
    "mock/ioeventfd-wrong-anew": "the guest exits at a doorbell",
    "mock/read-only-wrong-writable": "the guest wrote to a read-only slot",
    "mock/zap-all-wrong-yields": "not over after 1500 steps",
}


@pytest.mark.parametrize("name", RIGHT)
def test_explore_mock_mmu_as_it_is_holds(name: str) -> None:
    holds(RIGHT[name], RIGHT[name].bound)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", RIGHT)
def test_explore_mock_mmu_as_it_is_holds_with_more_preemptions(name: str) -> None:
    holds(RIGHT[name], RIGHT[name].bound + 1)


@pytest.mark.parametrize("name", WRONG)
def test_explore_mock_mmu_mistake_is_found_and_repeats(name: str) -> None:
    is_found_and_repeats(OURS[name], WRONG[name])


def test_explore_mock_mmu_every_mistake_stands_beside_what_is_right() -> None:
    assert set(WRONG) == {name for name, one in OURS.items() if one.wrong}
    for name in WRONG:
        assert name.partition("-wrong-")[0] in RIGHT, name


def steps_of(name: str) -> list[str]:
    """Return the steps of what is found of a mistake that touch entries, as ``task: step, function``."""
    explorer = OURS[name].explorer()
    found = explorer.systematic(2).found
    assert found is not None
    table = step_table(explorer, schedule_text(found.schedule))
    return [
        f"{table.tasks[row.task]}: {row.text}, {row.place.split()[-1]}"
        for row in table.rows
        if row.text.startswith(("read Spte.word", "write Spte.word"))
    ]


def _in_order(steps: list[str], *wanted: str) -> bool:
    """Return whether steps that begin and end so stand in this order."""
    left = iter(steps)
    return all(
        any(step.startswith(one.split("…")[0]) and step.endswith(one.split("…")[-1]) for step in left) for one in wanted
    )


def test_explore_mock_mmu_aba_is_the_table_of_the_source() -> None:
    """CPU 0 reads the entry; CPU 1 zaps it and makes the same again; CPU 0 exchanges it and notes the wrong page."""
    steps = steps_of("mock/fast-fault-indirect-wrong-aba")
    assert _in_order(
        steps,
        "CPU 0: read Spte.word…, fix",
        "CPU 1: write Spte.word = 0…, exchange",
        "CPU 1: write Spte.word = …, _fix",
        "CPU 0: write Spte.word = …, compare_exchange",
    ), steps


def test_explore_mock_mmu_lost_dirty_bit_is_the_table_of_the_source() -> None:
    """The host reads the entry and finds it read-only; a vCPU makes it writable and dirty; the host stores 0."""
    steps = steps_of("mock/dirty-bit-wrong-not-atomic")
    assert _in_order(
        steps,
        "host: read Spte.word…, clear",
        "vCPU: write Spte.word = …, compare_exchange",
        "host: write Spte.word = 0…, clear",
    ), steps
