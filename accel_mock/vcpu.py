"""MockVcpu: runs a guest program and comes out of it as a vCPU of KVM does.

A program is compiled into a list of steps once (`accel_mock.steps`); `run` goes through them, one call a step,
and looks at one flag between two. An operation that exits stays where it is: as on KVM, its access completes
at the next `run`, before the guest goes on, and a kick is looked at after that.

The vCPU's TLB is two dicts, of translations for reading and for writing. A write translation is one for which the
memslot's log has been told, if it has one. What is not there it walks the shadow page table for, and what is not there
either is a page fault (`accel_mock.kvm.mmu`), for which it is outside of the guest.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterator

from accel import turns
from accel.backend import VcpuBackend
from accel.exits import ExitKind
from accel.program import GuestProgram
from accel.wakeup import Wakeup
from accel_mock.coalesced import MockCoalescedRing
from accel_mock.doorbells import MockDoorbells
from accel_mock.faults import Lateness, VcpuFaults
from accel_mock.kvm.dirty_ring import DirtyRing
from accel_mock.kvm.memslots import MemSlots
from accel_mock.kvm.mmu import Fault
from accel_mock.kvm.running import HANDOVER_SECONDS, Running
from accel_mock.kvm.spte import Place

#: Executes the operation at one place; returns the place to go on at, or `EXIT` minus the kind of an exit.
Step = Callable[[], int]

EXIT = -1
_DIRTY_RING_FULL = int(ExitKind.DIRTY_RING_FULL)

#: What a page fault gives that is to be tried again: false, as None is, and unlike it.
AGAIN: tuple[()] = ()

#: Steps that a vCPU makes with new slots, at least, before the slot call which brought them returns. Without these a
#: gap would last for a single one.
_STEPS_AT_LEAST = 8


class MockVcpu(VcpuBackend):
    """One vCPU of the mock. Owned by the thread that runs it, but for `attention` and `_kicked`.

    Attributes:
        readable: Its TLB: addresses that may be read, up to the end of their page, and where they lie.
        writable: The same for writing.
        name: For messages.
        attention: Set by any thread to have the vCPU look for kicks and requests before its next operation.
        memslots: What it uses.
        running: Who else does.
        ring: Where coalesced writes go.
        doorbells: What some writes ring instead.
        dirty_ring: Where it notes the pages that it writes, if not in the slots' logs.
        bus: Makes each write to memory, with its note, one step to other vCPUs and to whoever takes a log.
        errors: The program's error count.
        counters: What is left of each loop around the operation, outermost first.
    """

    def __init__(
        self,
        memslots: MemSlots,
        running: Running,
        bus: threading.Lock,
        ring: MockCoalescedRing,
        faults: VcpuFaults | None = None,
    ) -> None:
        self.record = memoryview(array("Q", (0, 0, 0, 0)))
        self.io_data = memoryview(bytearray(8))
        self.readable: dict[int, Place] = {}
        self.writable: dict[int, Place] = {}
        self.name = "vCPU"
        self.attention = False
        self.ring = ring
        self.doorbells = MockDoorbells()
        self.dirty_ring: DirtyRing | None = None
        self.bus = bus
        self.errors = 0
        self.counters: list[int] = []
        self.memslots = memslots
        self.running = running
        self._kicked = False
        self._woken = Wakeup()
        self._steps: list[Step] = [self._nothing_loaded]
        self._place = 0
        # The access of the operation that exited, as an iterator over its further exits.
        self._access: Iterator[int] | None = None
        self._faults = faults
        # How it comes out of this entry, if that is late.
        self._late: Lateness | None = None
        self._problem = ""
        self._fault: int | None = None

    def load_program(self, program: GuestProgram) -> None:
        """Start `program` at its first operation, with no errors and nothing left to complete."""
        from accel_mock.steps import compile_program, in_turns

        steps = compile_program(program, self)
        self._steps = steps if turns.take is None else in_turns(steps, turns.take)
        self._place = 0
        self._access = None
        self.errors = 0

    def run(self) -> int:
        """Run the program until it comes out; see `VcpuBackend.run`."""
        if self._faults is not None:
            self._late = self._faults.enter()
        while not self.running.enter(self):
            # All are kicked, and the entry returned at once. To try again and again until they are resumed would be
            # right and a waste: who resumes them wakes those who wait, as does a kick.
            if self._kicked:
                self._kicked = False
                return ExitKind.INTERRUPTED
            self._woken.wait()
        try:
            self.look_at_ring()
            kind = self._complete()
            return self._execute() if kind is None else kind
        finally:
            self.running.leave(self)

    def _execute(self) -> int:
        steps, place = self._steps, self._place
        while True:
            if self.attention:
                # Cleared before looking, so that what comes after the look sets it again.
                self.attention = False
                if self._kicked or self.running.stopped:
                    self._place = place
                    return self._come_out() if self._late is None else self._stay(self._late)
                if self._ring_is_full():
                    self._place = place
                    return _DIRTY_RING_FULL
                heard = self.running.hear(self)
                for _ in range(_STEPS_AT_LEAST):
                    following = steps[place]()
                    if following < 0:
                        self._place = place
                        return EXIT - following
                    place = following
                    if self._ring_is_full():
                        break
                self.running.has_worked(self, heard)
                continue
            following = steps[place]()
            if following < 0:
                self._place = place
                return EXIT - following
            place = following

    def _come_out(self) -> int:
        self._kicked = False
        return ExitKind.INTERRUPTED

    def _stay(self, late: Lateness) -> int:
        """Go on in the guest after a kick, and at its next exit, for as long as a fault says; return the exit."""
        steps, exit_kind = self._steps, None
        while not late.is_over():
            if exit_kind is None and self._ring_is_full():
                exit_kind = _DIRTY_RING_FULL
            if exit_kind is None:
                following = steps[self._place]()
                if following >= 0:
                    self._place = following
                else:
                    exit_kind = EXIT - following
            if self.attention:
                self.attention = False
                self.running.has_worked(self, self.running.hear(self))
            # The GIL is for those who wait for it.
            time.sleep(HANDOVER_SECONDS)
        if exit_kind is None:
            return self._come_out()
        # By itself, so the kick is for the next entry.
        self.attention = True
        return exit_kind

    def kick(self, thread_id: int) -> None:
        """Have `run` return before the next operation; the flags are all that is needed."""
        self._kicked = True
        self.attention = True
        self._woken.set()

    def wake(self) -> None:
        """Have a `run` that was sent back try again."""
        self._woken.set()

    def finish(self) -> int:
        """Complete the last exit's access; see `VcpuBackend.finish`."""
        while not self.running.enter(self):
            # No kick ends this: what is left of the access has to be done.
            self._woken.wait()
        try:
            kind = self._complete()
            return ExitKind.INTERRUPTED if kind is None else kind
        finally:
            self.running.leave(self)

    def _complete(self) -> int | None:
        """Go on with the access that exited; return its next exit, or None once it is complete."""
        if self._access is None:
            return None
        kind = next(self._access, None)
        if kind is None:
            self._access = None
            self._place += 1
        return kind

    def describe(self) -> str:
        """Return what went wrong."""
        return self._problem

    def fault_address(self) -> int | None:
        """Return the address of the fetch that failed, if that is what the last exit is about."""
        return self._fault

    def close(self) -> None:
        """Let go of the program, which points back at this object."""
        self._steps = []
        self._access = None
        self.drop_tlb()
        self.running.forget(self)

    def drop_tlb(self) -> None:
        """Forget all translations; on the vCPU's thread."""
        self.readable.clear()
        self.writable.clear()

    # for the steps

    def find_to_read(self, address: int) -> Place | tuple[()] | None:
        """Return where the byte at `address` lies, with all up to its page's end; None in a hole, or `AGAIN`."""
        found = self._find(address, write=False)
        if found:
            self.readable[address] = found
        return found

    def find_to_write(self, address: int) -> Place | tuple[()] | None:
        """Return the same for writing; None in a read-only slot too."""
        found = self._find(address, write=True)
        if found:
            self.writable[address] = found
        return found

    def _find(self, address: int, *, write: bool) -> Place | tuple[()] | None:
        """Walk the shadow page table as the processor does; after a page fault, which KVM handles, once more."""
        mmu = self.memslots.mmu
        found = mmu.walk(address, write=write)
        if found is not None:
            return found
        self.running.leave_guest(self)
        try:
            fault = mmu.fault(address, write=write, ring=self.dirty_ring)
        finally:
            self.running.enter_guest(self)
        if fault is Fault.MMIO:
            return None
        if write:
            self.look_at_ring()
        if fault is Fault.RETRY:
            # Whoever changes memory needs the GIL to go on.
            time.sleep(HANDOVER_SECONDS)
            return AGAIN
        return mmu.walk(address, write=write) or AGAIN

    def _ring_is_full(self) -> bool:
        return self.dirty_ring is not None and self.dirty_ring.is_full

    def look_at_ring(self) -> None:
        """Come out before the next operation if the dirty ring is full."""
        if self._ring_is_full():
            self.attention = True

    def start_access(self, access: Iterator[int], place: int) -> int:
        """Begin an access that may exit; return the place after `place`, or the exit, as a `Step` does."""
        kind = next(access, None)
        if kind is None:
            return place + 1
        self._access = access
        return EXIT - kind

    def fail(self, kind: ExitKind, problem: str, fault: int | None = None) -> int:
        """Return the exit of an operation that cannot go on, as a `Step` does."""
        self._problem = problem
        self._fault = fault
        return EXIT - kind

    def _nothing_loaded(self) -> int:
        return self.fail(ExitKind.FAIL_ENTRY, "no guest program is loaded; call load_program first")
