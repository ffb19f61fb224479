"""KvmVcpu: the file descriptor of a vCPU and the page it shares with the kernel.

Source: KVM api.rst, section 4, "vcpu ioctls", and section 5, "The kvm_run structure". KVM_RUN is called
through libc, never through `fcntl.ioctl` (see `accel_kvm.ioctl`), and the kick is immediate_exit plus a signal
(see `accel_kvm.kick`).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable

from accel.arch.x86 import X86State
from accel.backend import VcpuBackend
from accel.errors import BackendError
from accel.exits import ExitKind
from accel_kvm import abi
from accel_kvm.ioctl import ioctl, map_shared, raise_errno
from accel_kvm.kick import kick_thread, unblock
from accel_kvm.registers import fill_special_registers, general_registers, state_from

_PAGE = mmap.PAGESIZE
#: On x86 the data of port accesses is the second page that a vCPU shares (KVM_PIO_PAGE_OFFSET).
_IO_DATA_OFFSET = _PAGE
_REASON_WORD = abi.KvmRun.exit_reason.offset // 4
_CR8_WORD = abi.KvmRun.cr8.offset // 4
_MOST_CR8 = 15
_IMMEDIATE_EXIT = abi.KvmRun.immediate_exit.offset
_UNION = abi.KvmRun.exit_union.offset
# KVM_RUN's own function object, without argtypes: converting three arguments to declared types takes longer than an
# ioctl that does nothing. All three are numbers that fit an int, which ctypes passes as they are and sign-extended.
_enter = ctypes.CDLL(None, use_errno=True).ioctl
_INTERRUPTED = int(ExitKind.INTERRUPTED)
_OTHER = int(ExitKind.OTHER)
_NO_MEMORY = -1  # in place of an exit kind, for `describe`


def _kinds() -> list[int]:
    """Return the ExitKind for each exit reason."""
    kinds = [_OTHER] * 256
    kinds[abi.KVM_EXIT_IO] = int(ExitKind.IO)
    kinds[abi.KVM_EXIT_MMIO] = int(ExitKind.MMIO)
    kinds[abi.KVM_EXIT_HLT] = int(ExitKind.HALT)
    kinds[abi.KVM_EXIT_SHUTDOWN] = int(ExitKind.SHUTDOWN)
    kinds[abi.KVM_EXIT_INTR] = _INTERRUPTED
    # The guest lowered CR8, for which VMX and SVM leave it without interrupt controllers. Nothing is to be done.
    kinds[abi.KVM_EXIT_SET_TPR] = _INTERRUPTED
    kinds[abi.KVM_EXIT_FAIL_ENTRY] = int(ExitKind.FAIL_ENTRY)
    kinds[abi.KVM_EXIT_INTERNAL_ERROR] = int(ExitKind.INTERNAL_ERROR)
    kinds[abi.KVM_EXIT_DEBUG] = int(ExitKind.DEBUG)
    kinds[abi.KVM_EXIT_DIRTY_RING_FULL] = int(ExitKind.DIRTY_RING_FULL)
    return kinds


_KINDS = tuple(_kinds())


class KvmVcpu(VcpuBackend):
    """One vCPU of KVM.

    Attributes:
        record: The exit's union inside the shared page, as 64-bit words.
        io_data: The page with the data of port accesses.
        run: Enters the guest (KVM_RUN); see `VcpuBackend.run`.
        on_close: Called first when it is closed.

    Raises:
        BackendError: The page could not be mapped.
    """

    def __init__(self, fd: int, mmap_size: int, kick_signal: int) -> None:
        self.fd = fd
        self.on_close: Callable[[], None] = lambda: None
        self._kick_signal = kick_signal
        # The kernel writes into this mapping during KVM_RUN only; the views below keep it mapped.
        self._page = map_shared(fd, mmap_size, 0, "mmap of a vCPU")
        self._bytes = memoryview(self._page)
        self._words = self._bytes.cast("I")
        self.record = self._bytes[_UNION : _UNION + 32].cast("Q")
        self.io_data = self._bytes[_IO_DATA_OFFSET : _IO_DATA_OFFSET + _PAGE]
        # What the page said at the last exit that is neither port nor memory, for `describe`.
        self._details = abi.KvmRun()
        self._last = _OTHER
        # Whether immediate_exit is set for a kick and not by `finish`. Set by whoever kicks, before that flag.
        self._kicked = False
        self.run: Callable[[], int] = self._make_run()  # type: ignore[method-assign]

    def run(self) -> int:  # pragma: no cover - replaced in __init__ by a closure without attribute look-ups
        """Enter the guest; see `VcpuBackend.run`."""
        raise AssertionError

    def kick(self, thread_id: int) -> None:
        """Set immediate_exit, then signal the thread: catches it before, in and after KVM_RUN."""
        self._kicked = True
        try:
            self._bytes[_IMMEDIATE_EXIT] = 1
        except ValueError:
            return  # closed, maybe just now: the page is gone, and nobody runs it
        if thread_id:
            kick_thread(thread_id, self._kick_signal)

    def prepare_thread(self) -> None:
        """Let kicks reach the calling thread, whatever signal mask it inherited."""
        unblock(self._kick_signal)

    def finish(self) -> int:
        """Let KVM complete the last exit's access; see `VcpuBackend.finish`. A kick meanwhile is for the next run."""
        self._bytes[_IMMEDIATE_EXIT] = 1
        try:
            ioctl(self.fd, abi.KVM_RUN, 0, "KVM_RUN")
        except BackendError as error:
            if error.errno not in (errno.EINTR, errno.EAGAIN):
                raise
            return _INTERRUPTED
        finally:
            # Taken back before looking: `kick` marks itself before it sets the flag, so one of the two sets it again.
            self._bytes[_IMMEDIATE_EXIT] = 0
            if self._kicked:
                self._bytes[_IMMEDIATE_EXIT] = 1
        return self._rare(_KINDS[self._words[_REASON_WORD] & 0xFF])

    def read_state(self) -> X86State:
        """Read all registers (KVM_GET_REGS, KVM_GET_SREGS)."""
        regs, sregs = abi.KvmRegs(), abi.KvmSregs()
        ioctl(self.fd, abi.KVM_GET_REGS, regs, "KVM_GET_REGS")
        ioctl(self.fd, abi.KVM_GET_SREGS, sregs, "KVM_GET_SREGS")
        return state_from(regs, sregs)

    def write_state(self, state: X86State) -> None:
        """Set all registers (KVM_SET_SREGS, KVM_SET_REGS); what is left of the last exit's access is dropped.

        A vCPU that halted goes on from them. One that waits for INIT and SIPI goes on waiting.

        Raises:
            BackendError: KVM refuses the values; the registers are as they were.
        """
        if not 0 <= state.cr8 <= _MOST_CR8:
            # KVM_SET_SREGS passes over it, and every KVM_RUN from then on would fail.
            raise_errno("KVM_SET_SREGS", errno.EINVAL, f"cr8 {state.cr8:#x}; must be 0 to {_MOST_CR8}")
        # Else KVM would complete it over the new registers when it next enters.
        while self.finish() != _INTERRUPTED:
            pass
        sregs = abi.KvmSregs()
        ioctl(self.fd, abi.KVM_GET_SREGS, sregs, "KVM_GET_SREGS")
        fill_special_registers(sregs, state)
        ioctl(self.fd, abi.KVM_SET_SREGS, sregs, "KVM_SET_SREGS")
        ioctl(self.fd, abi.KVM_SET_REGS, general_registers(state), "KVM_SET_REGS")
        # Without interrupt controllers KVM_RUN takes CR8 from the page, where each exit leaves the guest's.
        self._words[_CR8_WORD] = state.cr8
        # With interrupt controllers a halt lasts until an interrupt, whatever the registers are.
        activity = abi.KvmMpState()
        ioctl(self.fd, abi.KVM_GET_MP_STATE, activity, "KVM_GET_MP_STATE")
        if activity.mp_state == abi.KVM_MP_STATE_HALTED:
            activity.mp_state = abi.KVM_MP_STATE_RUNNABLE
            ioctl(self.fd, abi.KVM_SET_MP_STATE, activity, "KVM_SET_MP_STATE")

    def set_cpuid(self, cpuid: ctypes.Structure) -> None:
        """Set what the guest's CPUID instruction says (KVM_SET_CPUID2)."""
        ioctl(self.fd, abi.KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2")

    def describe(self) -> str:
        """Return the last exit's own words, and where the guest stands."""
        text = f"exit reason {self._words[_REASON_WORD]}"
        if self._last == ExitKind.INTERNAL_ERROR:
            text = f"KVM internal error, suberror {self._details.internal.suberror}"
            failure = self._details.emulation_failure
            if (
                failure.suberror == abi.KVM_INTERNAL_ERROR_EMULATION
                and failure.ndata >= 3
                and failure.flags & abi.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
            ):
                code = bytes(failure.insn_bytes[: min(15, failure.insn_size)]).hex(" ")
                text += f" (cannot emulate: {code})"
        elif self._last == _NO_MEMORY:
            text = "KVM cannot enter a VM that never had memory (ENOSPC)"
        elif self._last == ExitKind.FAIL_ENTRY:
            text = f"hardware entry failure {self._details.fail_entry.hardware_entry_failure_reason:#x}"
        elif self._last == ExitKind.SHUTDOWN:
            text = "triple fault"
        state = self.read_state()
        return f"{text} at RIP {state.rip:#x}, CS base {state.cs.base:#x}, CR0 {state.cr0:#x}"

    def fault_address(self) -> int | None:
        """Return the guest-physical address of the next instruction (KVM_TRANSLATE)."""
        state = self.read_state()
        linear = state.rip if state.cs.long else (state.cs.base + state.rip) & 0xFFFF_FFFF
        translation = abi.KvmTranslation(linear_address=linear)
        ioctl(self.fd, abi.KVM_TRANSLATE, translation, "KVM_TRANSLATE")
        return int(translation.physical_address) if translation.valid else None

    def close(self) -> None:
        """Unmap the page and close the file descriptor."""
        try:
            self.on_close()
        finally:
            self._release()

    def _release(self) -> None:
        del self.run
        for view in (self.record, self.io_data, self._words, self._bytes):
            view.release()
        try:
            self._page.close()
        except BufferError:
            # Somebody still holds a view made from one of these; the mapping goes with it.
            pass
        os.close(self.fd)

    def _make_run(self) -> Callable[[], int]:
        """Return `run` as a closure: this is the path of every guest exit."""
        fd, words, kinds = self.fd, self._words, _KINDS
        call, request, reason_word, rare = _enter, abi.KVM_RUN, _REASON_WORD, int(ExitKind.SHUTDOWN)

        def run() -> int:
            if call(fd, request, 0) == 0:
                kind = kinds[words[reason_word] & 0xFF]
                return kind if kind < rare else self._rare(kind)
            return self._failed(ctypes.get_errno())

        return run

    def _rare(self, kind: int) -> int:
        self._last = kind
        if kind == _INTERRUPTED:
            self._take_back_kick()
            return kind
        if kind < ExitKind.SHUTDOWN:
            return kind
        self._details = abi.KvmRun.from_buffer_copy(self._page)
        # Of the word with size and direction of an access, KVM writes five bytes; these exits leave more in it.
        self.record[2] = 0
        if kind == _OTHER:
            self.record[0] = self._words[_REASON_WORD]
        return kind

    def _failed(self, number: int) -> int:
        if number == errno.EINTR:
            self._take_back_kick()
            return _INTERRUPTED
        if number == errno.EAGAIN:
            # A vCPU that waits for INIT and SIPI; nothing happened, so enter again.
            return _INTERRUPTED
        if number == errno.ENOSPC:
            # A VM that never had a slot has no page for page tables either, where KVM shadows the guest's.
            self._last = _NO_MEMORY
            return int(ExitKind.INTERNAL_ERROR)
        return raise_errno("KVM_RUN", number)

    def _take_back_kick(self) -> None:
        # Only after EINTR, and before the caller looks at what it was kicked for.
        self._kicked = False
        self._bytes[_IMMEDIATE_EXIT] = 0
