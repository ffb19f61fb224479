"""A guest on real KVM by bare requests, and a free signal: for tests of what lies under the classes."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from accel_kvm import abi, kick
from accel_kvm.ioctl import ioctl

GPA = 0x1000
COUNTER = 0xFF0

#: 16-bit code, run at 0x1000. `count` is `1: incw (0x1ff0); jmp 1b`: the word is `RawGuest.counter`.
CODE = {"count": bytes.fromhex("ff06f01f ebfa"), "halt": b"\xf4"}


class RawGuest:
    """One page of memory and one vCPU in real mode, about to execute `code`."""

    def __init__(self, code: bytes) -> None:
        self.system_fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self.vm_fd = ioctl(self.system_fd, abi.KVM_CREATE_VM, 0, "KVM_CREATE_VM")
        ioctl(self.vm_fd, abi.KVM_SET_TSS_ADDR, 0xFFFB_D000, "KVM_SET_TSS_ADDR")
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.memory[: len(code)] = code
        self._memory_export = ctypes.c_char.from_buffer(self.memory)
        self.hva = ctypes.addressof(self._memory_export)
        region = abi.KvmUserspaceMemoryRegion(0, 0, GPA, mmap.PAGESIZE, self.hva)
        ioctl(self.vm_fd, abi.KVM_SET_USER_MEMORY_REGION, region, "KVM_SET_USER_MEMORY_REGION")
        self.vcpu_fd = ioctl(self.vm_fd, abi.KVM_CREATE_VCPU, 0, "KVM_CREATE_VCPU")
        size = ioctl(self.system_fd, abi.KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE")
        self._page = mmap.mmap(self.vcpu_fd, size)
        self.run = abi.KvmRun.from_buffer(self._page)
        self._enter_at(GPA)

    def _enter_at(self, rip: int) -> None:
        sregs = abi.KvmSregs()
        ioctl(self.vcpu_fd, abi.KVM_GET_SREGS, sregs, "KVM_GET_SREGS")
        sregs.cs.base = sregs.cs.selector = 0
        ioctl(self.vcpu_fd, abi.KVM_SET_SREGS, sregs, "KVM_SET_SREGS")
        ioctl(self.vcpu_fd, abi.KVM_SET_REGS, abi.KvmRegs(rip=rip, rflags=2), "KVM_SET_REGS")

    @property
    def counter(self) -> int:
        return int.from_bytes(self.memory[COUNTER : COUNTER + 2], "little")

    def regs(self) -> abi.KvmRegs:
        regs = abi.KvmRegs()
        ioctl(self.vcpu_fd, abi.KVM_GET_REGS, regs, "KVM_GET_REGS")
        return regs

    def close(self) -> None:
        for fd in (self.vcpu_fd, self.vm_fd, self.system_fd):
            os.close(fd)


@pytest.fixture
def raw_guest() -> Iterator[Callable[[str], RawGuest]]:
    """Make guests that execute one of `CODE`; they are closed when the test ends."""
    guests: list[RawGuest] = []

    def make(code: str) -> RawGuest:
        guests.append(RawGuest(CODE[code]))
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


@pytest.fixture(
    params=[signal.SIGURG, signal.SIGUSR2, signal.SIGRTMIN + 7], ids=["SIGURG", "SIGUSR2", "SIGRTMIN+7"]
)
def kick_signal(request: pytest.FixtureRequest) -> Iterator[int]:
    """A signal without a handler; what the kernel had for it before is put back afterwards."""
    number = int(request.param)
    before = kick._Sigaction()
    assert kick._sigaction(number, None, before) == 0
    # By way of SIG_IGN, which drops what is pending: a joined thread may still be on its way out with a kick
    # to be delivered, and the default action would end the process.
    signal.signal(number, signal.SIG_IGN)
    signal.signal(number, signal.SIG_DFL)
    yield number
    signal.signal(number, signal.SIG_IGN)
    assert kick._sigaction(number, before, None) == 0
