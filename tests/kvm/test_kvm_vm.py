"""KvmVm on real KVM: what it offers, what it refuses, what it leaves behind; its signal, and forks."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys

import pytest

import accel
from accel.backend import VmConfig
from accel.errors import BackendError, CapabilityError, ClosedError, UsageError
from accel_kvm import abi, system
from accel_kvm.ioctl import ioctl
from accel_kvm.vm import KvmVm

pytestmark = pytest.mark.kvm


def open_files() -> set[str]:
    """What this process has open, by number and target; nothing that earlier tests left for the collector."""
    gc.collect()
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{entry} {os.readlink(f'/proc/self/fd/{entry}')}")
        except FileNotFoundError:
            pass  # the descriptor of this very listing
    return found


def kvm_mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum("anon_inode:kvm-vcpu" in line for line in maps)


def test_vm_offers_what_the_kernel_says_of_the_vm(open_vm) -> None:
    backend = open_vm().backend
    asked = {
        accel.Capability.READONLY_MEMORY: abi.KVM_CAP_READONLY_MEM,
        accel.Capability.COALESCED_PIO: abi.KVM_CAP_COALESCED_PIO,
        accel.Capability.COALESCED_MMIO: abi.KVM_CAP_COALESCED_MMIO,
        accel.Capability.IOEVENTFD: abi.KVM_CAP_IOEVENTFD,
        accel.Capability.DIRTY_LOG: abi.KVM_CAP_USER_MEMORY,
        accel.Capability.IRQCHIP: abi.KVM_CAP_IRQCHIP,
        accel.Capability.PIT: abi.KVM_CAP_PIT2,
    }
    for capability, number in asked.items():
        offered = ioctl(backend._fd, abi.KVM_CHECK_EXTENSION, number, "KVM_CHECK_EXTENSION") > 0
        assert (capability in backend.capabilities) == offered
    assert backend.max_vcpus == ioctl(
        backend._fd, abi.KVM_CHECK_EXTENSION, abi.KVM_CAP_MAX_VCPUS, "KVM_CHECK_EXTENSION"
    )
    assert os.uname().release in backend.host()


def test_vm_of_a_device_that_is_no_kvm_leaves_nothing_open(monkeypatch) -> None:
    monkeypatch.setattr(system, "_DEVICE", os.devnull)
    before = open_files()
    with pytest.raises(BackendError, match="KVM_GET_API_VERSION failed: ENOTTY"):
        KvmVm(VmConfig())
    assert open_files() == before


@pytest.mark.parametrize("free", [0, 1, 2])
def test_vcpu_for_which_no_descriptors_are_left_is_refused_with_the_limit_to_raise(open_vm, free) -> None:
    vm = open_vm(dirty_ring_size=4096)
    before = open_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Numbers up to the highest that is open are all taken then, so the limit leaves as many as are to be free.
    highest = max(map(int, os.listdir("/proc/self/fd")))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] <= highest:
        taken.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1 + free, hard))
    try:
        with pytest.raises(BackendError, match=r"EMFILE.*raise RLIMIT_NOFILE"):
            vm.create_vcpu(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in taken:
            os.close(number)
    assert open_files() == before
    if free:
        with pytest.raises(BackendError, match=r"EEXIST.*an attempt before may have made vCPU 0 .*0xfee00000"):
            vm.create_vcpu(0)
    assert vm.create_vcpu(1).read_state().rip == 0xFFF0


def test_vm_refuses_interrupt_lines_that_its_controllers_have_not(open_vm) -> None:
    vm = open_vm(irqchip=True)
    for line in (-1, 24, 1 << 32):
        with pytest.raises(UsageError, match=f"interrupt line {line} is not in 0 to 23"):
            vm.set_irq(line, True)
    for line in (0, 23):
        vm.set_irq(line, True)
        vm.set_irq(line, False)


def test_vm_closed_twice_leaves_nothing_open(boot) -> None:
    before, mapped = open_files(), kvm_mappings()
    guest = boot("e460")  # in $0x60, %al
    guest.vm.create_vcpu(1)
    access = guest.vcpu.run()
    guest.vm.io.add(accel.MemoryRegion.mmio("console", 1, coalesced=True), at=0xE9)
    for _ in range(2):
        guest.vm.close()
        assert (open_files(), kvm_mappings()) == (before, mapped)
    with pytest.raises(ClosedError):
        guest.vcpu.run()
    with pytest.raises(ClosedError):
        guest.vm.create_vcpu(2)
    guest.vcpu.kick()
    with pytest.raises(ValueError, match="released"):
        access.reply(0)


def test_vm_that_cannot_be_created_leaves_nothing_open() -> None:
    before = open_files()
    with pytest.raises(CapabilityError, match=r"interval timer needs its interrupt controllers; create .* irqchip"):
        KvmVm(VmConfig(pit=True))
    assert open_files() == before


def test_vcpu_index_taken_or_too_high_is_refused(open_vm) -> None:
    vm = open_vm()
    limit = vm.backend.max_vcpus
    vm.create_vcpu(limit - 1)
    for index in (limit - 1, limit, -1):
        with pytest.raises(UsageError, match=rf"vCPU index {index} is taken or not in 0 to {limit - 1}"):
            vm.create_vcpu(index)
    assert [vcpu.index for vcpu in vm.vcpus] == [limit - 1]


def test_vcpu_that_the_kernel_refuses_names_call_and_errno_and_leaves_nothing_open(open_vm) -> None:
    vm = open_vm()
    foreign = ioctl(vm.backend._fd, abi.KVM_CREATE_VCPU, 3, "KVM_CREATE_VCPU")
    try:
        before = open_files()
        with pytest.raises(BackendError, match="KVM_CREATE_VCPU failed: EEXIST"):
            vm.create_vcpu(3)
        assert open_files() == before
    finally:
        os.close(foreign)
    assert vm.vcpus == ()


def test_vcpu_that_cannot_be_set_up_leaves_nothing_open(open_vm) -> None:
    vm = open_vm()
    before, mapped = open_files(), kvm_mappings()
    vm.backend._cpuid = abi.cpuid2(257)  # more leaves than KVM takes
    with pytest.raises(BackendError, match="KVM_SET_CPUID2 failed: E2BIG"):
        vm.create_vcpu(0)
    assert (open_files(), kvm_mappings()) == (before, mapped)
    assert vm.vcpus == ()


def test_set_irq_without_irqchip_is_a_capability_error(open_vm) -> None:
    with pytest.raises(CapabilityError, match="create it with irqchip"):
        open_vm().set_irq(4, True)


def test_set_irq_with_irqchip_is_taken_before_and_after_there_are_vcpus(open_vm) -> None:
    vm = open_vm(irqchip=True)
    vm.set_irq(4, True)
    vm.create_vcpu(0)
    vm.set_irq(4, False)
    assert [vcpu.index for vcpu in vm.vcpus] == [0]


# in a process of their own


def run_script(script: str) -> list[str]:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


SPIN = """
import accel, signal, sys, threading

def spin_and_stop(options):
    with accel.Machine.create("kvm", memory="2M", cpus=2, options={"kvm": options}) as machine:
        machine.load(b"\\xeb\\xfe")
        run = machine.start()
        for _ in range(20):
            with machine.transaction(atomic="map"):
                machine.memory.add(accel.MemoryRegion.ram("more", "1M"), at=0x100_0000)
            with machine.transaction(atomic="map"):
                machine.memory.remove(machine.memory.root.children[0])
        machine.pause()
        machine.resume()
        machine.stop()
        print(run.wait().outcome)
"""


def test_kick_signal_of_the_users_choice_works_where_the_program_handles_the_default() -> None:
    script = f"""{SPIN}
seen = []
signal.signal(signal.SIGURG, lambda number, frame: seen.append(number))
spin_and_stop({{"kick_signal": int(signal.SIGUSR2)}})
signal.raise_signal(signal.SIGURG)
print(seen == [signal.SIGURG])
"""
    assert run_script(script) == ["stopped", "True"]


@pytest.mark.parametrize("number", ["signal.SIGUSR2", "signal.SIGURG", "signal.SIGRTMIN + 3"])
def test_kick_signal_ignored_by_the_program_works_all_the_same(number) -> None:
    script = f"""{SPIN}
for one in (signal.SIGURG, signal.SIGUSR2):
    signal.signal(one, signal.SIG_IGN)
spin_and_stop({{"kick_signal": int({number})}})
"""
    assert run_script(script) == ["stopped"]


def test_kick_signal_that_the_program_handles_is_refused_by_name_before_a_vm_exists() -> None:
    script = f"""{SPIN}
import os
signal.signal(signal.SIGURG, lambda number, frame: None)
before = os.listdir("/proc/self/fd")
try:
    spin_and_stop({{}})
except accel.errors.OptionError as error:
    print(error)
print(os.listdir("/proc/self/fd") == before)
"""
    problem, same = run_script(script)
    assert problem.endswith("the program handles SIGURG itself; set kvm.kick_signal to another one")
    assert same == "True"


def test_vcpus_run_in_a_forked_child_fails_and_says_whose_vm_it_is() -> None:
    script = """
import os, sys
import accel

with accel.open_accelerator("kvm") as kvm, kvm.create_vm() as vm:
    ram = accel.MemoryRegion.ram("ram", 0x1000)
    ram.write(0xFF0, b"\\xf4")
    vm.memory.add(ram, at=0xFFFF_F000)
    vcpu = vm.create_vcpu(0)
    child = os.fork()
    if child == 0:
        try:
            vcpu.run()
        except accel.errors.BackendError as error:
            print(error, flush=True)
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print(vcpu.run())
"""
    problem, parent = run_script(script)
    assert problem.startswith("KVM_RUN failed: EIO")
    assert "create it after the fork" in problem
    assert parent == "Halt()"
