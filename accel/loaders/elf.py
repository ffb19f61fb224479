"""ELF executables for x86: ELF32 enters in 32-bit protected mode, ELF64 in long mode.

Only the ELF header and the program headers are read; sections, symbols and notes are never looked at, so
garbage there does no harm. What lies in a file is not trusted: each number is checked before it is used, and
nothing is allocated that the file does not hold. Upstream: System V gABI, chapters 4 and 5, and the
processor supplements for i386 and x86-64; pyelftools decodes the headers.
"""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

from attrs import frozen

from accel.address import AddressRange, format_size
from accel.arch.x86 import BootMode
from accel.errors import ImageError
from accel.loaders.checks import check_entry
from accel.loaders.image import Image, Loader, LoadOptions, Segment

MAGIC = b"\x7fELF"
#: More than linkers ever make; each costs time to read.
MAX_PROGRAM_HEADERS = 1024
#: Most memory that all segments take together.
MAX_TOTAL_SIZE = 64 << 30

_IDENT_SIZE = 16
_CLASS_BITS = {1: 32, 2: 64}
_LITTLE_ENDIAN = 1
#: By ELF class: the machine that is executed, and the mode that its code is entered in.
_TARGETS = {32: ("EM_386", BootMode.PROTECTED32), 64: ("EM_X86_64", BootMode.LONG64)}
_WRONG_TYPE = {
    "ET_REL": "is an object file that is not linked; link it with 'ld -static'",
    "ET_DYN": "is position-independent (ET_DYN) and would need relocating; link it with '-static -no-pie'",
    "ET_CORE": "is a core dump, not a program",
}


@frozen
class _Load:
    """A PT_LOAD program header that has been checked."""

    number: int
    virtual: AddressRange
    physical: AddressRange
    data: memoryview


def detect(head: bytes) -> bool:
    """Return whether the ELF magic is there."""
    return head.startswith(MAGIC)


def load(name: str, data: bytes, options: LoadOptions) -> Image:
    """Return the PT_LOAD segments of an executable at their physical addresses.

    The entry is an address as the program sees it; where its segment has another physical address, as in a
    higher-half kernel, the image's entry is the physical one.

    Raises:
        ImageError: It is no ELF executable for x86, it is damaged, or `options` move it.
    """
    if options.load_address is not None:
        raise ImageError(name, "an ELF file says itself where it goes: drop --load-address, or change its link")
    if options.mode is BootMode.RESET:
        raise ImageError(name, "an ELF file cannot start in mode reset; load firmware with --firmware")
    header, structs, mode = _read_header(name, data)
    loads = _read_loads(name, data, header, structs)
    _check_overlap(name, loads)
    segments = tuple(Segment(item.physical.start, item.data, item.physical.size) for item in loads)
    entry = _physical(header["e_entry"], loads) if options.entry is None else options.entry
    check_entry(name, segments, entry)
    return Image(name=name, loader=ELF.name, segments=segments, entry=entry, mode=options.mode or mode)


def _read_header(name: str, data: bytes) -> tuple[Any, Any, BootMode]:
    """Return the ELF header, what decodes the other headers, and the mode of the program."""
    from elftools.elf.structs import ELFStructs  # 45 ms, which a flat image need not pay

    if not data.startswith(MAGIC):
        raise ImageError(name, "is no ELF file: it does not begin with 7f 45 4c 46; try the flat loader")
    if len(data) < _IDENT_SIZE:
        raise ImageError(name, f"is cut off after {len(data):#x} bytes, inside the ELF header; rebuild it")
    bits = _CLASS_BITS.get(data[4])
    if bits is None:
        raise ImageError(name, f"ELF class {data[4]} is neither 32 nor 64 bits; the file is damaged")
    if data[5] != _LITTLE_ENDIAN:
        raise ImageError(name, f"ELF data encoding {data[5]} is not little-endian, so it is not for x86")
    structs = ELFStructs(little_endian=True, elfclass=bits)
    structs.create_basic_structs()
    structs.create_advanced_structs()
    header = _parse(name, data, structs.Elf_Ehdr, 0, "the ELF header")
    machine, mode = _TARGETS[bits]
    if header["e_machine"] != machine:
        raise ImageError(
            name,
            f"is an ELF{bits} file for {_shown(header['e_machine'], 'EM_')}, not {machine}; build it for x86",
        )
    if header["e_type"] != "ET_EXEC":
        kind = header["e_type"]
        raise ImageError(name, _WRONG_TYPE.get(kind, f"has type {_shown(kind, 'ET_')}; it must be ET_EXEC"))
    return header, structs, mode


def _read_loads(name: str, data: bytes, header: Any, structs: Any) -> list[_Load]:
    """Return the segments to load, by ascending physical address."""
    count, size, start = header["e_phnum"], header["e_phentsize"], header["e_phoff"]
    if not count:
        raise ImageError(name, "has no program headers, so nothing says what to load; link it with 'ld -static'")
    if count > MAX_PROGRAM_HEADERS:
        raise ImageError(name, f"has {count} program headers, more than {MAX_PROGRAM_HEADERS}; it is damaged")
    if size != structs.Elf_Phdr.sizeof():
        raise ImageError(name, f"has program headers of {size} bytes, not {structs.Elf_Phdr.sizeof()}; it is damaged")
    end = start + count * size
    if end > len(data):
        raise ImageError(
            name,
            f"is cut off at {len(data):#x}, before program headers end at {end:#x}; rebuild it",
        )
    loads: list[_Load] = []
    for number in range(count):
        entry = _parse(name, data, structs.Elf_Phdr, start + number * size, f"program header {number}")
        if entry["p_type"] == "PT_LOAD" and entry["p_memsz"]:
            loads.append(_check_load(name, data, number, entry, structs.elfclass))
    if not loads:
        raise ImageError(name, "has no PT_LOAD segment, so there is nothing to run; link it with 'ld -static'")
    total = sum(item.physical.size for item in loads)
    if total > MAX_TOTAL_SIZE:
        limit = format_size(MAX_TOTAL_SIZE)
        raise ImageError(name, f"its segments take {total:#x} bytes of memory, more than {limit}; it is damaged")
    return sorted(loads, key=lambda item: item.physical.start)


def _check_load(name: str, data: bytes, number: int, entry: Any, bits: int) -> _Load:
    offset, stored, size = entry["p_offset"], entry["p_filesz"], entry["p_memsz"]
    if stored > size:
        raise ImageError(
            name,
            f"segment {number} has {stored:#x} bytes in the file but {size:#x} in memory; it is damaged",
        )
    if offset + stored > len(data):
        raise ImageError(
            name,
            f"is cut off at {len(data):#x}, before segment {number} ends at {offset + stored:#x}; rebuild it",
        )
    for what in ("p_paddr", "p_vaddr"):
        if entry[what] + size > 1 << bits:
            raise ImageError(
                name,
                f"segment {number} ({what} {entry[what]:#x}, {size:#x} bytes) goes past the end of "
                f"{bits}-bit addresses; it is damaged",
            )
    return _Load(
        number,
        AddressRange.sized(entry["p_vaddr"], size),
        AddressRange.sized(entry["p_paddr"], size),
        memoryview(data)[offset : offset + stored],
    )


def _check_overlap(name: str, loads: list[_Load]) -> None:
    for low, high in pairwise(loads):
        if low.physical.overlaps(high.physical):
            raise ImageError(
                name,
                f"segments {low.number} at {low.physical} and {high.number} at {high.physical} overlap in "
                "physical memory; check the addresses in its linker script",
            )


def _physical(entry: int, loads: list[_Load]) -> int:
    for item in loads:
        if entry in item.virtual:
            return entry - item.virtual.start + item.physical.start
    return entry


def _parse(name: str, data: bytes, structure: Any, offset: int, what: str) -> Any:
    """Return a decoded header. Raises ImageError where the file ends inside it."""
    from elftools.common.exceptions import ELFParseError
    from elftools.common.utils import struct_parse

    try:
        return struct_parse(structure, io.BytesIO(data[offset : offset + structure.sizeof()]))
    except ELFParseError as error:
        raise ImageError(name, f"is cut off or damaged in {what}; rebuild it") from error


def _shown(value: str | int, prefix: str) -> str:
    """Return a decoded ELF constant for a message; what is not known stays a number."""
    return value.removeprefix(prefix) if isinstance(value, str) else f"{prefix}{value:#x}"


ELF = Loader(
    name="elf",
    summary="ELF executable for i386 (entered in protected32) or x86-64 (long64)",
    detect=detect,
    load=load,
)
