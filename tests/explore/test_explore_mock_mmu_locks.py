"""The kernel's table of KVM's locks: every order kept holds, every order broken is caught; the model keeps them all."""

from __future__ import annotations

import importlib

import pytest

from accel.locks import LockGraph
from accel.testing.explore.report import step_table, summary
from accel.testing.explore.scenario import SCENARIOS, Scenario
from accel.testing.explore.schedule import schedule_text
from accel.testing.explore.search import Found
from accel_mock.kvm.lock_table import LOCKS, ORDERS, Order, Rule
from accel_mock.scenarios.hall import HIGH, LOW, NEW, OLD, Hall, slot_of

importlib.import_module("accel_mock.scenarios.kvm_locks")

#: The names on the kernel's page: those with an entry, and those in an order only.
DESCRIBED = {
    "kvm_lock",
    "kvm->mn_invalidate_lock",
    "kvm_arch::tsc_write_lock",
    "kvm->mmu_lock",
    "kvm->srcu",
    "kvm->slots_arch_lock",
    "wakeup_vcpus_on_cpu_lock",
    "vendor_module_lock",
}
NAMED = {
    "cpu_hotplug_lock",
    "kvm->lock",
    "vcpu->mutex",
    "kvm->slots_lock",
    "kvm->irq_lock",
    "kvm->mn_active_invalidate_count",
    "kvm->arch.hyperv.hv_lock",
    "kvm->arch.xen.xen_lock",
    "kvm->arch.tdp_mmu_pages_lock",
    "kvm->arch.mmu_unsync_pages_lock",
}


def test_explore_mock_mmu_lock_table_has_every_lock_that_the_kernel_names() -> None:
    assert {one.name for one in LOCKS if one.described} == DESCRIBED
    assert {one.name for one in LOCKS if not one.described} == NAMED
    for one in LOCKS:
        assert one.lock_class.type
        assert one.lock_class.protects
        assert one.arch in ("any", "x86")


def test_explore_mock_mmu_lock_orders_are_of_locks_in_the_table_and_form_no_cycle() -> None:
    known = {one.lock_class for one in LOCKS}
    below = {one: {order.inner for order in ORDERS if order.outer is one} for one in known}
    assert {end for order in ORDERS for end in (order.outer, order.inner)} <= known
    while leaves := {one for one, inner in below.items() if not inner & set(below)}:
        below = {one: inner for one, inner in below.items() if one not in leaves}
    assert not below


def _repeats(scenario: Scenario, found: Found) -> None:
    """See the same come of a schedule in a world of its own, where nothing was locked before."""
    assert found.violation.kind == scenario.wrong
    table = step_table(scenario.explorer(), schedule_text(found.schedule))
    assert not table.off
    assert table.outcome == f"{scenario.wrong}: {found.violation}"


@pytest.mark.parametrize("order", ORDERS, ids=lambda one: one.name)
def test_explore_mock_mmu_lock_order_is_caught_if_it_is_broken(order: Order) -> None:
    kept = SCENARIOS[order.scenario].explorer().systematic(2)
    assert kept.found is None, summary(kept)
    assert kept.exhaustive
    broken = SCENARIOS[order.broken_by]
    assert broken.wrong == "exception"
    explorer = broken.explorer()
    # Whoever comes first.
    for seed in range(8):
        found = explorer.at_random(seed, 1).found
        assert found is not None
        _repeats(broken, found)
        assert order.outer.name in str(found.violation)
        assert order.inner.name in str(found.violation)


def test_explore_mock_mmu_lock_order_each_has_both_scenarios() -> None:
    names = [name for name in SCENARIOS if name.startswith("mock/order-")]
    assert sorted(names) == sorted(name for order in ORDERS for name in (order.scenario, order.broken_by))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mock/module-init", ""),
        ("mock/module-init-wrong-kvm-lock", "nobody can go on: loader: "),
        ("mock/module-init-wrong-reported", "kvm_lock"),
        ("mock/notifier-locks", ""),
        ("mock/notifier-locks-wrong-slots-lock", "updater: wait for a condition; notifier: acquire kvm->slots_lock"),
        ("mock/notifier-locks-wrong-reported", "kvm->slots_lock is taken while holding kvm->mn_active_invalidate"),
    ],
)
def test_explore_mock_mmu_locks_of_the_model_are_explored(name: str, found: str) -> None:
    one = SCENARIOS[name]
    explored = one.explorer().systematic(one.bound)
    print(f"{name}: {summary(explored)}")
    if not found:
        assert explored.found is None
        assert explored.exhaustive
        assert explored.counts.schedules > 2
        return
    assert explored.found is not None
    _repeats(one, explored.found)
    assert found in str(explored.found.violation)


def _against(order: Order, held: str, wanted: str) -> bool:
    """Return whether taking, or waiting for, `wanted` while holding `held` is the other way round."""
    return (order.inner.name, order.outer.name) == (held, wanted) and order.rule is not Rule.READS


def test_explore_mock_mmu_model_takes_its_locks_as_the_table_says() -> None:
    """All that a run of the model does: slot calls, a log, faults, notifiers, each way to zap."""
    with LockGraph() as graph:
        hall = Hall()
        low, high = hall.map(0, LOW, OLD), slot_of(HIGH, NEW)
        hall.vcpu(LOW, LOW, write=True).run()
        hall.memslots.create(1, high)
        with hall.memslots.notifiers.invalidating(low.hva, low.hva + 1):
            pass
        hall.memslots.mmu.age_host(high.hva, high.hva + 1)
        hall.memslots.delete(0, low)
        edges = {(edge.held.name, edge.wanted.name) for edge in graph.edges}
    assert ("kvm->slots_lock", "kvm->mmu_lock") in edges
    assert ("kvm->slots_lock", "kvm->mn_active_invalidate_count") in edges
    assert ("kvm->slots_lock", "kvm->srcu") in edges
    assert not [edge for edge in edges for order in ORDERS if _against(order, *edge)]
    # What stands outside nothing is a leaf.
    outer = {order.outer.name for order in ORDERS} | {"kvm->mmu_lock", "kvm->srcu", "kvm->mn_active_invalidate_count"}
    assert {held for held, _ in edges} <= outer
