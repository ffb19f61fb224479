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

#: Not 0: the engine stops before the next instruction. Set by any thread, cleared by the vCPU's.
ATTENTION = 0
_ENGINE_STACK = 1
EVENT = 3
#: Four arguments of the hook that stopped; which they are is up to the event.
FIRST, SECOND, THIRD, FOURTH = 4, 5, 6, 7
#: What the hook returns when the engine goes on.
REPLY = 8
#: What the next pieces of a device read give, how many pieces are left, and the bytes of the whole.
READ_VALUE, READ_PIECES, READ_SIZE = 9, 10, 11
_HANDLE, BEGIN, _EMU_START = 12, 13, 15
#: Instructions begun so far; each turn of a repeated one counts.
COUNT = 16
_WORDS = 32

#: Events: the emulation ended (error); stopped before an instruction (its linear address); port write (port, size,
#: value); port read (port, size); a memory access without memory (type, address, size, value); exception (vector);
#: system call.
ENDED, STOPPED, OUT, IN, MEMORY, EXCEPTION, SYSCALL = 1, 2, 3, 4, 5, 6, 7

_STACK_SIZE = 1 << 20

#: `switch.s`, assembled.
CODE = bytes.fromhex(
    "5355415441554156415748896710488b6708488b4740415f415e415d415c5d5bc349894318498973"
    "204989532849894b304d8943385355415441554156415749896308498b6310415f415e415d415c5d"
    "5bc3488b7b60488b736831d231c94531c0ff537889c64989dbb801000000e8aeffffffebdd48ff81"
    "800000008339007501c34989cbb802000000eb954d89c3b803000000eb8b4989cbb804000000eb81"
    "4d89cb89f689c9b805000000e970ffffff4989d389f6b806000000e961ffffff4989f3b807000000"
    "e954ffffff83795000741dff4950488b414883fa08741083795808750a40f6c604740448c1e820c3"
    "48c7c0ffffffffc3c3"
)
#: Where each routine begins in it.
LABELS = {
    "enter": 0x00,
    "start": 0x52,
    "code": 0x75,
    "out": 0x8C,
    "in": 0x96,
    "memory": 0xA0,
    "exception": 0xB1,
    "syscall": 0xC0,
    "device_read": 0xCD,
    "device_write": 0xF8,
}

_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """Return why this host cannot switch stacks; empty if it can."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.maxsize < 1 << 32 or sys.platform == "win32":
        return f"needs an x86-64 host with the System V calling convention, this is {sys.platform} {platform.machine()}"
    return ""


class _Routines:
    """The code in executable memory; one for the process, never released."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._page.write(CODE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        protect = _libc.mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if protect(base, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), "memory cannot be made executable")
        self.addresses = {name: base + offset for name, offset in LABELS.items()}


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
        enter: Runs the engine until a hook stops it; returns the event. Releases the GIL meanwhile.
    """

    def __init__(self, handle: int, emu_start: int) -> None:
        addresses = routines()
        self._block = (ctypes.c_uint64 * _WORDS)()
        self.address = ctypes.addressof(self._block)
        self.words = memoryview(self._block).cast("B").cast("Q")
        self._stack = mmap.mmap(-1, _STACK_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        top = ctypes.addressof(ctypes.c_char.from_buffer(self._stack)) + _STACK_SIZE
        # What `enter` pops: six registers, of which RBX is the block, then the address to go to. The stack is aligned
        # to 16 bytes there, as at any call.
        frame = (ctypes.c_uint64 * 7).from_address(top - 72)
        frame[5], frame[6] = self.address, addresses["start"]
        self.words[_ENGINE_STACK] = top - 72
        self.words[_HANDLE] = handle
        self.words[_EMU_START] = emu_start
        function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(addresses["enter"])
        block = ctypes.c_void_p(self.address)
        self.enter = lambda: function(block)
