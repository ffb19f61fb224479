"""What decides in an execution: all ways one after the other, at random, or as another execution went.

Layer: above `engine`, below `search`, which says what is covered and why what is left out may be.
"""

from __future__ import annotations

import random

from accel.testing.explore.schedule import Recorder
from accel.testing.explore.scheduler import Scheduler
from accel.testing.explore.task import Choice, Task

#: As many preemptions as anybody wants.
_MANY = 1 << 30

#: A task that was preempted, by index, and what changes once another makes a step that depends on the one it was at.
_Pending = tuple[int, int, int]


class RandomChooser:
    """Chooses at random: mostly that the task goes on, so that others come at it from afar.

    Attributes:
        decisions: What was chosen.
    """

    def __init__(self, seed: int) -> None:
        self.prefix: list[tuple[int, bool]] = []
        self.expected: int | None = None
        self.left = _MANY
        self.decisions: list[tuple[int, bool]] = []
        self._random = random.Random(seed)
        self._stay = self._random.choice((0.3, 0.6, 0.9))

    def choose(self, engine: Scheduler, choices: list[Choice]) -> Choice:
        """Return one of them."""
        chosen = choices[0]
        if chosen.task is not engine.current or chosen.timeout or self._random.random() >= self._stay:
            chosen = self._random.choice(choices)
        self.decisions.append((chosen.task.index, chosen.timeout))
        return chosen


class Again:
    """Makes the same decisions once more, and writes them down as a schedule.

    Attributes:
        recorder: Has the schedule.
        preemptions: How many there were.
    """

    def __init__(self, decisions: list[tuple[int, bool]]) -> None:
        self.prefix: list[tuple[int, bool]] = []
        self.expected: int | None = None
        self.left = _MANY
        self.recorder = Recorder()
        self.preemptions = 0
        self._decisions = decisions
        self._at = 0

    def choose(self, engine: Scheduler, choices: list[Choice]) -> Choice | None:
        """Return what was chosen then."""
        at = self._at
        self._at += 1
        if at < len(self._decisions):
            index, timeout = self._decisions[at]
            for choice in choices:
                if choice.task.index == index and choice.timeout == timeout:
                    self.recorder.note(engine, choice)
                    self.preemptions += choice.cost
                    return choice
        engine.differs(f"decision {at} cannot be made again")
        return None


class _Node:
    """A choice of the execution that goes on.

    Attributes:
        ways: What can be chosen: whose turn, whether it times out, what it costs, and who is pending after it.
        used: Preemptions before.
        decisions: Decisions before.
        signature: Of what has happened before.
        taken: Which way is followed.
    """

    __slots__ = ("decisions", "signature", "taken", "used", "ways")

    def __init__(
        self, ways: list[tuple[int, bool, int, tuple[_Pending, ...]]], used: int, decisions: int, signature: int
    ) -> None:
        self.ways = ways
        self.used = used
        self.decisions = decisions
        self.signature = signature
        self.taken = 0


class DepthFirst:
    """Goes through all choices with up to `bound` preemptions; one object for all executions of a search.

    Attributes:
        decisions: What was chosen in the execution that goes on.
        was_cut: Whether it was given up.
        limited: Whether anything was left out, in any execution, because it takes more preemptions.
    """

    def __init__(self, bound: int) -> None:
        self.prefix: list[tuple[int, bool]] = []
        self.expected: int | None = None
        self.left = bound
        self.decisions: list[tuple[int, bool]] = []
        self.was_cut = False
        self.limited = False
        self._bound = bound
        self._nodes: list[_Node] = []
        self._pending: tuple[_Pending, ...] = ()
        # (signature, who goes) → fewest preemptions used there.
        self._known: dict[tuple[int, int], int] = {}

    @property
    def states(self) -> int:
        """How many different orders were come to."""
        return len(self._known)

    def choose(self, engine: Scheduler, choices: list[Choice]) -> Choice | None:
        """Return the first way, the cheapest, and note the others; give up where nothing new can come."""
        if self._pending:
            self._pending = tuple(one for one in self._pending if engine.stamp(engine.tasks[one[0]]) == one[1:])
            if self._pending:
                choices = self._useful(engine, choices)
        if not choices or self._is_known(engine, choices[0]):
            self.was_cut = True
            return None
        chosen = choices[0]
        going = chosen.task if chosen.task is engine.current and not chosen.timeout else None
        if not self.limited and not self.left:
            others = (task for task in engine.tasks if not task.done and task is not chosen.task)
            self.limited = any(going is not None or task.timeout is not None for task in others)
        if len(choices) > 1:
            ways = [(one.task.index, one.timeout, one.cost, self._then(engine, going, one)) for one in choices]
            self._nodes.append(_Node(ways, self._bound - self.left, len(self.decisions), engine.signature))
            self._pending = ways[0][3]
        elif self._pending:
            self._pending = self._then(engine, going, chosen)
        # The first way costs something if what costs nothing was left out.
        self.left -= chosen.cost
        self.decisions.append((chosen.task.index, True) if chosen.timeout else chosen.task.stay)
        return chosen

    def _is_known(self, engine: Scheduler, first: Choice) -> bool:
        """Return whether an order was come to before, with no more preemptions used; note it if not."""
        going = first.task.number if first.task is engine.current and not first.timeout else 0
        key = engine.signature, going
        before = self._known.get(key)
        used = self._bound - self.left
        if before is not None and before <= used:
            return True
        self._known[key] = used
        return False

    def _useful(self, engine: Scheduler, choices: list[Choice]) -> list[Choice]:
        """Return the choices without those that only take back a preemption that came to nothing."""
        pending = {one[0] for one in self._pending}
        blocked = [task for task in engine.tasks if task.ready is not None and not task.done and not task.ready()]

        def is_useful(choice: Choice) -> bool:
            task = choice.task
            if choice.timeout or task.index not in pending:
                return True
            # What it does next may let somebody go on, who would not have stopped then.
            return any(one.place[0] == task.place[0] or one.place[0] in task.held for one in blocked)

        return [one for one in choices if is_useful(one)]

    def _then(self, engine: Scheduler, going: Task | None, choice: Choice) -> tuple[_Pending, ...]:
        """Return who is pending after a choice."""
        chosen = choice.task
        pending = tuple(one for one in self._pending if one[0] != chosen.index)
        if going is None or choice.timeout or chosen is going or going.atomic:
            return pending
        return (*pending, (going.index, *engine.stamp(going)))

    def back(self) -> bool:
        """Go to the last choice that has another way within the bound; return whether there is one."""
        nodes = self._nodes
        while nodes:
            node = nodes[-1]
            node.taken += 1
            if node.taken < len(node.ways):
                index, timeout, cost, self._pending = node.ways[node.taken]
                self.left = self._bound - node.used - cost
                del self.decisions[node.decisions :]
                self.decisions.append((index, timeout))
                self.prefix = self.decisions[:]
                self.expected = node.signature
                self.was_cut = False
                return True
            nodes.pop()
        return False
