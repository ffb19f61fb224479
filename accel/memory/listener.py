"""Memory listeners: who is told when an address space changes, and in which order.

Callback names and priorities are QEMU's (include/system/memory.h). In one transaction a listener hears
``begin``, then ``region_del`` for what goes, then ``region_add`` and ``region_nop`` in ascending order for what
comes and stays, then ``commit`` once everything is in force, or ``abort`` if nothing is. Among listeners,
``begin``, adds and ``commit`` go from low priority to high; deletes and ``abort`` from high to low; equal
priorities in order of registration.

A listener that makes the change real (an accelerator) also implements `prepare`: it notes the sections while it
hears them, and hands back an `Update` that the transaction applies, with everyone held if it asks for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from accel.locks import Lock

if TYPE_CHECKING:
    from accel.memory.flat_view import MemoryRegionSection

PRIORITY_MIN = 0
PRIORITY_ACCEL = 10
PRIORITY_DEV_BACKEND = 10


class Update(ABC):
    """What a listener is about to do. All methods are called under the big lock and `lock`.

    Attributes:
        needs_hold: Whether the guest could see half of it unless every vCPU is held.
        lock: Held from before the hold to after the last step, if there is one.
    """

    needs_hold: bool = False
    lock: Lock | None = None

    @abstractmethod
    def apply(self) -> None:
        """Make the change real, step by step. Raises if a step fails; `undo` is called next."""

    @abstractmethod
    def undo(self) -> None:
        """Take back every step that was made, newest first.

        Raises:
            AccelError: A step could not be taken back; the VM's map is lost.
        """


class MemoryListener:
    """Base of memory listeners; every callback does nothing. All run under the big lock.

    Attributes:
        name: For messages.
        priority: See the module's text.
    """

    name: str = "listener"
    priority: int = PRIORITY_MIN

    def begin(self) -> None:
        """A transaction tells its changes now; forget what is left of an earlier one."""

    def region_del(self, section: MemoryRegionSection) -> None:
        """`section` goes."""

    def region_add(self, section: MemoryRegionSection) -> None:
        """`section` comes."""

    def region_nop(self, section: MemoryRegionSection) -> None:
        """`section` stays as it is."""

    def coalesced_io_add(self, section: MemoryRegionSection) -> None:
        """Writes to `section`, which came just now, may be queued."""

    def coalesced_io_del(self, section: MemoryRegionSection) -> None:
        """`section`, whose writes may be queued, goes next."""

    def prepare(self) -> Update | None:
        """Return what to apply for the changes heard since `begin`, or None; nothing has changed yet.

        Raises:
            AccelError: The change cannot be made; the transaction is rolled back.
        """
        return None

    def commit(self) -> None:
        """All changes are in force and the vCPUs run again. What it raises is logged; there is no veto."""

    def abort(self) -> None:
        """The transaction was rolled back: forget what was heard since `begin`. What it raises is logged."""
