"""The acquisition graph: which class of lock was wanted while which was held, and whether that closes a cycle.

Layer: below `accel.locks`, which keeps what each thread holds and asks here before it waits for more.

The idea is that of the Linux kernel's lockdep. Classes are nodes. When a thread that holds A wants B for the first
time, an edge A → B is recorded, with both stacks. If there is a way from B back to A already, two threads could wait
for each other, even if none ever did; the thread is stopped with `LockError`, and the edge is not recorded. Ranks are
edges that nobody has to walk first: from each class to those of higher rank.

Readers. At each class of a cycle one thread wants it and the next one holds it. The cycle is a deadlock only if the
first has to wait for the second everywhere; a recursive reader does not wait for readers (`accel.lock_classes.blocks`).
So the search goes from *wanted uses* to *wanted uses*, and takes an edge only if its holder blocks them.

What it costs: the search, and stacks, when a pair is new; a look into a set when it is known.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from types import CodeType, FrameType, TracebackType
from typing import Self

from accel.errors import LockError
from accel.lock_classes import LockClass, LockUse, Mode, blocks
from accel.lock_report import Attempt, Edge, HeldLock, report, stack_at, stack_of

#: What a thread notes of a lock that it holds: the lock, how, and the code and instruction that took it.
Entry = tuple[object, LockUse, CodeType, int]


class LockGraph:
    """What has been seen of the order of locks; one for the process, `current`, unless a test wants its own.

    As a context, it is the current one meanwhile, for all threads, and locks made inside are validated whatever the
    environment says. Contexts nest, and are entered and left by one thread.

    Attributes:
        known: Pairs of what was held and what was wanted that were found harmless. Grows only; read without a lock.
    """

    def __init__(self) -> None:
        self.known: set[tuple[LockUse, LockUse]] = set()
        # Edges by the class that was held. Guarded by `_adding`, which is re-entrant since a signal's handler may
        # take a lock while its thread is here.
        self._edges: dict[LockClass, list[Edge]] = {}
        self._classes: dict[LockClass, None] = {}
        self._adding = threading.RLock()
        self._previous: LockGraph | None = None

    def __enter__(self) -> Self:
        global current
        self._previous, current = current, self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global current
        assert self._previous is not None
        current, self._previous = self._previous, None

    @property
    def edges(self) -> tuple[Edge, ...]:
        """What was seen, in no particular order."""
        with self._adding:
            return tuple(edge for edges in self._edges.values() for edge in edges)

    def admit(self, held: Sequence[Entry], wanted: LockUse, *, waits: bool = True) -> None:
        """Note that the calling thread wants something while it holds `held`, unless that could end in a deadlock.

        Args:
            held: In the order in which it was taken.
            wanted: What it wants.
            waits: Whether it would wait. If not, only ranks are looked at, and nothing is noted.

        Raises:
            LockError: A rank or a cycle is against it; nothing is noted.
        """
        with self._adding:
            fresh = [entry for entry in held if (entry[1], wanted) not in self.known]
            for entry in fresh:
                chain = self._conflict(entry[1], wanted, waits=waits)
                if chain is not None:
                    raise _error(held, entry, wanted, chain)
            if waits:
                for entry in fresh:
                    self._note(entry, wanted)

    def _note(self, entry: Entry, wanted: LockUse) -> None:
        _, use, code, instruction = entry
        if (use, wanted) in self.known:
            return
        frame = sys._getframe()
        edge = Edge(use, wanted, stack_at(code, instruction, frame), stack_of(frame), _thread_name())
        self._edges.setdefault(use.lock_class, []).append(edge)
        self._classes |= dict.fromkeys((use.lock_class, wanted.lock_class))
        self.known.add((use, wanted))

    def _conflict(self, held: LockUse, wanted: LockUse, *, waits: bool) -> tuple[Edge, ...] | None:
        """Return what leads from `wanted` back to `held`, or None; empty if they must not nest at all."""
        first, then = held.lock_class, wanted.lock_class
        if first is then:
            harmless = first.nests or not blocks(held.mode, wanted.mode) or not (waits or first.rank is not None)
            return None if harmless else ()
        if first.rank is not None and then.rank is not None:
            if first.rank == then.rank and not then.nests:
                return ()
            waits = waits or first.rank > then.rank
        return self._way(wanted, held) if waits else None

    def _way(self, wanted: LockUse, held: LockUse) -> tuple[Edge, ...] | None:
        """Return the shortest chain of edges from `wanted` to the class of `held` on which each waits for the next."""
        came: dict[LockUse, tuple[LockUse, Edge] | None] = {wanted: None}
        queue = deque([wanted])
        while queue:
            use = queue.popleft()
            for edge in self._from(use.lock_class, held.lock_class):
                after = edge.wanted
                if after in came or not blocks(edge.held.mode, use.mode):
                    continue
                came[after] = use, edge
                if after.lock_class is held.lock_class and blocks(held.mode, after.mode):
                    return _back(came, after)
                queue.append(after)
        return None

    def _from(self, lock_class: LockClass, goal: LockClass) -> Iterator[Edge]:
        """Yield what was seen from a class, then what ranks declare."""
        yield from self._edges.get(lock_class, ())
        if lock_class.rank is not None:
            exclusive = lock_class.uses[Mode.EXCLUSIVE]
            for other in dict.fromkeys((goal, *self._classes)):
                if other.rank is not None and other.rank > lock_class.rank:
                    yield Edge(exclusive, other.uses[Mode.EXCLUSIVE])


def _back(came: dict[LockUse, tuple[LockUse, Edge] | None], end: LockUse) -> tuple[Edge, ...]:
    chain: list[Edge] = []
    step = came[end]
    while step is not None:
        chain.append(step[1])
        step = came[step[0]]
    return tuple(reversed(chain))


def _error(held: Sequence[Entry], entry: Entry, wanted: LockUse, chain: tuple[Edge, ...]) -> LockError:
    frame: FrameType = sys._getframe()
    locks = {id(one): HeldLock(one[1], stack_at(one[2], one[3], frame)) for one in held}
    against = locks[id(entry)]
    attempt = Attempt(_thread_name(), wanted, stack_of(frame), tuple(locks.values()), against, chain)
    names = " → ".join(one[1].name for one in held)
    message = f"{wanted.name} {wanted.mode.verb} while holding {names}; {_rule(against.use, wanted, chain)}"
    return LockError(message, report(attempt))


def _rule(held: LockUse, wanted: LockUse, chain: tuple[Edge, ...]) -> str:
    """Return in a few words what is wrong."""
    if not chain:
        return "one at a time"
    ranks = wanted.lock_class.rank, held.lock_class.rank
    if ranks[0] is not None and ranks[1] is not None and ranks[0] < ranks[1]:
        rule = "be waited for" if wanted.mode in (Mode.SYNC, Mode.WAIT) else "be taken"
        return f"it must {rule} before {held.name}"
    return f"elsewhere the order is {' → '.join([wanted.name, *(edge.wanted.name for edge in chain)])}"


def _thread_name() -> str:
    return f"{threading.current_thread().name}/{threading.get_native_id()}"


#: The graph of the process, used where no other is current.
PROCESS = LockGraph()

#: The graph that is asked.
current: LockGraph = PROCESS
