"""A VM: slots, turns and one engine per vCPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from accel.backend import Capability, VcpuBackend, VmBackend, VmConfig
from accel.memory.listener import MemoryListener
from accel.memory.slot_listener import SlotListener, SlotRules
from accel.memory.slot_plan import Policy
from accel_unicorn.engine import Engine, version
from accel_unicorn.layout import layout
from accel_unicorn.slots import UnicornSlots
from accel_unicorn.turn import Turn
from accel_unicorn.vcpu import UnicornVcpu

#: They take turns, so more than a few are for guests that want to see several.
MAX_VCPUS = 64

CAPABILITIES = frozenset({Capability.READONLY_MEMORY})


class UnicornVm(VmBackend):
    """One VM.

    Raises:
        BackendError: This Unicorn is not one that is known.
    """

    capabilities = CAPABILITIES
    max_vcpus = MAX_VCPUS

    def __init__(self, config: VmConfig) -> None:
        layout()
        self._turn = Turn()
        self._slots = UnicornSlots(self._turn)
        self._policy = cast(Policy, config.options.get("plan", "least"))
        self._listener: SlotListener | None = None

    def create_vcpu(self, index: int) -> VcpuBackend:
        """Create a vCPU with an engine of its own, in the state after reset."""
        engine = Engine()
        try:
            self._slots.add(engine)
            return UnicornVcpu(engine, self._slots, self._turn)
        except BaseException:
            self._slots.remove(engine)
            engine.close()
            raise

    def memory_listener(self) -> MemoryListener:
        """Return the listener that shows RAM and ROM in all engines."""
        rules = SlotRules(owner="unicorn", page_size=self.page_size, dirty_log=False)
        self._listener = SlotListener(self._slots, rules, self._policy)
        return self._listener

    def memory_figures(self) -> Mapping[str, float]:
        """Return figures of the slots."""
        return {} if self._listener is None else self._listener.figures

    def slot_map(self) -> tuple[tuple[int, int, int], ...]:
        """Return address, size and host address of each slot, ascending; under the big lock."""
        return tuple((slot.gpa, slot.size, slot.hva) for slot in self._slots)

    def host(self) -> str:
        """Return Unicorn's version."""
        return f"Unicorn {version()}"

    def close(self) -> None:
        """Nothing is left once the vCPUs are closed."""
