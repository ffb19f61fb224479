"""All edits of region trees, at random: views, renderings and listeners say what a plain model says after every commit.

`memory_world` makes the edits and judges; Hypothesis chooses them, and makes a failing run as short as it can. What it
prints then has what each `step` got, and the edits in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from memory_steps import MIXES
from memory_world import World

STEPS = 20_000
#: The kind of a step and its three numbers.
CODES = st.binary(min_size=4, max_size=4)


class MemoryMachine(RuleBasedStateMachine):
    """One world."""

    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.mix: list[str] = []

    @initialize(mix=st.integers(0, len(MIXES) - 1), tight=st.sampled_from([False, False, True]))
    def make(self, mix: int, tight: bool) -> None:
        self.world = World(tight=tight)
        self.mix = MIXES[mix]

    @rule(code=CODES)
    def step(self, code: bytes) -> None:
        assert self.world is not None
        self.world.step(self.mix[code[0] % len(self.mix)], *code[1:])

    def teardown(self) -> None:
        if self.world is not None:
            try:
                if not self.world.failed:
                    self.world.close()
                    self.counts.update(self.world.counts)
            finally:
                self.world.abandon()


@pytest.mark.timeout(600)
def test_memory_of_all_edits_is_what_the_model_says(summarize: Callable[[str], None]) -> None:
    MemoryMachine.counts.clear()
    counts = MemoryMachine.counts
    chosen = settings(
        max_examples=40,
        stateful_step_count=200,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    while counts["steps"] < STEPS:
        run_state_machine_as_test(MemoryMachine, settings=chosen)
    steps = counts["steps"]
    shares = {what: counts[what] / steps for what in ("changing", "overlapping", "aliasing")}
    summarize(
        f"memory model: {steps} edits in {counts['commits']} view changes; {shares['changing']:.0%} changed a view, "
        f"{shares['overlapping']:.0%} overlapped, {shares['aliasing']:.0%} went through aliases; beside them "
        f"{counts['undone']} taken back, {counts['refused']} refused, {counts['refused commits']} commits refused"
    )
    assert shares["changing"] >= 0.6
    assert shares["overlapping"] >= 0.2
    assert shares["aliasing"] >= 0.1
