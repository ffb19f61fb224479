"""Lock classes as data: what there is, in which order it is taken, and what each protects.

Lowest layer: values only. `accel.locks` makes locks of them, ``accelctl locks`` prints them, and
``docs/explanation/locking.md`` describes them; a test keeps the page in step.

The form is that of the Linux kernel's page on KVM's locks (virt/kvm/locking), the modes are those of its lockdep.
"""

from __future__ import annotations

import enum

from attrs import field, frozen


class Mode(enum.IntEnum):
    """How a thread holds a lock of a class, or what it waits for.

    What matters is who keeps whom out; see `blocks`.
    """

    EXCLUSIVE = 0
    """Held by one thread at a time."""
    SHARED = 1
    """A reader of a fair lock: it waits behind a writer that waits already."""
    RECURSIVE = 2
    """A reader that waits for nobody but a writer inside, so that a thread may read twice."""
    DUTY = 3
    """What others wait for is going to be done by this thread."""
    SYNC = 4
    """A wait for all readers that are inside; nothing is held afterwards."""
    WAIT = 5
    """A wait for a thread with a duty; nothing is held afterwards."""

    @property
    def call(self) -> str:
        """What a report calls it."""
        return ("lock", "rlock", "rlock", "completing", "sync", "waiting_for")[self]

    @property
    def verb(self) -> str:
        """What a message says of who is about to."""
        return "is waited for" if self in (Mode.SYNC, Mode.WAIT) else "is taken"


_READERS = (Mode.SHARED, Mode.RECURSIVE, Mode.DUTY)


def blocks(held: Mode, wanted: Mode) -> bool:
    """Return whether who wants a lock in one way may have to wait for who holds it in another.

    A reader of a fair lock waits for readers too, since a writer may wait between them.
    """
    return held not in _READERS or wanted not in (Mode.RECURSIVE, Mode.DUTY)


@frozen(eq=False)
class LockUse:
    """A class together with a mode; one object for each pair, so that it is compared by identity."""

    lock_class: LockClass
    mode: Mode

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.lock_class.name

    def __str__(self) -> str:
        return f"{self.mode.call}({self.name})"


@frozen(eq=False)
class LockClass:
    """What all locks of one purpose have in common. A class is itself: two of one name are two classes.

    Attributes:
        name: As it appears in errors and in ``docs/explanation/locking.md``.
        rank: Position in the declared order: lower is taken first, equal ranks never nest. None leaves the order to
            what threads are seen to do.
        protects: What may be touched only while holding it.
        comment: Why it exists.
        nests: Whether one thread may hold several of its rank; only where something else keeps two threads from
            taking them in different orders.
        type: What kind of lock it is, and how many there are.
        mode: How it is held where a call does not say.
        uses: The class with each `Mode`, in order.
    """

    name: str
    rank: int | None = None
    protects: str = ""
    comment: str = ""
    nests: bool = False
    type: str = "re-entrant mutex"
    mode: Mode = Mode.EXCLUSIVE
    uses: tuple[LockUse, ...] = field(init=False, repr=False)

    @uses.default
    def _each_use(self) -> tuple[LockUse, ...]:
        return tuple(LockUse(self, mode) for mode in Mode)


VCPU_THREAD = LockClass(
    "vcpu_thread",
    5,
    "nothing of its own; it stands for waiting for a vCPU's thread",
    "no mutex: a vCPU's thread counts as holding it from start to end, since others wait for that thread to pause, to "
    "end or to make a call; so whoever waits holds no lock",
    type="a wait, one per vCPU thread",
    mode=Mode.DUTY,
)
BIG_LOCK = LockClass(
    "big_lock",
    10,
    "region trees, address spaces, devices without a lock of their own, machine state",
    "one per VM; held from a transaction's begin to its end and around device handlers; never while inside a gate",
    type="re-entrant mutex, one per VM",
)
DEVICE_LOCK = LockClass(
    "device_lock",
    20,
    "one device that declares its own lock",
    "held neither at a gate nor at a transaction's begin",
    type="re-entrant mutex, one per device that wants one",
)
RING_LOCK = LockClass(
    "ring_lock",
    30,
    "the read index of the coalesced ring",
    "a leaf: entries are taken out under it and handed to devices after it is released",
    type="re-entrant mutex, one per VM",
)
SLOTS_LOCK = LockClass(
    "slots_lock",
    40,
    "the slot table of one accelerator's memory listener",
    "held while a change is applied, from before the hold to after the last slot call; several are taken by "
    "transactions only, under the big lock",
    nests=True,
    type="re-entrant mutex, one per memory listener that maps RAM",
)
GATE = LockClass(
    "gate",
    45,
    "calls into the accelerator, which an inhibitor waits for",
    "no mutex: being inside counts as holding it, so nothing that an inhibitor holds may be taken inside",
    type="not a mutex: a flag per vCPU, and a table of the calls on the VM",
    mode=Mode.SHARED,
)
GATES_LOCK = LockClass(
    "gates_lock",
    50,
    "the set of gates and the count of VM calls inside",
    "a leaf, held for a few instructions only, never around a call into the accelerator",
    type="re-entrant mutex, one per VM",
)
DIRTY_LOCK = LockClass(
    "dirty_lock",
    60,
    "the dirty bitmaps of one RAM block and the count of each client",
    "a leaf, taken by anyone at any time, inside a gate too; held for one pass over a bitmap at most",
    type="re-entrant mutex, one per RAM block",
)

#: The core's classes, in the order in which they are taken.
LOCK_CLASSES = (VCPU_THREAD, BIG_LOCK, DEVICE_LOCK, RING_LOCK, SLOTS_LOCK, GATE, GATES_LOCK, DIRTY_LOCK)
