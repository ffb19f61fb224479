"""What may come of a tiny program, by walking all its states; shares no code with the explorer.

Operations are compiled to moves of a small machine whose whole state is one tuple. `outcomes` follows every schedule
with up to so many preemptions, and remembers where it has been.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tiny_programs import LOCKS, VARIABLES, Outcome, Program

DEADLOCK = "deadlock"

Move = tuple[Any, ...]
#: Moves that no other thread can see at all.
HIDDEN = ("append", "join")


class Thread(NamedTuple):
    """Where a thread is: the next move, what it saw, a register, and a depth put aside."""

    at: int = 0
    seen: tuple[Any, ...] = ()
    register: int = 0
    depth: int = 0


class State(NamedTuple):
    """Everything: threads, variables, owner and depth of re-entrant locks, plain locks, events, waiters, the told."""

    threads: tuple[Thread, ...]
    variables: tuple[int, ...]
    mutexes: tuple[tuple[int, int], ...]
    locks: tuple[bool, ...]
    events: tuple[bool, ...]
    waiters: tuple[tuple[int, ...], ...]
    told: frozenset[int]


def compiled(operations: tuple[tuple[Any, ...], ...]) -> tuple[Move, ...]:
    """Return the moves of a thread."""
    moves: list[Move] = []
    for kind, number, *more in operations:
        match kind:
            case "add":
                moves += [("fetch", number), ("put", number, *more)]
            case "try_" | "within":
                # If it is not got, the drop is passed over.
                moves += [(kind, number), ("drop", number)]
            case "wait" | "wait_for":
                waiting = ("told" if kind == "wait" else "told for", number)
                moves += [("take", number), ("join", number), ("leave all", number), waiting, ("back", number)]
                moves += [("append", number)] if kind == "wait_for" else []
                moves += [("drop", number)]
            case "notify" | "notify_all":
                moves += [("take", number), (kind, number), ("drop", number)]
            case _:
                moves.append((kind, number, *more))
    return tuple(moves)


def shared_variables(program: Program) -> set[int]:
    """Return the variables that several threads use, one of them writing, with no re-entrant lock that all hold."""
    users: dict[int, set[int]] = {v: set() for v in range(VARIABLES)}
    written, held_by_all = set(), {v: set(range(LOCKS)) for v in range(VARIABLES)}
    for thread, operations in enumerate(program):
        held: list[int] = []
        for kind, number, *_ in operations:
            if kind == "take":
                held.append(number)
            elif kind == "drop":
                held.remove(number)
            elif kind in ("read", "write", "add"):
                users[number].add(thread)
                held_by_all[number] &= set(held)
                if kind != "read":
                    written.add(number)
    return {v for v in written if len(users[v]) > 1 and not held_by_all[v]}


def tries(program: Program) -> bool:
    """Return whether a thread tries a re-entrant lock that it does not hold."""
    for operations in program:
        held: list[int] = []
        for kind, number, *_ in operations:
            if kind == "take":
                held.append(number)
            elif kind == "drop":
                held.remove(number)
            elif kind in ("try_", "within") and number not in held:
                return True
    return False


class BruteForce:
    """All schedules of one program.

    Args:
        program: Which.
        everywhere: Whether threads stop before every move that others could notice; else only where the explorer says
            that it does.
        timeouts: Whether waits may time out while somebody could go on.
    """

    def __init__(self, program: Program, *, everywhere: bool, timeouts: bool) -> None:
        self.moves = tuple(compiled(operations) for operations in program)
        self.everywhere = everywhere
        self.timeouts = timeouts
        self.shared = set(range(VARIABLES)) if everywhere else shared_variables(program)
        self.tries = everywhere or tries(program)
        #: How many states the last walk went through.
        self.walked = 0

    def outcomes(self, bound: int | None) -> set[Outcome | str]:
        """Return what may come of it with up to `bound` preemptions; None for any number."""
        start = State(
            tuple(Thread() for _ in self.moves),
            (0,) * VARIABLES,
            ((-1, 0),) * LOCKS,
            (False,) * LOCKS,
            (False,) * LOCKS,
            ((),) * LOCKS,
            frozenset(),
        )
        for thread in range(len(self.moves)):
            start = self._up_to_a_stop(start, thread)
        found: set[Outcome | str] = set()
        todo = [(start, -1, 0)]
        been = set(todo)
        while todo:
            state, current, used = todo.pop()
            ways = self._ways(state, current)
            if not ways:
                done = all(self._move(state, thread) is None for thread in range(len(self.moves)))
                found.add((tuple(one.seen for one in state.threads), state.variables) if done else DEADLOCK)
            for thread, late, cost in ways:
                if bound is not None and used + cost > bound:
                    continue
                after = self._go(state, thread, late)
                going = thread if self._move(after, thread) is not None else -1
                way = after, going, 0 if bound is None else used + cost
                if way not in been:
                    been.add(way)
                    todo.append(way)
        self.walked = len(been)
        return found

    def _move(self, state: State, thread: int) -> Move | None:
        at = state.threads[thread].at
        return self.moves[thread][at] if at < len(self.moves[thread]) else None

    def _ways(self, state: State, current: int) -> list[tuple[int, bool, int]]:
        able = [t for t in range(len(self.moves)) if self._move(state, t) is not None and self._can(state, t)]
        late = [t for t in range(len(self.moves)) if t not in able and self._may_be_late(state, t)]
        cost = 1 if current in able else 0
        ways = [(thread, False, 0 if thread == current else cost) for thread in able]
        if not ways:
            return [(thread, True, 0) for thread in late]
        return ways + ([(thread, True, 1) for thread in late] if self.timeouts else [])

    def _may_be_late(self, state: State, thread: int) -> bool:
        move = self._move(state, thread)
        return move is not None and move[0] in ("within", "await_for", "told for")

    def _can(self, state: State, thread: int) -> bool:
        """Return whether a thread can make its next move."""
        move = self._move(state, thread)
        assert move is not None
        kind, number = move[:2]
        match kind:
            case "take" | "within" | "back":
                return state.mutexes[number][0] in (-1, thread)
            case "lock":
                return not state.locks[number]
            case "await_" | "await_for":
                return state.events[number]
            case "told" | "told for":
                return thread in state.told
        return True

    def _stops(self, state: State, thread: int) -> bool:
        """Return whether a thread stops before its next move."""
        move = self._move(state, thread)
        assert move is not None
        kind, number = move[:2]
        if kind in HIDDEN:
            return False
        if kind in ("read", "write", "fetch", "put"):
            return number in self.shared
        if kind in ("take", "try_", "within"):
            return state.mutexes[number][0] != thread
        if kind == "leave all":
            return self.tries
        if kind == "drop":
            return self.tries and state.mutexes[number][1] == 1
        return True

    def _go(self, state: State, thread: int, late: bool) -> State:
        """Make a thread's next move, and those after it up to where it stops."""
        return self._up_to_a_stop(self._made(state, thread, late), thread)

    def _up_to_a_stop(self, state: State, thread: int) -> State:
        while self._move(state, thread) is not None and not self._stops(state, thread):
            state = self._made(state, thread, False)
        return state

    def _made(self, state: State, thread: int, late: bool) -> State:
        move = self._move(state, thread)
        assert move is not None
        kind, number, *more = move
        me = state.threads[thread]
        owner, depth = state.mutexes[number]
        step = 1
        match kind:
            case "read":
                state = put(state, thread, seen=(*me.seen, state.variables[number]))
            case "write":
                state = state._replace(variables=changed(state.variables, number, more[0]))
            case "fetch":
                state = put(state, thread, register=state.variables[number])
            case "put":
                state = state._replace(variables=changed(state.variables, number, me.register + more[0]))
            case "take":
                state = state._replace(mutexes=changed(state.mutexes, number, (thread, depth + 1)))
            case "drop":
                state = state._replace(
                    mutexes=changed(state.mutexes, number, (thread, depth - 1) if depth > 1 else (-1, 0))
                )
            case "try_" | "within":
                got = owner in (-1, thread) and not late
                state = put(state, thread, seen=(*me.seen, got))
                step = 1 if got else 2
                if got:
                    state = state._replace(mutexes=changed(state.mutexes, number, (thread, depth + 1)))
            case "lock" | "unlock":
                state = state._replace(locks=changed(state.locks, number, kind == "lock"))
            case "set" | "clear":
                state = state._replace(events=changed(state.events, number, kind == "set"))
            case "look":
                state = put(state, thread, seen=(*me.seen, state.events[number]))
            case "await_for":
                state = put(state, thread, seen=(*me.seen, not late))
            case "join":
                state = state._replace(waiters=changed(state.waiters, number, (*state.waiters[number], thread)))
            case "leave all":
                state = put(state, thread, depth=depth)._replace(mutexes=changed(state.mutexes, number, (-1, 0)))
            case "told" | "told for":
                left = tuple(one for one in state.waiters[number] if one != thread)
                state = put(state, thread, register=int(not late))
                state = state._replace(waiters=changed(state.waiters, number, left), told=state.told - {thread})
            case "back":
                state = state._replace(mutexes=changed(state.mutexes, number, (thread, me.depth)))
            case "append":
                state = put(state, thread, seen=(*me.seen, bool(me.register)))
            case "notify" | "notify_all":
                waiting = state.waiters[number]
                told = waiting[: 1 if kind == "notify" else len(waiting)]
                state = state._replace(
                    waiters=changed(state.waiters, number, waiting[len(told) :]), told=state.told | set(told)
                )
        return put(state, thread, at=me.at + step)


def changed(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def put(state: State, thread: int, **fields: Any) -> State:
    """Return the state with something about a thread changed."""
    return state._replace(threads=changed(state.threads, thread, state.threads[thread]._replace(**fields)))
