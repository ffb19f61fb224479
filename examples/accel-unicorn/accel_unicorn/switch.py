"""Leaving the engine in the middle of an instruction, and going on there later: two stacks and a few native hooks.

Unicorn asks for the answer to an access inside a callback. An accelerator's `run` returns with the access and gets
the answer when it is called again. To bridge the two without executing anything twice, the engine runs on a stack of
its own. A hook does not come back: it puts its arguments into the control block and switches to the stack of the
thread that called `enter`, which so returns. The next `enter` switches back, and the hook returns the answer.

The hooks are machine code, `switch.s`, and hold no Python: the GIL is free from `enter` to its return, an exit costs
one foreign call, and an instruction that nobody wants to hear of costs a counter and a compare. They are the reason
why this plugin needs x86-64 and the System V calling convention. Memory that may be written and executed at once is
not asked for; memory that is executed is, but then Unicorn's own code generator needs it as well.

Who runs a vCPU may change from call to call: nothing on the engine's stack belongs to a thread.

The control block is an array of 64-bit words; the names below are their indices.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from collections.abc import Callable

#: Not 0: the engine stops before the next instruction. Set by any thread, cleared by the vCPU's.
ATTENTION = 0
_ENGINE_STACK = 1
EVENT = 3
#: Four arguments of the hook that stopped; which they are is up to the event.
FIRST, SECOND, THIRD, FOURTH = 4, 5, 6, 7
#: What the hook returns when the engine goes on.
REPLY = 8
#: How many pieces of a device read are prepared, which is next, and the first of at most four values.
READ_PIECES, READ_NEXT, READ_VALUES = 9, 10, 17
#: The instruction that read a port last, and the one that is to have the same answer.
INPUT, INPUT_AGAIN = 11, 14
_HANDLE, BEGIN, _EMU_START = 12, 13, 15
#: Instructions begun so far; each turn of a repeated one counts.
COUNT = 16
#: Not 0: an aligned access to a device page or to ROM is an exit by itself, with nothing from before to be minded. A
#: written zero is one only if it is known that the instruction is not INS, which Unicorn tries with a zero first.
SIMPLE = 21
#: Goes up with each change of the engine's map; the word behind it is what it was at the last simple exit.
EPOCH = 22
#: The exit record and the port data, as `accel.exits` lays them out.
_RECORD, _IO_DATA = 24, 28
#: How many accesses were served and noted so far, and where the notes lie, four words each: the instruction's number,
#: address, ``size | is_write << 32``, value.
NOTED, NOTES, MAX_NOTES = 29, 32, 64
#: Linear address of the instruction, and those that are known not to be INS, each at its address modulo `MAX_KNOWN`.
PLACE, KNOWN, MAX_KNOWN = 30, NOTES + 4 * MAX_NOTES, 16
_WORDS = KNOWN + MAX_KNOWN
#: No instruction lies there.
_NOWHERE = (1 << 64) - 1

#: Events. The first two are exits as they stand, equal to `ExitKind`: a port access and a simple access to memory.
#: Their record is filled in and has their answer afterwards. Then: stopped before an instruction (its linear address);
#: read of a device page without prepared pieces (address, size); the emulation ended (error); another memory access
#: without memory (type, address, size, value); exception (vector); system call.
PORT, DEVICE, STOPPED, DEVICE_READ, ENDED, MEMORY, EXCEPTION, SYSCALL = range(8)

_STACK_SIZE = 1 << 20

#: `switch.s`, assembled.
CODE = bytes.fromhex(
    "5355415441554156415748896710488b6708488b4740415f415e415d415c5d5bc349894318498973"
    "204989532849894b304d8943385355415441554156415749896308498b6310415f415e415d415c5d"
    "5bc3488b7b60488b736831d231c94531c0ff537889c64989dbb804000000e8aeffffffebdd48ff81"
    "800000004889b1f00000008339007501c34989cbb802000000eb8e4d89c341898be00000000fb6c2"
    "c1e00883c801c1e61009f0480fbae820498983c000000031c0e963ffffff4989cb498b8380000000"
    "49894358493b4370742d49c783e0000000000000000fb6c2c1e008c1e61009f0480fbae820498983"
    "c000000031c04153e824ffffff415b418b83e0000000c34d89cb89f689c94183bba8000000000f84"
    "0501000083fe160f82fc0000008d41ff4885d00f85f000000083fe1675204d85c0751b4d8b93f000"
    "00004489d083e00f4d3b94c3000900000f85cb000000498993c00000004d8983c800000031c083fe"
    "160f94c048c1e0204809c8498983d0000000498b83b0000000498983b8000000b8010000004153e8"
    "8dfeffff415b498b8be800000049ff83e800000083e13fc1e105498d8c0b00010000498b83800000"
    "00488901498b83c000000048894108498b83d000000048894110498b93c800000048895118498b8b"
    "b0000000493b8bb800000075314989938800000048c1ea204989939000000031c949894b50480fba"
    "e020720883f8080f94c1ffc149894b48b801000000c331c0c3b805000000e9f6fdffff4989d389f6"
    "b806000000e9e7fdffff4989f3b807000000e9dafdffff4c8b1941837b4800741541ff4b48498b43"
    "5049ff4350498b84c388000000c34803710889d2b803000000e9abfdffffc3"
)
#: Where each routine begins in it.
LABELS = {
    "enter": 0x00,
    "start": 0x52,
    "code": 0x75,
    "out": 0x93,
    "in": 0xBE,
    "memory": 0x107,
    "exception": 0x22B,
    "syscall": 0x23A,
    "device_read": 0x247,
    "device_write": 0x276,
}

_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """Return why this host cannot switch stacks; empty if it can."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.maxsize < 1 << 32 or sys.platform == "win32":
        return f"needs an x86-64 host with the System V calling convention, this is {sys.platform} {platform.machine()}"
    return ""


def _executable(code: bytes) -> mmap.mmap:
    """Return a page of machine code. Raises OSError if the host refuses executable memory."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page.write(code)
    protect = _libc.mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(_address(page), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "memory cannot be made executable")
    return page


def _address(page: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(page))


class _Routines:
    """The code in executable memory; one for the process, never released."""

    def __init__(self) -> None:
        self._page = _executable(CODE)
        self.addresses = {name: _address(self._page) + offset for name, offset in LABELS.items()}


_routines: _Routines | None = None


def routines() -> dict[str, int]:
    """Return the address of each routine. Raises OSError if the host refuses executable memory."""
    global _routines
    if _routines is None:
        _routines = _Routines()
    return _routines.addresses


class Switch:
    """The control block and the engine's stack of one vCPU.

    Args:
        handle: The engine.
        emu_start: Address of ``uc_emu_start``.

    Attributes:
        words: The control block.
        address: Where it lies; what the hooks are given as their user data.
        record: The exit record in it, and `io_data` the port data.
        enter: Runs the engine until a hook stops it; returns the event. Releases the GIL meanwhile.
    """

    def __init__(self, handle: int, emu_start: int) -> None:
        addresses = routines()
        self._block = (ctypes.c_uint64 * _WORDS)()
        self.address = ctypes.addressof(self._block)
        data = memoryview(self._block).cast("B")
        self.words = data.cast("Q")
        self.record = self.words[_RECORD:_IO_DATA]
        self.io_data = data[_IO_DATA * 8 : _IO_DATA * 8 + 8]
        self._stack = mmap.mmap(-1, _STACK_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        top = _address(self._stack) + _STACK_SIZE
        # What `enter` pops: six registers, of which RBX is the block, then the address to go to. The stack is aligned
        # to 16 bytes there, as at any call.
        frame = (ctypes.c_uint64 * 7).from_address(top - 72)
        frame[5], frame[6] = self.address, addresses["start"]
        self.words[_ENGINE_STACK] = top - 72
        self.words[_HANDLE] = handle
        self.forget_known()
        self.words[_EMU_START] = emu_start
        # mov rdi, block; mov rax, enter; jmp rax: a call without arguments takes two thirds of the time of one with.
        call = b"\x48\xbf%b\x48\xb8%b\xff\xe0" % (_word(self.address), _word(addresses["enter"]))
        self._call = _executable(call)
        self.enter: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_int)(_address(self._call))

    def forget_known(self) -> None:
        """Forget which instructions are known not to be INS: other code may lie there now."""
        for place in range(KNOWN, KNOWN + MAX_KNOWN):
            self.words[place] = _NOWHERE


def _word(value: int) -> bytes:
    return value.to_bytes(8, "little")
