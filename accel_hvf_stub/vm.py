"""`HvfVm`: the one VM that a process can have; and `DryHvfVm`, whose calls are only noted.

Layer: the top of the plugin, below `plugin`. Source: ``hv_vm_create`` and ``hv_vm_destroy`` in Apple's documentation
(Hypervisor).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from accel.backend import Capability, RecordedCall, VcpuBackend, VmBackend, VmConfig
from accel.memory.listener import MemoryListener
from accel.memory.slot_plan import Policy
from accel_hvf_stub.api import HvfApi, HvMemory
from accel_hvf_stub.errors import check, describe
from accel_hvf_stub.limits import PAGE_SIZE
from accel_hvf_stub.recorder import HvCall, HvfRecorder
from accel_hvf_stub.slots import HvfMemoryListener
from accel_hvf_stub.vcpu import HvfVcpu

#: The calls that change memory, with their arguments in the order in which people want to see them.
_MEMORY_CALLS = {
    "hv_vm_map": ("ipa", "size", "flags", "addr"),
    "hv_vm_unmap": ("ipa", "size"),
    "hv_vm_protect": ("ipa", "size", "flags"),
}


class HvfVm(VmBackend):
    """A VM of Hypervisor.framework, whose vCPUs do not run.

    Raises:
        BackendError: A call failed, such as hv_vm_create where the process has a VM already.
    """

    capabilities = frozenset({Capability.READONLY_MEMORY})
    page_size = PAGE_SIZE

    def __init__(self, api: HvfApi, config: VmConfig) -> None:
        self._api = api
        self._policy = cast(Policy, config.options.get("plan", "least"))
        self._listener: HvfMemoryListener | None = None
        # What is behind the host addresses that were mapped, for whoever shows the calls.
        self._sources: dict[int, str] | None = None
        check(api.hv_vm_create(0), "hv_vm_create")
        code, self.max_vcpus = api.hv_vm_get_max_vcpu_count()
        try:
            check(code, "hv_vm_get_max_vcpu_count")
        except BaseException:
            api.hv_vm_destroy()
            raise

    def create_vcpu(self, index: int) -> VcpuBackend:
        """Create a vCPU on a thread of its own."""
        return HvfVcpu(self._api, index)

    def memory_listener(self) -> MemoryListener:
        """Return the listener that maps RAM."""
        self._listener = HvfMemoryListener(self._api, self._policy, self._sources)
        return self._listener

    def memory_figures(self) -> Mapping[str, float]:
        """Return figures of the mappings."""
        return {} if self._listener is None else self._listener.figures

    def close(self) -> None:
        """Destroy the VM, and with it what is mapped. Raises BackendError."""
        check(self._api.hv_vm_destroy(), "hv_vm_destroy")


class DryHvfVm(HvfVm):
    """A VM that makes no calls: what it would call is noted, and checked as macOS would."""

    def __init__(self, config: VmConfig) -> None:
        self._recorder = HvfRecorder()
        super().__init__(self._recorder, config)
        self._sources: dict[int, str] = {}

    def take_calls(self) -> Sequence[RecordedCall]:
        """Return the memory calls since the last time."""
        calls = [_shown(call, self._sources) for call in self._recorder.take() if call.function in _MEMORY_CALLS]
        self._sources.clear()
        return calls


def _shown(call: HvCall, sources: Mapping[int, str]) -> RecordedCall:
    """Return a call for people: host addresses by what is there, flags as letters."""
    shown: dict[str, int | str] = {}
    for name in _MEMORY_CALLS[call.function]:
        value = cast(int, call.arguments[name])
        shown[name] = value
        if name == "flags":
            shown[name] = HvMemory(value).letters
        elif name == "addr":
            shown[name] = sources[value]
    return RecordedCall(call.function, shown, describe(call.code))
