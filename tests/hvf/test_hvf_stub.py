"""The hvf stub: it registers, and it never pretends."""

import sys

import pytest

from accel.backend import Accelerator, Capability, VmConfig
from accel.errors import BackendError, CapabilityError, NoAcceleratorError
from accel.plugins import open_accelerator
from accel.vm import OpenAccelerator
from accel_hvf_stub.plugin import HvfAccelerator, accel_register_accelerators
from accel_hvf_stub.recorder import HvfRecorder


def test_hvf_stub_registers_one_accelerator_for_arm64() -> None:
    found: list[Accelerator] = []
    accel_register_accelerators(found.append)
    assert [(one.name, one.executes, one.dry_run) for one in found] == [("hvf", {"arm64"}, True)]


@pytest.mark.parametrize(("host", "reason"), [("linux", "macOS only"), ("darwin", "is a stub")])
def test_hvf_stub_is_unavailable_with_the_reason_of_this_host(
    monkeypatch: pytest.MonkeyPatch, host: str, reason: str
) -> None:
    monkeypatch.setattr(sys, "platform", host)
    available = HvfAccelerator().probe()
    assert not available.ok
    assert reason in available.reason
    with pytest.raises(CapabilityError, match=reason):
        HvfAccelerator().create_vm(VmConfig())


def test_hvf_stub_is_unavailable_even_where_something_calls_the_framework() -> None:
    """Its vCPUs do not run then either, so nobody's run may pick it."""
    assert not HvfAccelerator(HvfRecorder).probe().ok
    with pytest.raises(NoAcceleratorError, match=r"Hypervisor\.framework"):
        open_accelerator("hvf", executes="arm64")


def test_hvf_vm_of_a_process_that_has_one_is_refused() -> None:
    recorder = HvfRecorder()
    hvf = HvfAccelerator(lambda: recorder)
    first = hvf.create_vm(VmConfig())
    with pytest.raises(BackendError, match=r"hv_vm_create failed: EBUSY .*HV_BUSY") as raised:
        hvf.create_vm(VmConfig())
    assert raised.value.operation == "hv_vm_create"
    first.close()
    hvf.create_vm(VmConfig()).close()


def test_hvf_vm_without_the_entitlement_says_what_to_do() -> None:
    class Denied(HvfRecorder):
        def hv_vm_create(self, config: int) -> int:
            return 0xFAE94007 - (1 << 32)  # as ctypes gives an int that is negative in C

    with pytest.raises(BackendError, match=r"EPERM .*HV_DENIED; .*entitlement com\.apple\.security\.hypervisor"):
        HvfAccelerator(Denied).create_vm(VmConfig())


def test_hvf_vm_that_cannot_count_vcpus_is_destroyed_again() -> None:
    class Counts(HvfRecorder):
        def hv_vm_get_max_vcpu_count(self) -> tuple[int, int]:
            return 0x1234, 0

    recorder = Counts()
    with pytest.raises(BackendError, match=r"hv_vm_get_max_vcpu_count failed: EIO .*hv_return_t 0x1234"):
        HvfAccelerator(lambda: recorder).create_vm(VmConfig())
    assert [call.function for call in recorder.calls] == ["hv_vm_create", "hv_vm_destroy"]


@pytest.mark.parametrize("config", [{"irqchip": True}, {"pit": True}])
def test_hvf_vm_with_interrupt_controllers_is_refused_and_destroyed(config: dict[str, bool]) -> None:
    recorder = HvfRecorder()
    accelerator = OpenAccelerator(HvfAccelerator(lambda: recorder))
    with accelerator, pytest.raises(CapabilityError, match="accelerator 'hvf' has no inter"):
        accelerator.create_vm(**config)
    assert [call.function for call in recorder.calls] == ["hv_vm_create", "hv_vm_get_max_vcpu_count", "hv_vm_destroy"]


def test_hvf_vm_claims_read_only_memory_and_nothing_else(rig) -> None:
    assert rig.vm.backend.capabilities == {Capability.READONLY_MEMORY}
    assert rig.vm.backend.page_size == 16 << 10


@pytest.mark.parametrize("hold", ["kick-all", "region-list"])
def test_hvf_vm_with_a_hold_that_it_has_not_is_refused_and_destroyed(hold: str, open_rig) -> None:
    with pytest.raises(CapabilityError, match=f"hold={hold}"):
        open_rig(hold=hold)
