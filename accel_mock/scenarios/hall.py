"""Memslots, vCPUs that use them, and a judge, with no machine around: what scenarios of slot changes are set up with.

The vCPUs are the mock's own, with their TLBs and page faults; instead of a guest program each executes looks at bytes,
and notes what it found. Nothing here is instrumented, so that bookkeeping costs no steps: what is kept follows from how
far each thread has come, and not from who came first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from accel import MemoryRegion
from accel.address import PAGE_SIZE
from accel.exits import ExitKind
from accel.memory.slot_plan import Slot
from accel.testing.explore.scenario import require
from accel.testing.explore.world import Patch
from accel_mock.coalesced import MockCoalescedRing
from accel_mock.kvm.memslots import MemSlots
from accel_mock.kvm.running import Running
from accel_mock.vcpu import EXIT, MockVcpu, Step

#: The modules whose accesses matter. `slot_map` is none of them: whoever has a set finds it as it was made.
MODEL = (
    *(
        f"accel_mock.kvm.{name}"
        for name in (
            "memslots",
            "mmu",
            "notifier",
            "running",
            "spte",
            "zap",
            "page_log",
            "fast_fault",
            "host_pages",
            "rmap",
        )
    ),
    "accel_mock.vcpu",
)
#: Those of the accel-blocker.
BLOCKER = ("accel.blocker", "accel.gate", "accel.wakeup")
#: A slot call of the mock ends with waits that KVM's has not: until vCPUs have worked with the new set, for which they
#: look up from their work, and a pause in which others get the interpreter. Where all orders are tried they hide some.
PROMPT = (
    Patch("accel_mock.kvm.memslots", "        self._running.let_work()", "        pass"),
    Patch("accel_mock.kvm.memslots", "        time.sleep(self._latency or HANDOVER_SECONDS)", "        pass"),
)

#: Two pages beside each other, and one elsewhere.
LOW, HIGH, ELSEWHERE = 0x1_0000, 0x1_1000, 0x5_0000
#: What bytes say of where they come from; and what a look at a hole notes.
OLD, NEW, GONE, HOLE = 0x5A, 0xA5, 0xEE, -1


class Hall:
    """Memslots, and who uses them.

    Attributes:
        memslots: The VM's.
        released: Addresses of guest memory whose host memory is freed: nobody may use it any more.
    """

    def __init__(self) -> None:
        self.running = Running()
        self.memslots = MemSlots(8, self.running)
        self.released: set[int] = set()
        self._bus = threading.Lock()
        self._step = threading.Event()

    def map(self, number: int, address: int, byte: int, pages: int = 1) -> Slot:
        """Map so many pages that begin with `byte` each; return the slot."""
        slot = slot_of(address, byte, pages)
        self.memslots.create(number, slot)
        return slot

    def step(self) -> None:
        """Stand still for a moment, in which anything can happen."""
        self._step.set()

    def vcpu(self, *addresses: int, write: bool = False) -> Guest:
        """Return a vCPU whose guest looks at these addresses, one after the other, and halts."""
        return Guest(self, MockVcpu(self.memslots, self.running, self._bus, MockCoalescedRing()), addresses, write)


def logged(slot: Slot) -> Slot:
    """Return the slot as one that logs."""
    return slot.with_log(MemoryRegion.ram("logged", PAGE_SIZE).dirty_log())


def slot_of(address: int, byte: int, pages: int = 1) -> Slot:
    """Return a slot of so many pages, each of which begins with `byte`."""
    region = MemoryRegion.ram("ram", pages * PAGE_SIZE)
    block = region.block
    assert block is not None
    for page in range(pages):
        block.view[page * PAGE_SIZE] = byte
    return Slot(address, pages * PAGE_SIZE, block.address, False, block)


class Guest:
    """A vCPU whose guest looks at bytes.

    Attributes:
        vcpu: The vCPU.
        seen: What it found at each address so far: the byte, or `HOLE`.
        found: Called with each look that found memory or a hole: the address and the byte, before the next one.
        spins: Whether the guest is to look again where it found memory.
    """

    def __init__(self, hall: Hall, vcpu: MockVcpu, addresses: Sequence[int], write: bool) -> None:
        self.vcpu = vcpu
        self.seen: list[int] = []
        self.found: Callable[[int, int], None] = lambda address, byte: None
        self.spins: Callable[[], bool] = lambda: False
        self._hall = hall
        vcpu._steps = [*(self._look(place, address, write) for place, address in enumerate(addresses)), _halt]

    def run(self) -> None:
        """Enter the guest until it has halted; a hole is an exit, after which it is entered again."""
        while self.enter() != ExitKind.HALT:
            pass

    def enter(self) -> ExitKind:
        """Enter the guest once, and return why it came out."""
        return ExitKind(self.vcpu.run())

    def _look(self, place: int, address: int, write: bool) -> Step:
        vcpu, hall = self.vcpu, self._hall
        known = vcpu.writable if write else vcpu.readable
        find = vcpu.find_to_write if write else vcpu.find_to_read

        def step() -> int:
            where = known.get(address) or find(address)
            if not where:
                return vcpu.start_access(self._miss(address), place) if where is None else place
            memory, offset = where
            require(address not in hall.released, f"the guest uses memory at {address:#x} that is freed")
            self._note(address, memory[offset])
            return place if self.spins() else place + 1

        return step

    def _miss(self, address: int) -> Iterator[int]:
        self._note(address, HOLE)
        yield int(ExitKind.MMIO)

    def _note(self, address: int, byte: int) -> None:
        self.seen.append(byte)
        self.found(address, byte)


def _halt() -> int:
    return EXIT - ExitKind.HALT


@contextmanager
def unvalidated() -> Iterator[None]:
    """Have locks made inside check no order, so that what they would report comes to pass."""
    before = os.environ["ACCEL_LOCKDEP"]
    os.environ["ACCEL_LOCKDEP"] = "0"
    try:
        yield
    finally:
        os.environ["ACCEL_LOCKDEP"] = before
