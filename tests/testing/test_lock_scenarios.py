"""The kernel's lock mistakes and what was done about them, as the validator sees them."""

from __future__ import annotations

import re

import pytest

from accel import lock_graph
from accel.testing.lock_scenarios import SCENARIOS, LockScenario, play

BY_NAME = {one.name: one for one in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_lock_scenario_is_reported_if_it_deadlocks(scenario: LockScenario) -> None:
    assert (play(scenario) is not None) is scenario.deadlocks


# Where one thread waits for another, only one order can be played.
TURNABLE = [one for one in SCENARIOS if not one.name.startswith("wait-")]


@pytest.mark.parametrize("scenario", TURNABLE, ids=lambda one: one.name)
def test_lock_scenario_in_the_other_order_of_threads_is_judged_the_same(scenario: LockScenario) -> None:
    turned = LockScenario(scenario.name, "", lambda: scenario.threads()[::-1], scenario.deadlocks)
    assert (play(turned) is not None) is scenario.deadlocks


def test_lock_scenario_leaves_the_graph_of_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCEL_LOCKDEP")
    graph, before = lock_graph.current, set(lock_graph.current.known)
    assert play(BY_NAME["vendor-module"]) is not None
    assert lock_graph.current is graph
    assert graph.known == before


def parts(report: str) -> list[str]:
    """Return a report without what differs from run to run: ids, and where in a file."""
    return re.sub(r" \([\w.]+/[\w.]+:\d+\)", "", re.sub(r"/\d+", "/ID", report)).splitlines()


def test_lock_scenario_vendor_module_is_reported_in_the_form_of_the_kernel() -> None:
    error = play(BY_NAME["vendor-module"])
    assert error is not None
    assert parts(error.report) == [
        "======================================================",
        "WARNING: possible circular locking dependency detected",
        "------------------------------------------------------",
        "opener/ID is trying to acquire lock:",
        "(kvm_lock){exclusive}, at: hardware_enable_all",
        "",
        "but it already holds:",
        "(cpu_hotplug_lock){shared}, at: hardware_enable_all",
        "",
        "which comes after the wanted one elsewhere;",
        "",
        "the existing dependency chain (in reverse order) is:",
        "",
        "-> #1 (cpu_hotplug_lock){shared}:",
        "       setup_cpu_callbacks",
        "       vendor_init",
        "       act",
        "     while loader/ID held (kvm_lock){exclusive}, taken at:",
        "       vendor_init",
        "       act",
        "",
        "-> #0 (kvm_lock){exclusive}:",
        "       hardware_enable_all",
        "       open_first_vm",
        "       act",
        "     while opener/ID holds (cpu_hotplug_lock){shared}, taken at:",
        "       hardware_enable_all",
        "       open_first_vm",
        "       act",
        "",
        "what else is known:",
        "",
        " Possible unsafe locking scenario:",
        "",
        "       CPU0                        CPU1",
        "       ----                        ----",
        "  rlock(cpu_hotplug_lock);",
        "                              lock(kvm_lock);",
        "                              rlock(cpu_hotplug_lock);",
        "  lock(kvm_lock);",
        "",
        " A reader of cpu_hotplug_lock waits for another as soon as a writer waits between them.",
        "",
        " *** DEADLOCK ***",
        "",
        "1 lock held by opener/ID:",
        " #0: (cpu_hotplug_lock){shared}, at: hardware_enable_all",
    ]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        (
            "mmu-notifier-rwsem",
            [
                "rlock(kvm->mmu_notifier_slots_lock);",
                "lock(mmu_notifier_invalidate_range_start);",
                "rlock(kvm->mmu_notifier_slots_lock);",
                "lock(mmu_notifier_invalidate_range_start);",
            ],
        ),
        (
            "srcu-slots-lock",
            ["rlock(kvm->srcu);", "lock(kvm->slots_lock);", "sync(kvm->srcu);", "lock(kvm->slots_lock);"],
        ),
        (
            "wait-holding",
            ["lock(kvm->slots_lock);", "completing(work);", "lock(kvm->slots_lock);", "waiting_for(work);"],
        ),
    ],
)
def test_lock_scenario_report_shows_who_holds_and_who_wants_what(name: str, table: list[str]) -> None:
    error = play(BY_NAME[name])
    assert error is not None
    shown = error.report[error.report.index("CPU1\n") : error.report.index(" *** DEADLOCK")]
    assert re.findall(r"[a-z_]+\(.*\);", shown) == table
