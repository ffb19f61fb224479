"""`HvfVcpu`: a vCPU that is created, kicked and destroyed as macOS wants it, and that does not run.

Layer: above `owner_thread`. Source: "vCPU management" in Apple's documentation (Hypervisor).
"""

from __future__ import annotations

from accel.backend import VcpuBackend
from accel.errors import CapabilityError
from accel_hvf_stub.api import HvfApi
from accel_hvf_stub.errors import check
from accel_hvf_stub.owner_thread import OwnerThread

#: Where what is missing is described.
NEXT_STEP = "docs/how-to/bring-up-hvf.md says what running one needs; run the guest with kvm or another accelerator"


class HvfVcpu(VcpuBackend):
    """One vCPU, bound to a thread of its own as Hypervisor.framework wants it.

    Raises:
        BackendError: It cannot be created.
    """

    def __init__(self, api: HvfApi, index: int) -> None:
        self.record = memoryview(bytearray(24)).cast("Q")
        self.io_data = memoryview(bytearray(8))
        self._api = api
        self._index = index
        self._owner = OwnerThread(f"hvf-vcpu-{index}")
        try:
            code, self._vcpu, _ = self._owner.call(lambda: api.hv_vcpu_create(0))
            check(code, "hv_vcpu_create", f"vCPU {index}")
        except BaseException:
            self._owner.close()
            raise

    def run(self) -> int:
        """Refuse. Raises CapabilityError, always."""
        raise CapabilityError(f"hvf is a stub: it maps memory, but its vCPU {self._index} does not run; {NEXT_STEP}")

    def kick(self, thread_id: int) -> None:
        """Have the vCPU leave the guest, now or as soon as it would enter (hv_vcpus_exit). Raises BackendError."""
        check(self._api.hv_vcpus_exit([self._vcpu]), "hv_vcpus_exit", f"vCPU {self._index}")

    def close(self) -> None:
        """Destroy it on its own thread, and end that. Raises BackendError."""
        try:
            code = self._owner.call(lambda: self._api.hv_vcpu_destroy(self._vcpu))
        finally:
            self._owner.close()
        check(code, "hv_vcpu_destroy", f"vCPU {self._index}")
