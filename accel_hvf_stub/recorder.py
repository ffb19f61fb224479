"""`HvfRecorder`: an `HvfApi` that makes no call but notes it, checked against the rules of Hypervisor.framework.

Layer: above `guest_map`, which has the rules of memory. It runs nothing and works on every host. An illegal call gets
the code that macOS gives, or the one that Apple's words for the codes suggest where nobody documents it; `illegal` has
all of them.

Rules beside those of memory, and where each is from:

- *One VM in a process.* "Hypervisor", overview, in Apple's documentation. A second ``hv_vm_create`` was seen to give
  HV_BUSY. A recorder stands for a process: two of them know nothing of each other.
- *Without a VM nothing works.* HV_NO_DEVICE: "no VM or vCPU was available" (``hv_return_t``).
- *hv_vm_destroy requires that all vCPUs be destroyed.* hv_vm.h; HV_BUSY by the meaning of the codes.
- *A thread has one vCPU at most.* ``hv_vcpu_create`` in hv_vcpu.h; HV_BUSY likewise.
- *There is a greatest number of vCPUs.* ``hv_vm_get_max_vcpu_count``; no number is documented, M1 to M4 were seen to
  have 64. One more gives HV_NO_RESOURCES.
- *A vCPU is run and destroyed by the thread that created it.* "vCPU management" in Apple's documentation;
  HV_BAD_ARGUMENT, as for a vCPU that is not there.
- *hv_vcpus_exit is for any thread, and sticks until the next hv_vcpu_run.* hv_vcpu.h. Unknown vCPUs: HV_BAD_ARGUMENT,
  and no vCPU of the list is asked to leave.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping as MappingType
from collections.abc import Sequence

from attrs import frozen

from accel_hvf_stub.api import HvReturn
from accel_hvf_stub.guest_map import GuestMap, Mapping

MAX_VCPUS = 64


@frozen
class HvCall:
    """One call.

    Attributes:
        function: The C function.
        arguments: By the names that they have in C.
        code: What it returned.
    """

    function: str
    arguments: MappingType[str, int | tuple[int, ...]]
    code: HvReturn


class HvfRecorder:
    """Notes and checks calls. May be called from any thread.

    Attributes:
        calls: All calls so far, or since `take`, in order.
    """

    def __init__(self) -> None:
        # Guards all of it; a leaf, held for the length of a call.
        self._lock = threading.Lock()
        self.calls: list[HvCall] = []
        self._map: GuestMap | None = None
        # vCPU → the thread that created it; and those that were asked to leave since they last ran.
        self._owners: dict[int, int] = {}
        self._asked: set[int] = set()

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What is mapped now, ascending; nothing without a VM."""
        with self._lock:
            return () if self._map is None else tuple(self._map)

    @property
    def illegal(self) -> list[HvCall]:
        """The calls that broke a rule."""
        return [call for call in self.calls if call.code != HvReturn.HV_SUCCESS]

    def take(self) -> list[HvCall]:
        """Return the calls since the last time, and forget them."""
        with self._lock:
            taken, self.calls = self.calls, []
            return taken

    # HvfApi: the VM

    def hv_vm_get_max_vcpu_count(self) -> tuple[int, int]:
        """Return the code, and the number that Macs of today have."""
        with self._lock:
            return self._note("hv_vm_get_max_vcpu_count", HvReturn.HV_SUCCESS), MAX_VCPUS

    def hv_vm_create(self, config: int) -> int:
        """Begin with an empty map."""
        with self._lock:
            code = HvReturn.HV_SUCCESS if self._map is None else HvReturn.HV_BUSY
            if self._map is None:
                self._map = GuestMap()
            return self._note("hv_vm_create", code, config=config)

    def hv_vm_destroy(self) -> int:
        """Forget the map."""
        with self._lock:
            code = HvReturn.HV_SUCCESS
            if self._map is None:
                code = HvReturn.HV_NO_DEVICE
            elif self._owners:
                code = HvReturn.HV_BUSY
            else:
                self._map = None
            return self._note("hv_vm_destroy", code)

    # HvfApi: memory

    def hv_vm_map(self, addr: int, ipa: int, size: int, flags: int) -> int:
        """Map host memory."""
        with self._lock:
            code = HvReturn.HV_NO_DEVICE if self._map is None else self._map.map(addr, ipa, size, flags)
            return self._note("hv_vm_map", code, addr=addr, ipa=ipa, size=size, flags=flags)

    def hv_vm_unmap(self, ipa: int, size: int) -> int:
        """Unmap guest memory."""
        with self._lock:
            code = HvReturn.HV_NO_DEVICE if self._map is None else self._map.unmap(ipa, size)
            return self._note("hv_vm_unmap", code, ipa=ipa, size=size)

    def hv_vm_protect(self, ipa: int, size: int, flags: int) -> int:
        """Change the flags of guest memory."""
        with self._lock:
            code = HvReturn.HV_NO_DEVICE if self._map is None else self._map.protect(ipa, size, flags)
            return self._note("hv_vm_protect", code, ipa=ipa, size=size, flags=flags)

    # HvfApi: vCPUs

    def hv_vcpu_create(self, config: int) -> tuple[int, int, int]:
        """Give the calling thread a vCPU with the lowest free number; there is no ``hv_vcpu_exit_t``."""
        me = threading.get_ident()
        with self._lock:
            vcpu = next(number for number in range(MAX_VCPUS + 1) if number not in self._owners)
            code = HvReturn.HV_SUCCESS
            if self._map is None:
                code = HvReturn.HV_NO_DEVICE
            elif me in self._owners.values():
                code = HvReturn.HV_BUSY
            elif vcpu == MAX_VCPUS:
                code = HvReturn.HV_NO_RESOURCES
            else:
                self._owners[vcpu] = me
            return self._note("hv_vcpu_create", code, config=config), vcpu, 0

    def hv_vcpu_destroy(self, vcpu: int) -> int:
        """Take the calling thread's vCPU from it."""
        with self._lock:
            code = self._on_own_thread(vcpu)
            if code == HvReturn.HV_SUCCESS:
                del self._owners[vcpu]
                self._asked.discard(vcpu)
            return self._note("hv_vcpu_destroy", code, vcpu=vcpu)

    def hv_vcpu_run(self, vcpu: int) -> int:
        """Return at once if the vCPU was asked to leave; otherwise HV_UNSUPPORTED, as nothing runs here."""
        with self._lock:
            code = self._on_own_thread(vcpu)
            if code == HvReturn.HV_SUCCESS:
                if vcpu not in self._asked:
                    code = HvReturn.HV_UNSUPPORTED
                self._asked.discard(vcpu)
            return self._note("hv_vcpu_run", code, vcpu=vcpu)

    def hv_vcpus_exit(self, vcpus: Sequence[int]) -> int:
        """Note that these are to leave the guest."""
        with self._lock:
            code = HvReturn.HV_SUCCESS
            if self._map is None:
                code = HvReturn.HV_NO_DEVICE
            elif any(vcpu not in self._owners for vcpu in vcpus):
                code = HvReturn.HV_BAD_ARGUMENT
            else:
                self._asked.update(vcpus)
            return self._note("hv_vcpus_exit", code, vcpus=tuple(vcpus))

    # inside, under the lock

    def _on_own_thread(self, vcpu: int) -> HvReturn:
        if self._map is None:
            return HvReturn.HV_NO_DEVICE
        own = self._owners.get(vcpu) == threading.get_ident()
        return HvReturn.HV_SUCCESS if own else HvReturn.HV_BAD_ARGUMENT

    def _note(self, function: str, code: HvReturn, **arguments: int | tuple[int, ...]) -> int:
        self.calls.append(HvCall(function, arguments, code))
        return code
