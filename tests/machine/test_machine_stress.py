"""Stress on real KVM: every kind of touch under every kind of change, held and unheld; in short, and for a minute."""

from __future__ import annotations

import random

import pytest

from accel.stress.changes import CHANGES
from accel.stress.figures import Figures
from accel.stress.judgement import TOUCHES
from accel.stress.runner import StressSpec, run_stress

pytestmark = pytest.mark.kvm

#: How long changes are made in the soak test, held; as long again not held. Least number of changes, held.
SECONDS, LEAST_UPDATES = 60.0, 5_000
CPUS = (1, 2, 4, 8)


@pytest.mark.parametrize("touch", TOUCHES)
def test_held_guests_see_nothing_of_replaced_memory(touch) -> None:
    (figures,) = run_stress(StressSpec(accelerator="kvm", touches=(touch,), cpus=(2,), updates=40, seed=4))
    assert figures.clean, (figures.first_error, figures.to_data())
    assert figures.inhibits == figures.updates == 40
    assert figures.kicks > 0, "nobody was in the guest, so that nothing is shown"
    assert figures.guest_passes > 0


@pytest.mark.parametrize("change", CHANGES)
def test_held_guests_see_nothing_of_each_kind_of_change_by_either_plan(change) -> None:
    spec = StressSpec(accelerator="kvm", cpus=(2,), changes=(change,), plans=("replace", "least"), updates=12, seed=4)
    replace, least = run_stress(spec)
    assert replace.clean, replace.first_error
    assert least.clean, least.first_error
    assert replace.inhibits == 12
    assert least.inhibits + least.unheld == 12


@pytest.mark.parametrize("touch", TOUCHES)
def test_unheld_guests_fault_before_long(touch) -> None:
    seen: list[Figures] = []

    def end_at_a_fault(live: Figures) -> None:
        if live.faults or live.timeline.points[-1][2]:
            raise KeyboardInterrupt

    spec = StressSpec(accelerator="kvm", touches=(touch,), cpus=(2,), holds=("unsafe",), seconds=60.0, seed=4)
    with pytest.raises(KeyboardInterrupt):
        for figures in run_stress(spec, end_at_a_fault):
            seen.append(figures)
    (figures,) = seen
    assert figures.inhibits == 0
    assert figures.faults > 0
    # A fetch or a page walk that finds no memory cannot be served.
    assert (figures.crashes > 0) is (touch in ("fetch", "walk")) or touch == "mixed"


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_soak_5000_held_updates_of_touched_memory_never_show_and_unheld_ones_do() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    spec = StressSpec(
        accelerator="kvm",
        touches=TOUCHES,
        cpus=CPUS,
        holds=("inhibit", "unsafe"),
        seconds=SECONDS / (len(TOUCHES) * len(CPUS)),
        seed=seed,
    )
    rows = []
    for figures in run_stress(spec):
        rows.append(figures)
        print(
            f"{figures.combination}: {figures.updates} updates, {figures.faults} faults, {figures.guest_passes} passes"
        )
    held = [row for row in rows if row.combination.hold == "inhibit"]
    unheld = [row for row in rows if row.combination.hold == "unsafe"]
    assert [(str(row.combination), row.first_error) for row in held if not row.clean] == []
    assert all(row.guest_passes for row in held)
    assert sum(row.inhibits for row in held) >= LEAST_UPDATES
    for touch in TOUCHES:
        some = [row for row in unheld if row.combination.touch == touch]
        assert sum(row.faults for row in some) * 100 >= sum(row.updates for row in some), touch
