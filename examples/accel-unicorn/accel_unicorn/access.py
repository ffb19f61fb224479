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

Before INS reads its port, the engine writes a zero where the item will go. No device is told of that **try**, and if
the instruction begins anew behind the port, it has the same answer again.

So an instruction that a memory change interrupts sees the old map before its access and the new one after it, as on
a real machine.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define
from unicorn import unicorn_const as uc

from accel.address import PAGE_SIZE
from accel_unicorn.switch import (
    COUNT,
    INPUT,
    INPUT_AGAIN,
    MAX_NOTES,
    NOTED,
    NOTES,
    READ_NEXT,
    READ_PIECES,
    READ_VALUES,
    SIMPLE,
)

_READS = (uc.UC_MEM_READ_UNMAPPED, uc.UC_MEM_READ_PROT)
_UNMAPPED = (uc.UC_MEM_READ_UNMAPPED, uc.UC_MEM_WRITE_UNMAPPED)

GO_ON, GIVE_UP = 1, 0

#: Most bytes that the engine reads from a device page at a time.
_PIECE = 4


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
        dry: Whether it is the engine's try before an INS, which no device is told of.
    """

    address: int
    size: int
    here: int
    value: int
    write: bool
    unmapped: bool
    epoch: int
    piece: bool = False
    dry: bool = False


_Key = tuple[bool, int, int]


class Accesses:
    """The accesses of one vCPU; owned by the thread that runs it.

    Args:
        words: The control block.
    """

    def __init__(self, words: memoryview) -> None:
        self._words = words
        # The instruction that all below is about. Its served accesses are noted in the control block.
        self._number = -1
        # Those to be replayed before anything new: (write, address, size) and the value.
        self._replay: list[tuple[_Key, int]] = []
        # The access whose pieces may come, and what of it is on its second page.
        self._whole: Access | None = None
        self._left, self._second = 0, -1
        self._unmapped: int | None = None
        words[SIMPLE] = 1

    def ask(
        self, kind: int, address: int, size: int, value: int, epoch: int, is_try: Callable[[], bool]
    ) -> Access | int:
        """Return the exit that a call of the hook is, or what to answer without one.

        `is_try` tells whether a written zero may be no more than the engine's try.
        """
        self._begin()
        write = kind not in _READS
        unmapped = kind in _UNMAPPED
        if write and self._whole is not None and self._whole.write:
            found = self._written_piece(self._whole, address, size, value, unmapped, epoch)
            if found is not None:
                return found
        self._whole = None
        if unmapped and not write:
            self._unmapped = address
            return GIVE_UP
        here = min(size, PAGE_SIZE - address % PAGE_SIZE)
        access = Access(address, size, here, value & (1 << 8 * size) - 1, write, unmapped, epoch)
        if write and not access.value and size <= _PIECE and is_try():
            access.dry = True
            return self._answer(access, 0, epoch)
        return self._new(access)

    def ask_rest(self, address: int, size: int, here: int | None, epoch: int) -> Access | int:
        """Return the exit that a device page's read is which nothing was prepared for, or its value.

        Such is the second part of a read that crosses a page, or the processor's own look at a page table.

        Args:
            address: Where.
            size: Bytes that the engine reads at a time.
            here: How many of them the guest's instruction reads, where that had to be found out; None for no read of
                the guest's.
            epoch: The engine's map.
        """
        self._begin()
        whole, self._whole = self._whole, None
        if whole is not None and not whole.write and whole.here < whole.size:
            here = whole.size - whole.here
        if here is None:
            return (1 << 8 * size) - 1
        return self._new(Access(address, size, here, 0, False, False, epoch, piece=True))

    def served(self, access: Access, value: int, epoch: int) -> int:
        """Return what to answer after the exit of `access`; `value` is what a read gave."""
        value &= (1 << 8 * access.here) - 1
        self._note(access, value)
        return self._answer(access, value, epoch)

    def begins_anew(self) -> None:
        """The instruction was given up and is begun again: replay what was served."""
        self._begin()
        words, number = self._words, self._words[COUNT]
        served = []
        for note in range(max(0, words[NOTED] - MAX_NOTES), words[NOTED]):
            at = NOTES + 4 * (note % MAX_NOTES)
            if words[at] == number:
                address, shape, value = words[at + 1 : at + 4]
                served.append(((bool(shape >> 32), address, shape & 0xFFFF_FFFF), value))
        if number in (words[INPUT], words[INPUT_AGAIN]):
            words[INPUT_AGAIN] = number + 1
        self._number = number + 1
        self._replay = served + self._replay
        self._whole = None
        words[SIMPLE] = not self._replay

    @property
    def restarting(self) -> bool:
        """Whether the instruction at hand was begun anew and has accesses left to replay."""
        return bool(self._replay) and self._number == self._words[COUNT]

    def take_unmapped(self) -> int | None:
        """Return, once, an address where device pages are needed."""
        address, self._unmapped = self._unmapped, None
        return address

    def _begin(self) -> None:
        """Forget what was of an earlier instruction."""
        words = self._words
        words[READ_PIECES] = 0
        if words[COUNT] != self._number:
            self._number = words[COUNT]
            self._replay.clear()
            self._whole = None
            words[SIMPLE] = 1

    def _note(self, access: Access, value: int) -> None:
        words = self._words
        at = NOTES + 4 * (words[NOTED] % MAX_NOTES)
        words[at], words[at + 1], words[at + 3] = words[COUNT], access.address, value
        words[at + 2] = access.here | access.write << 32
        words[NOTED] += 1

    def _new(self, access: Access) -> Access | int:
        if self._replay and self._replay[0][0] == (access.write, access.address, access.here):
            value = self._replay.pop(0)[1]
            self._note(access, value)
            return self._answer(access, value, access.epoch)
        return access

    def _answer(self, access: Access, value: int, epoch: int) -> int:
        answer = self._decide(access, value, epoch != access.epoch)
        self._words[SIMPLE] = self._whole is None and not self._replay
        return answer

    def _decide(self, access: Access, value: int, changed: bool) -> int:
        if access.write:
            return self._answer_write(access, changed=changed)
        if access.piece:
            if access.size < access.here:
                self._prepare(value >> 8 * access.size, access.size, access.size)
            return value
        if changed:
            return GIVE_UP
        self._prepare_read(access, value)
        return GO_ON

    def _answer_write(self, access: Access, *, changed: bool) -> int:
        if access.unmapped:
            self._unmapped = access.address
        if access.piece:
            return GIVE_UP if access.unmapped or changed else GO_ON
        if access.here < access.size:
            # What lies on the second page is made by the engine, byte by byte, and looked up anew.
            self._whole, self._left, self._second = access, access.value >> 8 * access.here, -1
            return GO_ON
        if access.unmapped or changed:
            return GIVE_UP
        if access.address % access.size:
            self._whole, self._left, self._second = access, 0, -1
        return GO_ON

    def _prepare_read(self, access: Access, value: int) -> None:
        """Lay out the pieces that the engine reads, in its order: words of the access's size, four bytes at most."""
        size = access.size
        shift = access.address % size
        crosses = access.here < size
        if not shift:
            self._prepare(value, size, size)
        else:
            self._prepare(value << 8 * shift, size if crosses else 2 * size, size)
        if crosses:
            self._whole = access

    def _prepare(self, value: int, size: int, word: int) -> None:
        words, width = self._words, min(word, _PIECE)
        pieces = size // width
        for number in range(pieces):
            words[READ_VALUES + number] = value >> 8 * width * number & (1 << 8 * width) - 1
        words[READ_NEXT], words[READ_PIECES] = 0, pieces

    def _written_piece(
        self, whole: Access, address: int, size: int, value: int, unmapped: bool, epoch: int
    ) -> Access | int | None:
        """Return what to answer if this call is for a piece of the last write; None if it is for a new one."""
        if size == whole.size and address == whole.address and whole.unmapped and whole.here < size:
            # The same call again, with the device page that is there by now.
            whole.unmapped = False
            return GO_ON
        if size != 1 or whole.size == 1:
            return None
        if whole.address <= address < whole.address + whole.here:
            return GO_ON
        left = whole.size - whole.here
        if self._second < 0:
            if not left or address % PAGE_SIZE:
                return None
            # The first byte on the second page: one exit for all that lies there.
            self._second = address
            if whole.dry:
                return GIVE_UP if unmapped else GO_ON
            return self._new(Access(address, 1, left, self._left, True, unmapped, epoch, piece=True))
        if not self._second <= address < self._second + left:
            return None
        return GIVE_UP if unmapped else GO_ON
