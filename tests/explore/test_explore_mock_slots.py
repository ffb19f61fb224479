"""The scenarios of memslots on the model of KVM: each right one holds over all schedules, each mistake is found.

The bound is each scenario's own; `soak` takes one preemption more.
"""

from __future__ import annotations

import fnmatch
import importlib

import pytest
from mock_mistakes import holds, is_found_and_repeats

from accel.testing.explore.scenario import SCENARIOS

MODULES = ("srcu", "slot_changes", "kick_all", "kick_all_calls", "merge", "notifiers")
for _name in MODULES:
    importlib.import_module(f"accel_mock.scenarios.{_name}")
OURS = {
    name: one
    for name, one in SCENARIOS.items()
    if one.module.rpartition(".")[0] == "accel_mock.scenarios" and one.module.rpartition(".")[2] in MODULES
}
RIGHT = {name: one for name, one in OURS.items() if not one.wrong}

#: What is found of each mistake.
WRONG = {
    "mock/srcu-wrong-no-synchronize": "a slot's memory is freed while a reader uses it",
    "mock/srcu-set-wrong-in-place": "a set changes in a reader's hands",
    "mock/slots-lock-wrong-in-section": "updater: wait for a condition; reader: acquire kvm->slots_lock",
    "mock/slots-lock-wrong-reported": "kvm->slots_lock is taken while holding kvm->srcu",
    "mock/slots-arch-lock-wrong-kept": "updater: wait for a condition; reader: acquire kvm->slots_arch_lock",
    "mock/slots-arch-lock-wrong-reported": "kvm->slots_arch_lock is taken while holding kvm->srcu",
    "mock/delete-wrong-no-invalid": "the guest uses memory at 0x10000 that is freed",
    "mock/delete-wrong-no-flush": "the guest uses memory at 0x10000 that is freed",
    "mock/delete-wrong-no-retry": "the guest comes out as if nothing were there, and a slot still is",
    "mock/move-wrong-no-invalid": "the guest saw the slot at both places",
    "mock/create-wrong-incomplete": "the guest saw memory that is not the new slot's",
    "mock/create-log-wrong-late": "the guest wrote a page that is not in the log",
    "mock/create-twice-wrong-no-slots-lock": "2 slots at one address",
    "mock/flags-wrong-no-write-protect": "the guest wrote a page that is not in the log",
    "mock/kick-all-wrong-busy-loop": "not over after 1500 steps; vCPU",
    "mock/kick-all-users-wrong-nested": "the guest met the gap between two calls",
    "mock/kick-all-ioctl-wrong-not-held": "a call saw half of the change: mock dirty-log call failed: ENOENT",
    "mock/kick-all-slot-call-wrong-not-held": "a call saw half of the change: it created a slot",
    "mock/kick-all-vcpu-ioctl-wrong-not-held": "a call saw half of the change: guest memory that it reads is not there",
    "mock/kick-all-ioeventfd-wrong-not-held": "a call saw half of the change: it got a doorbell",
    "mock/kick-all-stuck-wrong-no-time-out": "updater: wait for a condition; vCPU: wait for an event",
    "mock/merge-wrong-unsafe": "the guest met the gap of a merge",
    "mock/region-list-wrong-one-by-one": "the guest saw half of a list",
    "mock/notifier-fault-wrong-no-retry": "the guest uses memory at 0x10000 that is freed",
    "mock/notifier-pair-wrong-no-wait": "a pair began with one set of slots and ends with another",
    "mock/notifier-overlap-wrong-endless": "not over after 2000 steps; notifier",
    "mock/notifier-rwsem-wrong-fair": "updater: wait for a condition; notifier",
    "mock/notifier-rwsem-wrong-reported": "mmu_notifier_invalidate_range_start is taken while holding",
}


@pytest.mark.parametrize("name", RIGHT)
def test_explore_mock_slots_as_it_is_holds(name: str) -> None:
    holds(RIGHT[name], RIGHT[name].bound)


@pytest.mark.soak
@pytest.mark.parametrize("name", RIGHT)
def test_explore_mock_slots_as_it_is_holds_with_more_preemptions(name: str) -> None:
    holds(RIGHT[name], RIGHT[name].bound + 1)


@pytest.mark.parametrize("name", WRONG)
def test_explore_mock_slots_mistake_is_found_and_repeats(name: str) -> None:
    is_found_and_repeats(OURS[name], WRONG[name])


def test_explore_mock_slots_every_mistake_stands_beside_what_is_right() -> None:
    assert set(WRONG) == {name for name, one in OURS.items() if one.wrong}
    for name in WRONG:
        right = name.partition("-wrong-")[0]
        # A merge has no one right way: each hold is one.
        assert right in RIGHT or fnmatch.filter(RIGHT, f"{right}-*"), name
