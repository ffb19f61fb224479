"""What a vCPU comes out of the guest with.

Two forms. The vCPU threads work on the raw form: `ExitKind` and the **exit record**, three 64-bit words that
a `VcpuBackend` fills in before its `run` returns:

=====  =================================================  ===================  ========================
kind   word 0                                             word 1               word 2
=====  =================================================  ===================  ========================
IO     ``is_out | size << 8 | port << 16 | count << 32``  unused               unused
MMIO   guest-physical address                             data, little-endian  ``size | is_write << 32``
OTHER  the accelerator's own reason number                unused               unused
=====  =================================================  ===================  ========================

This is how KVM lays out ``struct kvm_run`` behind its exit reason (linux/kvm.h), so that its record is a view
of that page and costs nothing; other backends pack the words themselves. Port data lies in the backend's
``io_data``: `count` items of `size` bytes.

The exit objects below are the second form, for people who call `Vcpu.run` themselves.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from attrs import field, frozen

from accel.errors import UsageError


class ExitKind(enum.IntEnum):
    """Why a vCPU came out; small consecutive numbers, usable as a list index."""

    IO = 0
    MMIO = 1
    HALT = 2
    SHUTDOWN = 3
    INTERRUPTED = 4
    FAIL_ENTRY = 5
    INTERNAL_ERROR = 6
    DEBUG = 7
    OTHER = 8
    DIRTY_RING_FULL = 9


def pack_io(*, is_out: bool, size: int, port: int, count: int = 1) -> int:
    """Return word 0 of the exit record of a port access; `size` is 1, 2 or 4 bytes."""
    return is_out | size << 8 | port << 16 | count << 32


def unpack_io(word: int) -> tuple[bool, int, int, int]:
    """Return `(is_out, size, port, count)` of word 0 of a port access's exit record.

    >>> unpack_io(pack_io(is_out=True, size=1, port=0x3F8))
    (True, 1, 1016, 1)
    """
    return bool(word & 0xFF), word >> 8 & 0xFF, word >> 16 & 0xFFFF, word >> 32


@frozen
class Exit:
    """Base of the exit objects."""


@frozen
class IoIn(Exit):
    """The guest reads `count` items of `size` bytes from `port`; answer with `reply` before the next run."""

    port: int
    size: int
    count: int
    _reply: Callable[[bytes], None] = field(repr=False, eq=False)

    def reply(self, value: int | bytes) -> None:
        """Answer with `size * count` bytes, or with an int that is repeated for each item.

        Raises:
            UsageError: Another number of bytes.
        """
        wanted = self.size * self.count
        if isinstance(value, int):
            value = (value & (1 << 8 * self.size) - 1).to_bytes(self.size, "little") * self.count
        elif len(value) != wanted:
            raise UsageError(f"{len(value)} bytes for a read of {wanted} from port {self.port:#x}: give {wanted}")
        self._reply(value)


@frozen
class IoOut(Exit):
    """The guest wrote `data` to `port`: `count` items of `size` bytes."""

    port: int
    size: int
    count: int
    data: bytes


@frozen
class MmioRead(Exit):
    """The guest reads `size` bytes at a guest-physical `address` that no RAM serves."""

    address: int
    size: int
    _reply: Callable[[int], None] = field(repr=False, eq=False)

    def reply(self, value: int) -> None:
        """Answer with a little-endian value."""
        self._reply(value & (1 << 8 * self.size) - 1)


@frozen
class MmioWrite(Exit):
    """The guest wrote `value` of `size` bytes at a guest-physical `address`."""

    address: int
    size: int
    value: int


@frozen
class Halt(Exit):
    """The guest halted and the accelerator models no interrupt that could wake it."""


@frozen
class Shutdown(Exit):
    """Triple fault, or the architecture's equal."""

    detail: str = ""


@frozen
class Interrupted(Exit):
    """Kicked out; nothing happened in the guest."""


@frozen
class FailEntry(Exit):
    """The accelerator could not enter the guest with this state."""

    detail: str = ""


@frozen
class InternalError(Exit):
    """The accelerator could not go on with what the guest does."""

    detail: str = ""


@frozen
class Debug(Exit):
    """A breakpoint or single step."""

    detail: str = ""


@frozen
class OtherExit(Exit):
    """An exit only this accelerator knows; `reason` is its own number."""

    reason: int
    detail: str = ""


@frozen
class DirtyRingFull(Exit):
    """The vCPU's dirty ring was full; it has been emptied into the logs, so just run on."""
