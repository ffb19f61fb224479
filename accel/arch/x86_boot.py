"""What an x86 guest finds when it starts: registers, stacks, page tables, GDT and the boot info.

Owns the entry contract that docs/reference/entry-contract.md states for guests; pure planning without I/O,
above `x86` and `x86_paging`. `plan_boot` decides where everything goes; whoever owns the memory writes the
plan's segments into RAM and hands each vCPU its state. Upstream: Intel SDM volume 3, chapters 2 (control
registers), 3 (segments) and 10.8.5 (IA-32e mode); System V ABI, calling sequence, for i386 and x86-64.

Everything is placed in RAM that the image leaves free, lowest first: one page with the boot info, the halt
stub and the GDT, then the page tables, then a stack for each vCPU. The first page stays clear (real-mode
vectors, null pointers), and so does the window from 640 KiB to 1 MiB, where PC devices and firmware appear.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from attrs import frozen

from accel.address import PAGE_SIZE, AddressRange, align_up
from accel.arch.placement import Placer, merge_ranges, show_ranges
from accel.arch.x86 import ENTRY_END, FLAT_CODE, FLAT_DATA, LONG_CODE, BootMode, X86State, X86Table
from accel.arch.x86_paging import identity_tables, tables_size
from accel.errors import ImageError, UsageError

BOOT_INFO_MAGIC = 0x4C43_4341
BOOT_INFO_VERSION = 1
#: magic, version, size, mode bits, CPU count, stack size, RAM below 4 GiB, RAM from 4 GiB up, entry.
BOOT_INFO = struct.Struct("<6I3Q")

#: Bytes of stack for each vCPU; real mode has but 64 KiB for all of them.
STACK_SIZE = {BootMode.REAL16: 1 << 10, BootMode.PROTECTED32: 16 << 10, BootMode.LONG64: 16 << 10}

_MODE_BITS = {BootMode.REAL16: 16, BootMode.PROTECTED32: 32, BootMode.LONG64: 64}
#: Ends of where boot data may lie. In real mode each stack's top must fit into SP.
_DATA_END = {BootMode.REAL16: 0xFC00, BootMode.PROTECTED32: 1 << 32, BootMode.LONG64: 1 << 32}

_DATA_START = 0x1000
_PC_WINDOW = AddressRange(0xA0000, 0x100000)

_STUB_OFFSET, _GDT_OFFSET = 0x80, 0x100
#: cli; hlt; jmp back to hlt: where an entry function that returns ends up, in any mode.
_HALT_STUB = b"\xfa\xf4\xeb\xfd"


@frozen
class BootPlan:
    """What `plan_boot` decided.

    Attributes:
        mode: The mode in which the vCPUs enter.
        entry: Address of the first instruction.
        segments: `(address, bytes)` to write into RAM before the vCPUs run.
        info: Guest-physical address of the boot info.
        tables: Guest-physical address of the top page table, which CR3 holds; 0 without paging.
        stacks: The stack of each vCPU.
    """

    mode: BootMode
    entry: int
    segments: tuple[tuple[int, bytes], ...] = ()
    info: int = 0
    tables: int = 0
    stacks: tuple[AddressRange, ...] = ()

    def state(self, index: int) -> X86State | None:
        """Return what vCPU `index` starts with; None for ``RESET``, which is left to the accelerator.

        Raises:
            UsageError: The plan has no such vCPU.
        """
        if self.mode is BootMode.RESET:
            return None
        if not 0 <= index < len(self.stacks):
            raise UsageError(f"no vCPU {index}: the boot was planned for {len(self.stacks)}")
        top = self.stacks[index].end
        gdt = {} if self.mode is BootMode.REAL16 else {"gdt": X86Table(self.info + _GDT_OFFSET, 3 * 8 - 1)}
        return X86State.entering(
            self.mode,
            self.entry,
            tables=self.tables if self.mode is BootMode.LONG64 else None,
            rdi=index,
            rsi=self.info,
            rsp=top - len(_frame(self.mode, index, self.info)),
            **gdt,
        )


def plan_boot(
    *,
    entry: int,
    mode: BootMode,
    cpus: int,
    occupied: Sequence[AddressRange],
    ram: Sequence[AddressRange],
    name: str = "image",
) -> BootPlan:
    """Plan how `cpus` vCPUs enter at `entry`.

    Args:
        entry: Guest-physical address of the first instruction; ``RESET`` ignores it.
        mode: The CPU mode at the entry.
        cpus: Number of vCPUs.
        occupied: What the image takes up.
        ram: Where there is RAM.
        name: What the image is called in messages.

    Raises:
        ImageError: The entry lies outside RAM or where the mode cannot reach it, or there is no room.
        UsageError: `cpus` is not above zero.
    """
    if cpus < 1:
        raise UsageError(f"{cpus} vCPUs: a guest needs at least one")
    if mode is BootMode.RESET:
        return BootPlan(mode, entry)
    ram = merge_ranges(ram)
    _check_entry(name, entry, mode, ram)
    rooms = _Rooms(name, mode, ram, occupied)
    page = rooms.take("the boot info", PAGE_SIZE, PAGE_SIZE)
    segments = [(page.start, _boot_page(entry, mode, cpus, ram))]
    tables = 0
    if mode is BootMode.LONG64:
        mapped = align_up(max(1 << 32, ram[-1].end), 1 << 30)
        room = rooms.take("the page tables", tables_size(mapped), PAGE_SIZE)
        tables = room.start
        segments.append((tables, identity_tables(tables, mapped)))
    size = STACK_SIZE[mode]
    stacks = tuple(rooms.take(f"the stack of vCPU {index}", size, size) for index in range(cpus))
    for index, stack in enumerate(stacks):
        if frame := _frame(mode, index, page.start):
            segments.append((stack.end - len(frame), frame))
    return BootPlan(mode, entry, tuple(segments), page.start, tables, stacks)


def _boot_page(entry: int, mode: BootMode, cpus: int, ram: Sequence[AddressRange]) -> bytes:
    below = sum(item.end for item in ram if item.start == 0)
    above = sum(item.size for item in ram if item.start == 1 << 32)
    info = BOOT_INFO.pack(
        BOOT_INFO_MAGIC,
        BOOT_INFO_VERSION,
        BOOT_INFO.size,
        _MODE_BITS[mode],
        cpus,
        STACK_SIZE[mode],
        min(below, 1 << 32),
        above + max(0, below - (1 << 32)),
        entry,
    )
    page = info.ljust(_STUB_OFFSET, b"\0") + _HALT_STUB
    if mode is BootMode.REAL16:
        return page
    code = LONG_CODE if mode is BootMode.LONG64 else FLAT_CODE
    return page.ljust(_GDT_OFFSET, b"\0") + struct.pack("<3Q", 0, code.descriptor(), FLAT_DATA.descriptor())


def _frame(mode: BootMode, index: int, info: int) -> bytes:
    """Return what lies at the top of a stack, so that a C function (index, info) can be the entry point."""
    stub = info + _STUB_OFFSET
    if mode is BootMode.LONG64:
        return struct.pack("<Q", stub)
    if mode is BootMode.PROTECTED32:
        return struct.pack("<5I", stub, index, info, 0, 0)
    return b""


def _check_entry(name: str, entry: int, mode: BootMode, ram: Sequence[AddressRange]) -> None:
    if not 0 <= entry < ENTRY_END[mode]:
        wider = {
            BootMode.REAL16: "; enter in protected32 or long64",
            BootMode.PROTECTED32: "; enter in long64",
        }
        raise ImageError(
            name,
            f"entry {entry:#x} cannot be reached in {mode}, which ends at {ENTRY_END[mode]:#x}" + wider.get(mode, ""),
        )
    if not any(entry in item for item in ram):
        raise ImageError(
            name,
            f"entry {entry:#x} is not in RAM, which is {show_ranges(ram)}; set --entry or use more --memory",
        )


class _Rooms:
    """A `Placer` that says what did not fit, and around what."""

    def __init__(
        self, name: str, mode: BootMode, ram: Sequence[AddressRange], occupied: Sequence[AddressRange]
    ) -> None:
        self._window = AddressRange(_DATA_START, _DATA_END[mode])
        self._placer = Placer(ram, (*occupied, _PC_WINDOW), self._window)
        self._name = name
        self._ram = ram
        self._occupied = occupied

    def take(self, what: str, size: int, alignment: int) -> AddressRange:
        found = self._placer.place(size, alignment)
        if found is None:
            raise ImageError(
                self._name,
                f"no room for {what} ({size:#x} bytes) in {self._window}: RAM is {show_ranges(self._ram)}, "
                f"the image takes {show_ranges(merge_ranges(self._occupied))}; "
                "use more --memory, fewer --cpus or another --load-address",
            )
        return found
