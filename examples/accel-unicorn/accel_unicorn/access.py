"""Memory accesses that no memory serves: from what the engine's hook tells to exits, and back.

The hook tells of a whole access, once, at its physical address, and may then tell of its pieces: an access that is not
naturally aligned, or crosses a page, is made of pieces whose hook calls must not become exits of their own. What the
hook answers:

- *go on*: the engine makes the access, on a device page (whose reads give what was prepared here, and whose writes do
  nothing) or on ROM (which takes nothing);
- *give up*: the access is not made, and the instruction with it: the engine comes out, and when it is entered again
  the instruction begins anew.

*Go on* is right as long as the map of the engine is the one that it had when it called the hook: it uses addresses
that it looked up before. Where a device changed memory while it served the access, the answer is *give up*. An
instruction that begins anew makes its earlier accesses again; those that were served are **replayed** from a list, so
no device sees them twice. The list is of one instruction, told by the engine's counter.

So an instruction that a memory change interrupts sees the old map before its access and the new one after it, as on
a real machine.
"""

from __future__ import annotations

from attrs import define
from unicorn import unicorn_const as uc

from accel.address import PAGE_SIZE
from accel_unicorn.switch import COUNT, READ_PIECES, READ_SIZE, READ_VALUE

_READS = (uc.UC_MEM_READ_UNMAPPED, uc.UC_MEM_READ_PROT)
_UNMAPPED = (uc.UC_MEM_READ_UNMAPPED, uc.UC_MEM_WRITE_UNMAPPED)

GO_ON, GIVE_UP = 1, 0


@define
class Access:
    """An access that became an exit.

    Attributes:
        address: Physical address of its first byte.
        size: Bytes of the access as the engine makes it.
        here: Bytes of it up to the end of the page, which is what the exit is about.
        value: What is written.
        write: Whether it is a write.
        unmapped: Whether the engine has no device page there yet.
        epoch: The engine's map when it called the hook.
        piece: Whether it is the second part of an access that crosses a page.
    """

    address: int
    size: int
    here: int
    value: int
    write: bool
    unmapped: bool
    epoch: int
    piece: bool = False

    @property
    def end(self) -> int:
        return self.address + self.here


class Accesses:
    """The accesses of one vCPU; owned by the thread that runs it.

    Args:
        words: The control block.
    """

    def __init__(self, words: memoryview) -> None:
        self._words = words
        # Served accesses of the instruction that began as number `_number`: (write, address, size) and the value.
        self._served: list[tuple[tuple[bool, int, int], int]] = []
        self._number = -1
        # Those to be replayed before anything new.
        self._replay: list[tuple[tuple[bool, int, int], int]] = []
        self._pieces = _NO_PIECES
        self._unmapped: int | None = None

    def ask(self, kind: int, address: int, size: int, value: int, epoch: int) -> Access | int:
        """Return the exit that a call of the hook is, or what to answer without one."""
        words = self._words
        words[READ_PIECES] = 0
        number = words[COUNT]
        if number != self._number:
            self._number = number
            self._served.clear()
            self._replay.clear()
            self._pieces = _NO_PIECES
        write = kind not in _READS
        unmapped = kind in _UNMAPPED
        here = min(size, PAGE_SIZE - address % PAGE_SIZE)
        value &= (1 << 8 * size) - 1
        found = self._piece(write, address, size, unmapped, epoch)
        if found is not None:
            return found
        self._pieces = _NO_PIECES
        if unmapped and not write:
            self._unmapped = address
            return GIVE_UP
        access = Access(address, size, here, value, write, unmapped, epoch)
        if self._replay and self._replay[0][0] == (write, address, here):
            served = self._replay.pop(0)
            self._served.append(served)
            return self._answer(access, served[1], epoch)
        return access

    def served(self, access: Access, value: int, epoch: int) -> int:
        """Return what to answer after the exit of `access`; `value` is what a read gave."""
        value &= (1 << 8 * access.here) - 1
        self._served.append(((access.write, access.address, access.here), value))
        return self._answer(access, value, epoch)

    def begins_anew(self) -> None:
        """The instruction was given up and is begun again: replay what was served."""
        self._number = self._words[COUNT] + 1
        self._replay = self._served + self._replay
        self._served = []
        self._pieces = _NO_PIECES

    @property
    def restarting(self) -> bool:
        """Whether the instruction at hand was begun anew and has accesses left to replay."""
        return bool(self._replay) and self._number == self._words[COUNT]

    def take_unmapped(self) -> int | None:
        """Return, once, an address where device pages are needed."""
        address, self._unmapped = self._unmapped, None
        return address

    def _answer(self, access: Access, value: int, epoch: int) -> int:
        changed = epoch != access.epoch
        crosses = access.here < access.size
        if access.write:
            if access.unmapped:
                self._unmapped = access.address
            if crosses:
                # The part behind is made by the engine, byte by byte; looked up anew.
                self._pieces = _Pieces(access, access.value >> 8 * access.here)
                return GO_ON
            if access.unmapped or changed:
                return GIVE_UP
            if not access.piece and access.address % access.size:
                self._pieces = _Pieces(access, 0)
            return GO_ON
        if changed:
            return GIVE_UP
        if access.piece or access.address % access.size == 0:
            self._prepare(value, access.size)
        else:
            self._pieces = _Pieces(access, value)
        return GO_ON

    def _prepare(self, value: int, size: int) -> None:
        words = self._words
        words[READ_VALUE], words[READ_SIZE] = value, size
        words[READ_PIECES] = 2 if size == 8 else 1

    def _piece(self, write: bool, address: int, size: int, unmapped: bool, epoch: int) -> Access | int | None:
        """Return what to answer if this call is for a piece of the last access; None if it is for a new one."""
        pieces = self._pieces
        whole = pieces.access
        if whole is None or whole.write != write:
            return None
        if write:
            return self._written_piece(pieces, whole, address, size, unmapped, epoch)
        first = whole.address - whole.address % whole.size
        if size != whole.size:
            return None
        if address == first and not pieces.first:
            pieces.first = True
            self._prepare(pieces.value << 8 * (whole.address - first), size)
            return GO_ON
        if not pieces.first:
            return None
        self._pieces = _NO_PIECES
        behind = whole.here - (first + size - whole.address)
        if behind > 0 and address == first + size:
            self._prepare(pieces.value >> 8 * (whole.here - behind), size)
            return GO_ON
        if unmapped or address % size:
            return None
        # The second page, wherever it lies: the exit is for what is left of the access.
        return self._or_replayed(Access(address, size, whole.size - whole.here, 0, False, False, epoch, piece=True))

    def _or_replayed(self, access: Access) -> Access | int:
        if self._replay and self._replay[0][0] == (access.write, access.address, access.here):
            served = self._replay.pop(0)
            self._served.append(served)
            return self._answer(access, served[1], access.epoch)
        return access

    def _written_piece(
        self, pieces: _Pieces, whole: Access, address: int, size: int, unmapped: bool, epoch: int
    ) -> Access | int | None:
        if size != 1:
            return None
        if whole.address <= address < whole.end:
            return GO_ON
        left = whole.size - whole.here
        if not left:
            return None
        if pieces.second is None:
            if address % PAGE_SIZE:
                return None
            # The first byte on the second page: one exit for all that lies there.
            pieces.second = address
            if unmapped:
                self._unmapped = address
            access = Access(address, 1, left, pieces.value, True, unmapped, epoch, piece=True)
            return self._or_replayed(access)
        return (GIVE_UP if unmapped else GO_ON) if pieces.second <= address < pieces.second + left else None


@define
class _Pieces:
    """What is to come of an access: its value (of a write, what lies on the second page)."""

    access: Access | None
    value: int
    first: bool = False
    second: int | None = None


_NO_PIECES = _Pieces(None, 0)
