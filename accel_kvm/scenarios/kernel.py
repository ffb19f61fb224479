"""What stands in for KVM below libc's ioctl while interleavings are explored: slots, vCPUs, kicks, nothing else.

Layer: above the plugin, whose modules it puts itself under; for the copies in an explorer's world only. As KVM does it,

- KVM_RUN completes the last access, then looks at ``immediate_exit`` once, then goes on until the guest comes out or a
  signal is pending;
- a signal that comes while the thread is in user space is dealt with there, so KVM_RUN begins without one;
- a slot call replaces the table in one step, and each access of a guest looks at the table in one step;
- an access that no slot serves exits, and what is in the shared page when KVM_RUN is called again is what it read.

errno is each thread's own. Source: KVM api.rst; KVM_RUN in arch/x86/kvm/x86.c, slots in virt/kvm/kvm_main.c.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from types import ModuleType

from attrs import frozen

from accel.backend import VcpuBackend
from accel.program import Halt, Load, Op, Out
from accel_kvm import abi, system, vcpu, vm
from accel_kvm import ioctl as calls
from accel_kvm.vcpu import KvmVcpu

_PAGE = mmap.PAGESIZE
_SYSTEM_FD, _VM_FD, _VCPU_FD = 1000, 1001, 1100
_IMMEDIATE_EXIT = abi.KvmRun.immediate_exit.offset
_REASON_WORD = abi.KvmRun.exit_reason.offset // 4
_EXTENSIONS = {
    abi.KVM_CAP_USER_MEMORY: 1,
    abi.KVM_CAP_READONLY_MEM: 1,
    abi.KVM_CAP_NR_MEMSLOTS: 509,
    abi.KVM_CAP_MAX_VCPUS: 8,
}
#: Threads of an exploration have small numbers.
_MOST_THREADS = 16


class _Errno(threading.local):
    """A thread's errno."""

    number = 0


@frozen
class Memslot:
    """A slot as the kernel has it: its number, and the rest as in `KvmUserspaceMemoryRegion`."""

    number: int
    flags: int
    gpa: int
    size: int
    hva: int

    def serves(self, address: int) -> bool:
        """Return whether it maps this guest-physical address."""
        return self.gpa <= address < self.gpa + self.size


class Guest:
    """What the kernel knows of a vCPU, and what its guest does.

    Attributes:
        vcpu: The plugin's side, for the page that both share.
        ops: What the guest does: `Load` (one byte), `Out`, `Halt`; behind the last it spins.
        seen: What its loads read.
        faults: Where its loads found no slot.
    """

    def __init__(self) -> None:
        self.vcpu: KvmVcpu | None = None
        self.ops: tuple[Op, ...] = ()
        self.seen: list[int] = []
        self.faults: list[int] = []
        self._place = 0
        # Whether the last exit was of a load, which is to be completed.
        self._loading = False

    def run(self, kernel: Kernel) -> int:
        """Do what KVM_RUN does; return 0 or an errno."""
        page = self.vcpu
        assert page is not None
        signal = kernel.signals[threading.get_native_id()]
        signal.clear()
        if self._loading:
            self._loading = False
            self.seen.append(page.record[1] & 0xFF)
        if page._bytes[_IMMEDIATE_EXIT]:
            return errno.EINTR
        while True:
            if self._place == len(self.ops):
                signal.wait()
            if signal.is_set():
                return errno.EINTR
            op = self.ops[self._place]
            self._place += 1
            reason = self._step(kernel, page, op)
            if reason:
                page._words[_REASON_WORD] = reason
                return 0

    def _step(self, kernel: Kernel, page: KvmVcpu, op: Op) -> int:
        """Execute `op`; return the reason for which the guest comes out, or 0."""
        if isinstance(op, Load):
            value = kernel.load(op.address)
            if value is not None:
                self.seen.append(value)
                return 0
            self._loading = True
            self.faults.append(op.address)
            page.record[0], page.record[1], page.record[2] = op.address, 0, 1
            return abi.KVM_EXIT_MMIO
        if isinstance(op, Out):
            page.record[0] = abi.KVM_EXIT_IO_OUT | 1 << 8 | op.port << 16 | 1 << 32
            assert isinstance(op.value, int)
            page.io_data[0] = op.value & 0xFF
            return abi.KVM_EXIT_IO
        assert isinstance(op, Halt)
        return abi.KVM_EXIT_HLT


class Kernel:
    """KVM with one VM.

    Attributes:
        slots: The table; immutable, replaced.
        guests: The vCPUs, in order of creation.
        signals: By thread, whether a kick is pending.
        failing: How many slot calls from now on go well before one fails; None if none does.
        missing: Addresses whose page is not there: an access waits for it in the kernel, and no kick frees it.
    """

    def __init__(self) -> None:
        self.slots: tuple[Memslot, ...] = ()
        self.guests: list[Guest] = []
        self.signals = tuple(threading.Event() for _ in range(_MOST_THREADS))
        self.failing: int | None = None
        self.missing: dict[int, threading.Event] = {}
        self._errno = _Errno()
        self._install()

    def guest(self, vcpu: VcpuBackend, *ops: Op) -> Guest:
        """Give the vCPU, which is of this kernel, a guest that does `ops`."""
        assert isinstance(vcpu, KvmVcpu)
        guest = self.guests[vcpu.fd - _VCPU_FD]
        guest.vcpu, guest.ops = vcpu, ops
        return guest

    # what guests do

    def load(self, address: int) -> int | None:
        """Return the byte at a guest-physical address, or None if no slot serves it."""
        if address in self.missing:
            self.missing[address].wait()
        for slot in self.slots:
            if slot.serves(address):
                return ctypes.string_at(slot.hva + address - slot.gpa, 1)[0]
        return None

    # what the plugin calls

    def ioctl(self, fd: int, request: int, argument: int) -> int:
        """Stand in for libc's ioctl."""
        result = self._call(fd, request, argument)
        if result < 0:
            self._errno.number = -result
            return -1
        return result

    def _call(self, fd: int, request: int, argument: int) -> int:
        """Return the result, or an errno as a negative number."""
        if request == abi.KVM_RUN:
            return -self.guests[fd - _VCPU_FD].run(self)
        if request == abi.KVM_SET_USER_MEMORY_REGION:
            return -self._set_region(abi.KvmUserspaceMemoryRegion.from_address(argument))
        if request == abi.KVM_CHECK_EXTENSION:
            return _EXTENSIONS.get(argument, 0) if fd < _VCPU_FD else -errno.ENOTTY
        if request == abi.KVM_CREATE_VCPU:
            self.guests.append(Guest())
            return _VCPU_FD + argument
        if request == abi.KVM_GET_DIRTY_LOG:
            return -errno.ENOENT
        answers = {
            abi.KVM_GET_API_VERSION: abi.KVM_API_VERSION,
            abi.KVM_CREATE_VM: _VM_FD,
            abi.KVM_GET_VCPU_MMAP_SIZE: 3 * _PAGE,
        }
        return answers.get(request, 0)

    def _set_region(self, region: abi.KvmUserspaceMemoryRegion) -> int:
        """Do what KVM_SET_USER_MEMORY_REGION does; return 0 or an errno."""
        if self.failing is not None:
            self.failing -= 1
            if self.failing < 0:
                self.failing = None
                return errno.ENOMEM
        new = Memslot(region.slot, region.flags, region.guest_phys_addr, region.memory_size, region.userspace_addr)
        slots = self.slots
        old = next((one for one in slots if one.number == new.number), None)
        others = tuple(one for one in slots if one.number != new.number)
        if (new.gpa | new.size | new.hva) % _PAGE or (old is None and not new.size):
            return errno.EINVAL
        if not new.size:
            self.slots = others
            return 0
        if old is not None and (old.gpa, old.size, old.hva) != (new.gpa, new.size, new.hva):
            return errno.EINVAL
        if any(one.gpa < new.gpa + new.size and new.gpa < one.gpa + one.size for one in others):
            return errno.EEXIST
        self.slots = (*others, new)
        return 0

    def kick_thread(self, native_tid: int, signal_number: int) -> None:
        """Stand in for tgkill."""
        self.signals[native_tid].set()

    def _install(self) -> None:
        """Put this under the plugin's modules."""
        stand_in = ModuleType("ctypes")
        vars(stand_in).update(vars(ctypes), get_errno=lambda: self._errno.number)
        files = ModuleType("os")
        vars(files).update(vars(os), open=lambda path, flags: _SYSTEM_FD, close=lambda fd: None)
        vars(calls).update(raw_ioctl=self.ioctl, ctypes=stand_in)
        vars(system).update(os=files)
        vars(vm).update(os=files, install=lambda number: None)
        vars(vcpu).update(
            _enter=self.ioctl,
            ctypes=stand_in,
            os=files,
            map_shared=lambda fd, size, page_number, operation: mmap.mmap(-1, size),
            kick_thread=self.kick_thread,
            unblock=lambda number: None,
        )
