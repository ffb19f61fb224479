"""What has happened in an execution: where, in which order, and which data turned out to be shared.

Layer: below `engine`, which is one. Apart from it so that each stays readable; the engine says what the signature is.
"""

from __future__ import annotations

from accel.testing.explore.task import Location, Place, Task

_MASK = (1 << 64) - 1


class _Use:
    """Who uses a piece of data, to tell whether it must be visible.

    Attributes:
        owner: The object, kept so that its id is not used again.
        task: The only one so far that used it, or None if there are several.
        written: Whether anybody wrote it.
        held: The mutexes that all held who used it.
        name: What it was called first; a container may be reached by several names.
    """

    __slots__ = ("held", "name", "owner", "task", "written")

    def __init__(self, owner: object, task: Task, written: bool, name: str) -> None:
        self.owner = owner
        self.task: Task | None = task
        self.written = written
        self.held = task.held
        self.name = name


class History:
    """What has happened in one execution.

    Attributes:
        signature: Of what has happened so far.
        found: Names of data that turned out to be shared and was not visible.
    """

    def __init__(self) -> None:
        self.signature = 0
        self.found: set[str] = set()
        self._places: dict[Place, Location] = {}
        self._uses: dict[Place, _Use] = {}

    def stamp(self, task: Task) -> tuple[int, int]:
        """Return what changes once another task makes a step that depends on the one that `task` is about to make."""
        place = self._places.get(task.place)
        if place is None:
            return 0, 0
        return place.written, (place.read if task.writes else 0)

    def _learn(self, task: Task, place: Place, owner: object, name: str, *, write: bool) -> None:
        """Note that data turns out to be used by several tasks with no mutex that all of them hold."""
        use = self._uses.get(place)
        if use is None:
            self._uses[place] = _Use(owner, task, write, name)
            return
        if use.task is task and use.held is task.held and (use.written or not write):
            return
        if use.held and use.held is not task.held:
            use.held &= task.held
        if write:
            use.written = True
        if use.task is not task:
            use.task = None
            if use.written and not use.held:
                self.found |= {name, use.name}

    def _place(self, task: Task, place: Place, owner: object) -> Location:
        """Return the location, named by who came to it first."""
        found = self._places.get(place)
        if found is None:
            task.named += 1
            found = self._places[place] = Location(hash((task.number, task.named)), owner)
        return found

    def _note(self, task: Task, location: Location, *, write: bool) -> None:
        if write:
            # What was read since the last write is in the signatures of the reads.
            last = hash((task.number, location.number, 1, task.last, location.written))
        else:
            last = hash((task.number, location.number, 0, task.last, location.written))
        # The hash of a tuple is nearly linear in its last element, so that sums of some would come to the same when
        # two readers change places; that of bytes is not.
        last = hash(last.to_bytes(8, "little", signed=True))
        task.last = last
        if write:
            location.written = last
            location.read = 0
        else:
            location.read = (location.read + last) & _MASK
        self.signature = (self.signature + last) & _MASK
