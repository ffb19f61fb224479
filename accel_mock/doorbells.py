"""Doorbells: guest writes that ring an eventfd instead of leaving the guest, as KVM_IOEVENTFD has them.

Source: KVM_IOEVENTFD in KVM api.rst. As KVM, a doorbell has the eventfd for itself from its registration on: whoever
made it may close theirs. It is closed when nobody refers to it any more, neither the VM nor a vCPU that is about to
ring it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from attrs import evolve

from accel.errors import BackendError
from accel.memory.ioeventfd import IoEventFd
from accel.memory.listener import Update


class Doorbell:
    """One doorbell, registered.

    Args:
        eventfd: With the address in the space for an offset.

    Raises:
        BackendError: EBADF if its fd is not open any more.
    """

    __slots__ = ("_own", "eventfd")

    def __init__(self, eventfd: IoEventFd) -> None:
        self.eventfd = eventfd
        try:
            self._own = evolve(eventfd, fd=os.dup(eventfd.fd))
        except OSError as error:
            what = f"doorbell at {eventfd.offset:#x}, fd {eventfd.fd}; keep it open until the doorbell is removed"
            raise BackendError("mock doorbell call", error.errno or errno.EBADF, what) from error

    def ring(self, address: int, value: int, size: int) -> bool:
        """Ring it if the write is for it; return whether it was."""
        if not self._own.rings(address, value, size):
            return False
        self._own.ring()
        return True

    def __del__(self) -> None:
        if hasattr(self, "_own"):
            os.close(self._own.fd)


#: Those of one space, by address.
_Bells = Mapping[int, tuple[Doorbell, ...]]


class MockDoorbells:
    """The doorbells of a VM.

    Attributes:
        bells: Those of the ports (True) and of the memory (False). Each mapping is immutable and replaced under the
            big lock; read by any vCPU.
        registered: The same as what listeners are told, for the big lock.
    """

    def __init__(self) -> None:
        self.bells: dict[bool, _Bells] = {True: {}, False: {}}
        self.registered: dict[bool, frozenset[IoEventFd]] = {True: frozenset(), False: frozenset()}

    def ring(self, address: int, data: bytes, *, is_port: bool) -> bool:
        """Ring the doorbell that a write is for; return False if there is none. Any vCPU."""
        here = self.bells[is_port].get(address, ())
        return any(one.ring(address, int.from_bytes(data, "little"), len(data)) for one in here)

    def put(self, bells: _Bells, registered: frozenset[IoEventFd], *, is_port: bool) -> None:
        """Put others in force in one space; under the big lock."""
        self.bells[is_port] = bells
        self.registered[is_port] = registered

    def clear(self) -> None:
        """Let go of all."""
        for is_port in (True, False):
            self.put({}, frozenset(), is_port=is_port)


class DoorbellsUpdate(Update):
    """Replaces the doorbells of one space. Needs no hold: a write beside them exits, and the view says what it does."""

    def __init__(self, doorbells: MockDoorbells, is_port: bool, wanted: frozenset[IoEventFd]) -> None:
        self._doorbells = doorbells
        self._is_port = is_port
        self._before = doorbells.bells[is_port], doorbells.registered[is_port]
        self._wanted = wanted

    def apply(self) -> None:
        there = {one.eventfd: one for here in self._before[0].values() for one in here}
        after: dict[int, tuple[Doorbell, ...]] = {}
        for eventfd in sorted(self._wanted, key=lambda one: one.key):
            one = there.get(eventfd) or Doorbell(eventfd)
            after[eventfd.offset] = (*after.get(eventfd.offset, ()), one)
        self._doorbells.put(after, self._wanted, is_port=self._is_port)

    def undo(self) -> None:
        self._doorbells.put(*self._before, is_port=self._is_port)
