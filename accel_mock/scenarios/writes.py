"""Scenarios of writes that come to no memory: queued in the coalesced ring, a doorbell's, or to a read-only slot."""

from __future__ import annotations

import threading
from collections.abc import Callable

from attrs import evolve

from accel.testing.explore.scenario import require, scenario
from accel.testing.explore.world import Patch
from accel_mock.coalesced import MockCoalescedRing
from accel_mock.doorbells import MockDoorbells
from accel_mock.kvm.mmu import Fault
from accel_mock.scenarios.hall import HIGH, LOW, NEW, OLD, Hall, slot_of
from accel_mock.scenarios.pages import MMU, QUICK, User

_COALESCED = "accel_mock.coalesced"
_DOORBELLS = "accel_mock.doorbells"
#: Room for one write, so that the next one is an exit.
_SMALL = Patch(_COALESCED, "RING_SIZE = 170", "RING_SIZE = 2")


@scenario("mock/coalesced", instrument=(_COALESCED,), patches=(_SMALL,))
class Coalesced:
    """A vCPU writes to a ring with little room while another thread empties it: all writes arrive, in order."""

    writes = 3

    def __init__(self) -> None:
        self.ring = MockCoalescedRing()
        # Ports are as good as memory here, and a range of them is a zone.
        self.ring.zones[True] = frozenset({slot_of(LOW, OLD).range})
        self.arrived: list[int] = []
        self.reader = threading.Lock()

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU": self.write, "reader": self.drain}

    def write(self) -> None:
        for value in range(1, 1 + self.writes):
            if not self.ring.push(LOW, bytes([value]), is_port=True):
                self.exit(value)

    def exit(self, value: int) -> None:
        """Handle the exit of a write that found no room; what was queued before it comes first."""
        self.drain()
        self.arrived.append(value)

    def drain(self) -> None:
        with self.reader:
            self.arrived += [data[0] for _, _, _, data in self.ring.pop() if data]

    def check(self) -> None:
        self.drain()
        require(self.arrived == [*range(1, 1 + self.writes)], f"the writes arrived as {self.arrived}")


@scenario("mock/coalesced-wrong-not-drained", instrument=(_COALESCED,), wrong="invariant", patches=(_SMALL,))
class CoalescedNotDrained(Coalesced):
    """The same where an exit is handled before what is in the ring: a write passes one that came before it."""

    def exit(self, value: int) -> None:
        self.arrived.append(value)


@scenario(
    "mock/coalesced-wrong-index-first",
    instrument=(_COALESCED,),
    wrong="invariant",
    patches=(
        _SMALL,
        Patch(
            _COALESCED,
            "            self._entries[last] = (address, len(data), is_port, data)\n"
            "            self.indices[1] = following\n",
            "            self.indices[1] = following\n"
            "            self._entries[last] = (address, len(data), is_port, data)\n",
        ),
    ),
)
class CoalescedIndexFirst(Coalesced):
    """The same where the index goes on before the entry is there: the reader takes what was in its place."""


class _Bell:
    """A doorbell that counts."""

    def __init__(self) -> None:
        self.rung = 0

    def ring(self, address: int, value: int, size: int) -> bool:
        self.rung += 1
        return True


@scenario("mock/ioeventfd", instrument=(_DOORBELLS,))
class Ioeventfd:
    """A doorbell is registered while a vCPU rings another one: that one rings all the time.

    As KVM's buses, which are replaced as a whole under SRCU.
    """

    def __init__(self) -> None:
        self.doorbells = MockDoorbells()
        self.bell = _Bell()
        self.put({LOW: (self.bell,)})

    def put(self, bells: dict[int, tuple[_Bell, ...]]) -> None:
        self.doorbells.put(bells, frozenset(), is_port=False)  # type: ignore[arg-type]

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"updater": self.update, "vCPU": self.write}

    def update(self) -> None:
        self.put({LOW: (self.bell,), HIGH: (_Bell(),)})

    def write(self) -> None:
        for _ in range(2):
            rung = self.doorbells.ring(LOW, b"\1", is_port=False)
            require(rung, "the guest exits at a doorbell that was there all the time")

    def check(self) -> None:
        require(self.bell.rung == 2, f"two writes rang {self.bell.rung} times")


@scenario(
    "mock/ioeventfd-wrong-anew",
    instrument=(_DOORBELLS,),
    wrong="invariant",
    patches=(
        Patch(
            _DOORBELLS,
            "        self.bells[is_port] = bells\n",
            "        self.bells[is_port] = {}\n        self.bells[is_port] = bells\n",
        ),
    ),
)
class IoeventfdAnew(Ioeventfd):
    """The same where all are taken away before they are registered anew."""


@scenario("mock/read-only", instrument=MMU, patches=QUICK)
class ReadOnly:
    """A vCPU reads and writes a page of a read-only slot while the host takes it away: each write is an exit."""

    def __init__(self) -> None:
        self.hall = Hall()
        self.memslots = self.hall.memslots
        self.slot = evolve(slot_of(LOW, OLD), readonly=True)
        self.memslots.create(0, self.slot)
        require(self.memslots.mmu.fault(LOW, write=False) is Fault.FIXED, "the page cannot be mapped")
        self.guest = User(self.hall, None, NEW)

    def threads(self) -> dict[str, Callable[[], object]]:
        return {"vCPU": self.guest.run, "host": self.act}

    def act(self) -> None:
        with self.memslots.notifiers.invalidating(self.slot.hva, self.slot.range.size + self.slot.hva):
            self.hall.step()

    def check(self) -> None:
        found = self.memslots.table.find(LOW)
        require(found is not None and found.bytes[0] == OLD, "the guest wrote to a read-only slot")
        require(NEW not in self.guest.seen, f"the guest wrote, and saw {self.guest.seen}")


@scenario(
    "mock/read-only-wrong-writable",
    instrument=MMU,
    wrong="invariant",
    patches=(*QUICK, Patch("accel_mock.kvm.mmu", "        if not slot.slot.readonly:\n", "        if True:\n")),
)
class ReadOnlyWritable(ReadOnly):
    """The same where the entry is made without regard to that: after a read, the processor lets the guest write."""
