"""vCPUs that never run: created and destroyed on their own thread, kicked by hv_vcpus_exit, held by the blocker."""

from __future__ import annotations

import threading

import pytest

from accel.errors import BackendError, CapabilityError, InhibitTimeoutError, UsageError
from accel.memory.region import MemoryRegion
from accel_hvf_stub.api import HvReturn
from accel_hvf_stub.recorder import MAX_VCPUS

PAGE = 16 << 10


def functions(rig) -> list[str]:
    return [call.function for call in rig.recorder.take()]


def hvf_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hvf-vcpu")]


def test_hvf_vcpu_run_is_refused_and_names_the_next_step(rig) -> None:
    vcpu = rig.vm.create_vcpu(0)
    with pytest.raises(CapabilityError, match=r"hvf is a stub: .* vCPU 0 does not run; docs/how-to/bring-up-hvf\.md"):
        vcpu.run()
    assert "hv_vcpu_run" not in functions(rig)


def test_hvf_vcpus_are_created_and_destroyed_by_threads_of_their_own_in_the_right_order(rig) -> None:
    for index in range(3):
        rig.vm.create_vcpu(index)
    assert len(hvf_threads()) == 3
    rig.vm.close()
    assert functions(rig) == [
        "hv_vm_create",
        "hv_vm_get_max_vcpu_count",
        *["hv_vcpu_create"] * 3,
        *["hv_vcpu_destroy"] * 3,
        "hv_vm_destroy",
    ]
    assert rig.recorder.illegal == []
    assert hvf_threads() == []


def test_hvf_vcpu_closed_by_another_thread_is_destroyed_by_its_own(rig) -> None:
    vcpu = rig.vm.create_vcpu(0)
    closer = threading.Thread(target=vcpu.close)
    closer.start()
    closer.join()
    assert rig.recorder.illegal == []
    assert hvf_threads() == []


def test_hvf_vcpu_that_is_not_created_leaves_no_thread(rig) -> None:
    rig.recorder.hv_vcpu_create = lambda config: (HvReturn.HV_NO_RESOURCES, 0, 0)
    with pytest.raises(BackendError, match=r"hv_vcpu_create failed: ENOMEM .*HV_NO_RESOURCES; vCPU 0"):
        rig.vm.create_vcpu(0)
    assert hvf_threads() == []


def test_hvf_vm_has_as_many_vcpus_as_the_framework_says(rig) -> None:
    rig.vm.create_vcpu(MAX_VCPUS - 1)
    with pytest.raises(UsageError, match=f"not in 0 to {MAX_VCPUS - 1}"):
        rig.vm.create_vcpu(MAX_VCPUS)


def test_hvf_kick_is_an_exit_of_that_vcpu_from_any_thread(rig) -> None:
    vcpus = [rig.vm.create_vcpu(index) for index in range(2)]
    rig.recorder.take()
    kicker = threading.Thread(target=vcpus[1].kick)
    kicker.start()
    kicker.join()
    (call,) = rig.recorder.take()
    assert (call.function, call.arguments["vcpus"], call.code) == ("hv_vcpus_exit", (1,), 0)


def test_hvf_kick_of_a_vcpu_that_the_framework_does_not_know_is_an_error(rig) -> None:
    vcpu = rig.vm.create_vcpu(0)
    rig.recorder.hv_vcpus_exit = lambda vcpus: HvReturn.HV_BAD_ARGUMENT
    with pytest.raises(BackendError, match=r"hv_vcpus_exit failed: EINVAL .*HV_BAD_ARGUMENT; vCPU 0"):
        vcpu.kick()
    del rig.recorder.hv_vcpus_exit


def overlapping_move(rig, region: MemoryRegion) -> None:
    """Make a change that needs a hold."""
    with rig.vm.transaction():
        rig.vm.memory.remove(region)
        rig.vm.memory.add(region, at=PAGE)


def with_ram(rig) -> MemoryRegion:
    region = MemoryRegion.ram("ram", 2 * PAGE)
    rig.vm.memory.add(region, at=0)
    return region


def test_hvf_hold_over_vcpus_that_never_ran_kicks_nobody(rig) -> None:
    region = with_ram(rig)
    for index in range(2):
        rig.vm.create_vcpu(index)
    rig.recorder.take()
    overlapping_move(rig, region)
    assert functions(rig) == ["hv_vm_unmap", "hv_vm_map"]
    assert rig.vm.transactions.unheld == rig.vm.transactions.commits - 1


class InGuest:
    """A thread inside a vCPU's gate, as it is while the vCPU runs, until the recorder is asked for its exit."""

    def __init__(self, rig, vcpu, *, leaves: bool = True) -> None:
        self._leave, self._inside = threading.Event(), threading.Event()
        self._vcpu = vcpu
        real = rig.recorder.hv_vcpus_exit

        def exit_and_leave(vcpus: list[int]) -> int:
            code: int = real(vcpus)
            if leaves:
                self._leave.set()
            return code

        rig.recorder.hv_vcpus_exit = exit_and_leave
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self._vcpu.gate.enter()
        self._inside.set()
        self._leave.wait()
        self._vcpu.gate.leave()

    def __enter__(self) -> None:
        self._thread.start()
        self._inside.wait()

    def __exit__(self, *error: object) -> None:
        self._leave.set()
        self._thread.join()


def test_hvf_hold_brings_a_vcpu_out_by_an_exit_before_the_first_memory_call(rig) -> None:
    region = with_ram(rig)
    vcpus = [rig.vm.create_vcpu(index) for index in range(2)]
    rig.recorder.take()
    with InGuest(rig, vcpus[1]):
        overlapping_move(rig, region)
    calls = rig.recorder.take()
    assert [call.function for call in calls] == ["hv_vcpus_exit", "hv_vm_unmap", "hv_vm_map"]
    assert calls[0].arguments["vcpus"] == (1,)


def test_hvf_change_without_a_hold_kicks_nobody_in_the_guest(rig) -> None:
    region = with_ram(rig)
    vcpu = rig.vm.create_vcpu(0)
    rig.recorder.take()
    with InGuest(rig, vcpu):
        region.set_readonly(True)
    assert functions(rig) == ["hv_vm_protect"]


def test_hvf_whole_map_transaction_holds_for_a_change_that_needs_none(rig) -> None:
    region = with_ram(rig)
    vcpu = rig.vm.create_vcpu(0)
    rig.recorder.take()
    with InGuest(rig, vcpu), rig.vm.transaction(atomic="map"):
        region.set_readonly(True)
    assert functions(rig) == ["hv_vcpus_exit", "hv_vm_protect"]


def test_hvf_vcpu_that_does_not_come_out_refuses_the_change_before_any_memory_call(open_rig) -> None:
    rig = open_rig(inhibit_timeout_ms=20)
    region = with_ram(rig)
    vcpu = rig.vm.create_vcpu(0)
    rig.recorder.take()
    with InGuest(rig, vcpu, leaves=False), pytest.raises(InhibitTimeoutError, match="vCPU 0"):
        overlapping_move(rig, region)
    assert functions(rig) == ["hv_vcpus_exit"]
    assert [one.ipa for one in rig.recorder.mappings] == [0]


def test_hvf_unsafe_hold_kicks_nobody(open_rig) -> None:
    rig = open_rig(hold="unsafe")
    region = with_ram(rig)
    vcpu = rig.vm.create_vcpu(0)
    rig.recorder.take()
    with InGuest(rig, vcpu):
        overlapping_move(rig, region)
    assert functions(rig) == ["hv_vm_unmap", "hv_vm_map"]
