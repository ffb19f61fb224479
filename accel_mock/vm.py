"""MockVm: the slots, the coalesced ring and the vCPUs of one VM."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

from accel.backend import CoalescedRing, VcpuBackend, VmBackend, VmConfig
from accel.errors import BackendError, InhibitTimeoutError, OptionError
from accel.memory.listener import MemoryListener
from accel.memory.slot_plan import Policy
from accel_mock.coalesced import MockCoalescedRing, MockIoListener
from accel_mock.doorbells import MockDoorbells
from accel_mock.faults import Faults
from accel_mock.kvm.dirty_ring import RESERVED, DirtyRing
from accel_mock.kvm.memslots import MemSlots
from accel_mock.kvm.running import Running
from accel_mock.kvm.zap import FastInvalidate, ZapAll, ZapSlot, ZapStrategy
from accel_mock.limits import CAPABILITIES, MAX_VCPUS, SLOT_COUNT
from accel_mock.listener import MockMemoryListener
from accel_mock.vcpu import MockVcpu

#: What the values of the option ``zap`` stand for.
_ZAPS: dict[str, Callable[[], ZapStrategy]] = {
    "fast": FastInvalidate,
    "all": partial(ZapAll, yields=False),
    "all-yield": partial(ZapAll, yields=True),
    "slot": ZapSlot,
}


#: Entries that a dirty ring has to have, so that a vCPU can go on before it is told to come out.
LEAST_RING = 2 * RESERVED


class MockVm(VmBackend):
    """One VM of the mock."""

    capabilities = CAPABILITIES
    max_vcpus = MAX_VCPUS

    def __init__(self, config: VmConfig) -> None:
        options = config.options
        self._policy = cast(Policy, options.get("plan", "least"))
        # Makes writes of all vCPUs atomic against each other; a leaf.
        self._bus = threading.Lock()
        self._running = Running()
        self._faults = _faults(options.get("faults"))
        self._memslots = MemSlots(
            cast(int, options.get("slot_count", SLOT_COUNT)),
            self._running,
            cast(int, options.get("slot_latency_us", 0)) / 1e6,
            self._faults,
        )
        self._memslots.mmu.strategy = _ZAPS[cast(str, options.get("zap", "fast"))]()
        self._at_once = options.get("hold") == "region-list"
        self._listener: MockMemoryListener | None = None
        self._ring = MockCoalescedRing(self._faults)
        self.ring: CoalescedRing | None = self._ring
        self._doorbells = MockDoorbells()
        self._ring_size = cast(int, options.get("dirty_ring_size", 0))
        if self._ring_size and (self._ring_size & self._ring_size - 1 or self._ring_size < LEAST_RING):
            raise OptionError(
                "accelerator.mock",
                "dirty_ring_size",
                self._ring_size,
                f"must be a power of two and at least {LEAST_RING}, or 0 for none",
            )

    def create_vcpu(self, index: int) -> VcpuBackend:
        """Create a vCPU without a program."""
        number = self._faults.errno_of("create-vcpu")
        if number:
            raise BackendError("mock vCPU creation", number, f"vCPU {index}")
        vcpu = MockVcpu(self._memslots, self._running, self._bus, self._ring, self._faults.of_vcpu(index))
        vcpu.name = f"vCPU {index}"
        vcpu.doorbells = self._doorbells
        if self._ring_size:
            vcpu.dirty_ring = DirtyRing(self._ring_size)
            self._memslots.rings.append(vcpu.dirty_ring)
        return vcpu

    def memory_listener(self) -> MemoryListener:
        """Return the listener that keeps the slots, and the coalesced parts and the doorbells of the memory."""
        self._listener = MockMemoryListener(
            self._memslots,
            self._ring,
            self._doorbells,
            self._policy,
            at_once=self._at_once,
            dirty_rings=self._ring_size > 0,
        )
        return self._listener

    def empty_dirty_rings(self) -> None:
        """Merge the dirty rings into the logs; see `VmBackend.empty_dirty_rings`."""
        if not self._ring_size:
            super().empty_dirty_rings()
        elif self._listener is not None:
            self._listener.slots.empty_rings()

    def memory_figures(self) -> Mapping[str, float]:
        """Return figures of the slots."""
        return {} if self._listener is None else self._listener.figures

    def io_listener(self) -> MemoryListener | None:
        """Return the listener that keeps the coalesced ports and their doorbells."""
        return MockIoListener(self._ring, self._doorbells, is_port=True)

    def kick_all(self, timeout: float) -> None:
        """Bring all vCPUs out and keep them out; see `VmBackend.kick_all`. One that wants to run waits inside."""
        error = self._faults.errno_of("kick-all")
        if error:
            raise BackendError("mock kick-all call", error)
        started = time.monotonic()
        inside = self._running.kick_all(timeout)
        if inside:
            waited = time.monotonic() - started
            raise InhibitTimeoutError(timeout, [(vcpu.name, "run", waited) for vcpu in inside])

    def resume_all(self) -> None:
        """Let the vCPUs go on."""
        self._running.resume_all()

    def host(self) -> str:
        """Return what it runs on."""
        return "in-process model"

    def close(self) -> None:
        """Let go of the slots and the memory behind them, and of the doorbells."""
        self._memslots.clear()
        self._doorbells.clear()


def _faults(given: object) -> Faults:
    """Return the faults that the option of this name means."""
    if isinstance(given, Faults):
        return given
    return Faults(*given) if isinstance(given, tuple) else Faults()
