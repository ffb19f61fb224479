"""One Unicorn engine: its hooks, its memory map, its registers. The only module that imports `unicorn`.

What is used of it: `unicorn.Uc` where that does, and the library's own functions where Python would be in the way of
native hooks or of contexts. Memory is mapped where the host has it, nothing is copied. What no slot covers is not
mapped at all at first; the first access to it maps the pages around it as **device pages**, which stop at each access.

Pages are mapped and unmapped while the engine stands, also in the middle of an instruction (`accel_unicorn.access`
says what that asks for); the VM sees to it that it does stand.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import unicorn
from sortedcontainers import SortedDict
from unicorn import unicorn_const as uc
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import Uc, uclib
from unicorn.unicorn_py3.unicorn import UcError as UcError

from accel.errors import BackendError
from accel_unicorn.switch import EPOCH, Switch, routines

#: Bytes for translated code; once they are full, all of it is translated anew. Unicorn takes a GiB unless told, and a
#: guest that changes its own code fills whatever it gets.
_CODE_BUFFER = 64 << 20
#: What else an engine allocates when it is made, and a little more.
_REST = 16 << 20
#: Bytes that one first access to unassigned memory makes device pages of, at most.
_CHUNK = 2 << 20
#: Most chunks at a time; the guest may touch as much as it likes, the list must not grow with it.
_MAX_CHUNKS = 64
#: The error of `Engine.map` where the engine stands in the middle of a device read that needs its page still.
BUSY = uc.UC_ERR_RESOURCE
_ALL_MEMORY = (1, 0)  # a hook whose first address is above its last is for all
_READ_EXECUTE = uc.UC_PROT_READ | uc.UC_PROT_EXEC

_emu_start = ctypes.cast(uclib.uc_emu_start, ctypes.c_void_p).value


def version() -> str:
    """Return Unicorn's version."""
    return str(vars(unicorn)["__version__"])


def error_text(error: int) -> str:
    """Return what Unicorn says about an error number."""
    return str(_failure(error))


class Engine:
    """An engine that knows no Python: its hooks switch stacks.

    Raises:
        BackendError: There is no memory for it, or none that can be executed.

    Attributes:
        switch: How it is entered.
        epoch: Goes up with each change of its memory map.
        physical_addresses: Gives a block in which addresses lead to themselves, whatever the guest's paging is.
        flags_within: Gives RFLAGS in the middle of an instruction, where Unicorn's own call may be wrong.
        reading: An address at which the engine is in the middle of a device read, so that the page has to stay.
    """

    def __init__(self) -> None:
        _check_memory()
        try:
            self._open()
        except (OSError, UcError) as error:
            raise BackendError("Unicorn", getattr(error, "errno", None) or errno.ENOMEM, str(error)) from error

    def _open(self) -> None:
        self._uc: Any = cast(Any, Uc)(uc.UC_ARCH_X86, uc.UC_MODE_64)
        # Unicorn's binding closes what is left when the process ends, also an engine that a thread is still in.
        vars(self._uc)["_Uc__finalizer"].atexit = False
        self._uc.ctl_set_tcg_buffer_size(_CODE_BUFFER)
        self._handle = self._uc._uch
        # Start → end of device pages, and what their reads are given: the control block's address and their own.
        self._chunks = SortedDict()
        self._pages: dict[int, ctypes.Array[ctypes.c_uint64]] = {}
        self.epoch = 0
        self._kept_flags = 2
        self.physical_addresses: Callable[[], AbstractContextManager[None]] | None = None
        self.flags_within: Callable[[], int] | None = None
        self.reading: int | None = None
        # It ends at no address, which it would else look up at each end with whatever page tables the guest has.
        self._uc.ctl_exits_enabled(True)
        self.switch = Switch(self._handle.value, _emu_start or 0)
        self._hooks()

    def _hooks(self) -> None:
        self._hook(uc.UC_HOOK_CODE, "code")
        self._hook(uc.UC_HOOK_INTR, "exception")
        self._hook(uc.UC_HOOK_INSN, "in", x86.UC_X86_INS_IN)
        self._hook(uc.UC_HOOK_INSN, "out", x86.UC_X86_INS_OUT)
        self._hook(uc.UC_HOOK_INSN, "syscall", x86.UC_X86_INS_SYSCALL)
        self._hook(
            uc.UC_HOOK_MEM_READ_UNMAPPED
            | uc.UC_HOOK_MEM_WRITE_UNMAPPED
            | uc.UC_HOOK_MEM_READ_PROT
            | uc.UC_HOOK_MEM_WRITE_PROT,
            "memory",
        )

    def _hook(self, kind: int, routine: str, *instruction: int) -> None:
        number = ctypes.c_size_t()
        begin, end = map(ctypes.c_uint64, _ALL_MEMORY)
        extra = [ctypes.c_int(one) for one in instruction]
        target, block = ctypes.c_void_p(routines()[routine]), ctypes.c_void_p(self.switch.address)
        _check(uclib.uc_hook_add(self._handle, ctypes.byref(number), kind, target, block, begin, end, *extra))

    # memory; all raise UcError

    def map(self, address: int, size: int, host: int, *, readonly: bool) -> None:
        """Show `size` bytes of host memory at `address`; the caller keeps it alive. Device pages there go."""
        self._changed()
        self._drop_chunks(address, address + size)
        _check(uclib.uc_mem_map_ptr(self._handle, address, size, uc.UC_PROT_ALL, host))
        if readonly:
            # Mapped so at once it would stop at writes, and then make them.
            try:
                _check(uclib.uc_mem_protect(self._handle, address, size, _READ_EXECUTE))
            except UcError:
                uclib.uc_mem_unmap(self._handle, address, size)
                raise

    def unmap(self, address: int, size: int) -> None:
        """Show nothing there any more. The engine forgets translations of it, and code that came from it."""
        self._changed()
        # It looks for that code as if the guest were to execute there: through the guest's page tables, where it may
        # find other memory, or a page fault that it would deliver afterwards. So these are put aside.
        with self.physical_addresses() if self.physical_addresses is not None else nullcontext():
            _check(uclib.uc_mem_unmap(self._handle, address, size))

    def map_device(self, address: int, start: int, end: int) -> None:
        """Make device pages around `address`, between `start` and `end`, where no memory is."""
        if len(self._chunks) >= _MAX_CHUNKS and self.reading is None:
            self._drop_chunks(0, 1 << 64)
        base = address & -_CHUNK
        start, end = max(base, start), min(base + _CHUNK, end)
        # What is left between chunks that a change cut.
        before = self._chunks.bisect_right(address) - 1
        if before >= 0:
            start = max(start, self._chunks.values()[before])
        after = self._chunks.bisect_right(address)
        if after < len(self._chunks):
            end = min(end, self._chunks.keys()[after])
        self._changed()
        size, page = end - start, (ctypes.c_uint64 * 2)(self.switch.address, start)
        read, write = (ctypes.c_void_p(routines()[name]) for name in ("device_read", "device_write"))
        _check(uclib.uc_mmio_map(self._handle, start, size, read, page, write, page))
        self._chunks[start], self._pages[start] = end, page
        _check(uclib.uc_mem_protect(self._handle, start, size, uc.UC_PROT_NONE))

    def _changed(self) -> None:
        self.epoch += 1
        self.switch.words[EPOCH] = self.epoch
        # An access that the engine stands at is given up.
        self.keep_flags()

    def _drop_chunks(self, start: int, end: int) -> None:
        first = max(0, self._chunks.bisect_right(start) - 1)
        for chunk in list(self._chunks.islice(first)):
            if chunk >= end:
                break
            if self._chunks[chunk] > start:
                if self.reading is not None and chunk <= self.reading < self._chunks[chunk]:
                    raise _failure(BUSY)
                self.unmap(chunk, self._chunks[chunk] - chunk)
                del self._chunks[chunk], self._pages[chunk]

    # running

    def stop(self) -> None:
        """Make the engine, which stands in a hook, end the emulation before the next instruction."""
        _check(uclib.uc_emu_stop(self._handle))

    def keep_flags(self) -> None:
        """Note the flags of the instruction in whose middle the engine may stand, in case it is given up."""
        if self.flags_within is not None:
            self._kept_flags = self.flags_within()

    def restore_flags(self) -> None:
        """Set the flags with which the instruction that was given up is begun anew; Unicorn may have lost them."""
        self.write(x86.UC_X86_REG_RFLAGS, self._kept_flags)

    # registers and all else that the engine knows of the CPU

    def read(self, register: int) -> int:
        """Return a register, by Unicorn's number."""
        return int(self._uc.reg_read(register))

    def write(self, register: int, value: object) -> None:
        """Set a register, by Unicorn's number."""
        self._uc.reg_write(register, value)

    def read_msr(self, number: int) -> int:
        """Return a model-specific register."""
        return int(self._uc.msr_read(number))

    def write_msr(self, number: int, value: int) -> None:
        """Set a model-specific register."""
        self._uc.msr_write(number, value)

    @contextmanager
    def context(self) -> Iterator[ctypes.Array[ctypes.c_ubyte]]:
        """Give the bytes of a saved context, layout as `accel_unicorn.layout` found it; gone after the block."""
        saved = ctypes.c_void_p()
        _check(uclib.uc_context_alloc(self._handle, ctypes.byref(saved)))
        try:
            _check(uclib.uc_context_save(self._handle, saved))
            yield (ctypes.c_ubyte * uclib.uc_context_size(self._handle)).from_address(saved.value or 0)
        finally:
            uclib.uc_context_free(saved)

    @contextmanager
    def edited_context(self) -> Iterator[ctypes.Array[ctypes.c_ubyte]]:
        """Give the same to be changed; put into force after the block, with all address translations forgotten."""
        with self.context() as data:
            yield data
            _check(uclib.uc_context_restore(self._handle, ctypes.c_void_p(ctypes.addressof(data))))
            self.flush_translations()

    def flush_translations(self) -> None:
        """Forget the addresses that page tables led to."""
        self._uc.ctl(uc.UC_CTL_TLB_FLUSH, uc.UC_CTL_IO_WRITE)

    def flush_code(self) -> None:
        """Forget all translated code; not while the engine stands in a hook."""
        self.switch.forget_known()
        self._uc.ctl_flush_tb()

    #: Where `scratch_page` shows its page.
    scratch_address = 0x10_0000

    def scratch_page(self) -> memoryview:
        """Map a page of the engine's own, to try something out in an engine that runs no guest; return its bytes."""
        self._scratch = mmap.mmap(-1, mmap.PAGESIZE)
        self.map(
            self.scratch_address,
            mmap.PAGESIZE,
            ctypes.addressof(ctypes.c_char.from_buffer(self._scratch)),
            readonly=False,
        )
        return memoryview(self._scratch)

    def close(self) -> None:
        """Release it; it is not entered any more, even if it stands in a hook."""
        self._uc = None


def _check_memory() -> None:
    """Raise BackendError if there is no memory for another engine: Unicorn would end the process."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        mmap.mmap(-1, _CODE_BUFFER + _REST, flags=flags, prot=protection).close()
    except OSError as error:
        raise BackendError(
            "mmap",
            error.errno or 0,
            f"Unicorn needs {_CODE_BUFFER + _REST >> 20} MiB for each vCPU, which it writes and executes code in; "
            "raise the limit of address space, or allow such memory",
        ) from error


def _check(error: int) -> None:
    if error != uc.UC_ERR_OK:
        raise _failure(error)


def _failure(error: int) -> UcError:
    return cast(UcError, cast(Any, UcError)(error))
