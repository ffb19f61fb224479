"""ELF images: what is loaded where, and that no damage gives anything but an ImageError.

The files are packed here from the tables of the ELF specification; those that a linker made are in
examples/guests.
"""

import struct
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from attrs import asdict, define
from hypothesis import example, given, settings
from hypothesis import strategies as st

from accel.arch.x86 import BootMode
from accel.errors import ImageError
from accel.loaders.elf import ELF
from accel.loaders.image import LoadOptions

GUESTS = Path(__file__).parents[2] / "examples" / "guests"
PT_NULL, PT_LOAD, PT_NOTE = 0, 1, 4
EM_386, EM_X86_64, EM_AARCH64 = 3, 62, 183
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4


@define
class Program:
    """A program header."""

    paddr: int = 0x100000
    data: bytes = b"\xf4" * 16
    memsz: int | None = None
    vaddr: int | None = None
    type: int = PT_LOAD
    filesz: int | None = None
    offset: int | None = None


def elf(
    *programs,
    bits=64,
    machine=None,
    entry=0x100000,
    type=ET_EXEC,
    phentsize=None,
    phnum=None,
    phoff=None,
    ident=(1, 1),
):
    """Return an ELF file; what is given wins over what would be right."""
    programs = programs or (Program(),)
    machine = machine or (EM_X86_64 if bits == 64 else EM_386)
    header_size, program_size = (64, 56) if bits == 64 else (52, 32)
    word = "Q" if bits == 64 else "I"
    offset = header_size + program_size * len(programs)
    headers = contents = b""
    for program in programs:
        values = asdict(program)
        start = offset + len(contents) if program.offset is None else program.offset
        stored = len(program.data) if program.filesz is None else program.filesz
        size = stored if program.memsz is None else values["memsz"]
        virtual = program.paddr if program.vaddr is None else program.vaddr
        if bits == 64:
            fields = (program.type, 7, start, virtual, program.paddr, stored, size, 0x1000)
            headers += struct.pack("<2I6Q", *fields)
        else:
            fields = (program.type, start, virtual, program.paddr, stored, size, 7, 0x1000)
            headers += struct.pack("<8I", *fields)
        contents += program.data
    magic = b"\x7fELF" + bytes([2 if bits == 64 else 1, *ident]) + bytes(9)
    header = magic + struct.pack(
        f"<2HI3{word}I6H",
        *(type, machine, 1, entry, header_size if phoff is None else phoff, 0, 0, header_size),
        *(program_size if phentsize is None else phentsize, len(programs) if phnum is None else phnum),
        *(0, 0, 0),
    )
    return header + headers + contents


def load(data, **options):
    return ELF.load("guest.elf", data, LoadOptions(**options))


def refusal(data, **options):
    with pytest.raises(ImageError) as caught:
        load(data, **options)
    assert caught.value.path == "guest.elf"
    return str(caught.value)


def pieces(image):
    return [(item.address, bytes(item.data), item.size) for item in image.segments]


# what is loaded


@pytest.mark.parametrize(("bits", "mode"), [(32, BootMode.PROTECTED32), (64, BootMode.LONG64)])
def test_elf_class_decides_the_mode(bits, mode):
    image = load(elf(bits=bits, entry=0x100004))
    assert image.mode is mode
    assert (image.entry, image.loader, image.name) == (0x100004, "elf", "guest.elf")
    assert pieces(image) == [(0x100000, b"\xf4" * 16, 16)]


def test_elf_segments_come_ascending_with_zeros_as_size_only():
    data = elf(
        Program(paddr=0x200000, data=b"data", memsz=0x10_0000),
        Program(paddr=0x100000, data=b"code"),
        Program(paddr=0x180000, data=b"", memsz=0x3000),
    )
    assert pieces(load(data)) == [
        (0x100000, b"code", 4),
        (0x180000, b"", 0x3000),
        (0x200000, b"data", 0x10_0000),
    ]


def test_elf_headers_that_load_nothing_are_passed_over():
    data = elf(
        Program(type=PT_NULL),
        Program(),
        Program(type=PT_NOTE, offset=1 << 60, filesz=1 << 60),
        Program(data=b"", memsz=0),
        Program(type=0x6474_E551),
    )
    assert pieces(load(data)) == [(0x100000, b"\xf4" * 16, 16)]


def test_elf_higher_half_entry_becomes_the_physical_one():
    high = 0xFFFF_FFFF_8010_0000
    image = load(elf(Program(vaddr=high), entry=high + 4))
    assert image.entry == 0x100004
    assert image.segments[0].address == 0x100000


def test_elf_higher_half_physical_entry_stays():
    assert load(elf(Program(vaddr=0xFFFF_FFFF_8010_0000), entry=0x100008)).entry == 0x100008


def test_elf_options_entry_and_mode_win():
    image = load(elf(bits=32), entry=0x10000F, mode=BootMode.REAL16)
    assert (image.entry, image.mode) == (0x10000F, BootMode.REAL16)


def test_elf_segment_up_to_the_last_address_is_allowed():
    data = elf(Program(paddr=(1 << 32) - 16), bits=32, entry=(1 << 32) - 16)
    assert load(data).segments[0].range.end == 1 << 32


def test_elf_section_headers_of_garbage_do_no_harm():
    data = bytearray(elf())
    data[40:48] = b"\xff" * 8  # e_shoff
    data[58:64] = b"\xff" * 6  # e_shentsize, e_shnum, e_shstrndx
    assert load(bytes(data)) == load(elf())


def test_elf_bss_of_gigabytes_takes_no_memory():
    data = elf(Program(), Program(paddr=1 << 32, memsz=60 << 30))
    load(data)
    tracemalloc.start()
    try:
        load(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("path", sorted(GUESTS.glob("*.elf")), ids=lambda path: path.name)
def test_elf_guest_that_a_linker_made_loads(path):
    data = path.read_bytes()
    image = load(data)
    assert image.mode is (BootMode.LONG64 if data[4] == 2 else BootMode.PROTECTED32)
    assert any(image.entry in item.range for item in image.segments)
    assert all(len(item.data) <= item.size for item in image.segments)


def test_elf_detect_looks_at_the_magic():
    assert ELF.detect(elf())
    assert not ELF.detect(b"\x7fELG")
    assert not ELF.detect(b"")


# what is refused


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"MZ" + bytes(100), "is no ELF file"),
        (elf(machine=EM_AARCH64), "is an ELF64 file for AARCH64, not EM_X86_64; build it for x86"),
        (elf(machine=0xBEEF), "is an ELF64 file for EM_0xbeef"),
        (elf(bits=32, machine=EM_X86_64), "is an ELF32 file for X86_64, not EM_386"),
        (elf(bits=64, machine=EM_386), "is an ELF64 file for 386, not EM_X86_64"),
        (elf(type=ET_REL), "is an object file that is not linked"),
        (elf(type=ET_DYN), "is position-independent (ET_DYN)"),
        (elf(type=ET_CORE), "is a core dump"),
        (elf(type=0x1234), "has type ET_0x1234; it must be ET_EXEC"),
        (elf(ident=(2, 1)), "is not little-endian"),
        (b"\x7fELF\x03" + elf()[5:], "ELF class 3 is neither 32 nor 64 bits"),
        (elf(phnum=0), "has no program headers"),
        (elf(phnum=1025), "has 1025 program headers, more than 1024"),
        (elf(phentsize=55), "has program headers of 55 bytes, not 56"),
        (elf(phoff=(1 << 64) - 1), "before program headers end at 0x10000000000000037"),
        (elf(Program(type=PT_NOTE)), "has no PT_LOAD segment"),
        (elf(Program(memsz=15)), "segment 0 has 0x10 bytes in the file but 0xf in memory"),
        (elf(Program(offset=1 << 63)), "before segment 0 ends at 0x8000000000000010"),
        (elf(Program(filesz=1 << 63)), "before segment 0 ends at"),
        (elf(Program(paddr=(1 << 64) - 8)), "segment 0 (p_paddr 0xfffffffffffffff8, 0x10 bytes)"),
        (elf(Program(vaddr=(1 << 64) - 8)), "p_vaddr 0xfffffffffffffff8"),
        (elf(Program(paddr=0xFFFF_FFF8), bits=32), "goes past the end of 32-bit addresses"),
        (
            elf(Program(), Program(paddr=1 << 32, memsz=1 << 36)),
            "take 0x1000000010 bytes of memory, more than 64G",
        ),
        (elf(entry=0xFFFFF), "entry 0xfffff is not in the image, which takes [0x100000, 0x100010)"),
    ],
)
def test_elf_that_cannot_run_is_refused_with_the_reason(data, message):
    assert message in refusal(data)


def test_elf_overlapping_segments_are_refused_with_both():
    message = refusal(elf(Program(paddr=0x10000F), Program(), Program(paddr=0x300000)))
    assert "segments 1 at [0x100000, 0x100010) and 0 at [0x10000f, 0x10001f) overlap" in message


def test_elf_segments_that_touch_do_not_overlap():
    assert len(load(elf(Program(paddr=0x100010), Program())).segments) == 2


def test_elf_load_address_is_refused():
    assert "drop --load-address" in refusal(elf(), load_address=0x1000)


def test_elf_reset_mode_is_refused():
    assert "--firmware" in refusal(elf(), mode=BootMode.RESET)


@pytest.mark.parametrize("bits", [32, 64])
def test_elf_truncated_anywhere_is_refused(bits):
    data = elf(Program(), Program(paddr=0x200000), bits=bits)
    for size in range(len(data)):
        refusal(data[:size])


def outcome(data):
    """Load a damaged file: an image that holds what every image promises, or an ImageError."""
    try:
        image = load(data)
    except ImageError:
        return
    ranges = [item.range for item in image.segments]
    assert all(low.end <= high.start for low, high in pairwise(ranges))
    assert sum(item.size for item in image.segments) <= 64 << 30
    assert all(len(item.data) <= item.size for item in image.segments)
    assert any(image.entry in item for item in ranges)


WHOLE = {bits: elf(Program(), Program(paddr=0x200000, memsz=0x4000), bits=bits) for bits in (32, 64)}
INTERESTING = st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([32, 64]),
    st.lists(st.tuples(st.integers(0, 175), INTERESTING), min_size=1, max_size=12),
    st.none() | st.integers(0, 208),
)
@example(64, [(index, 0xFF) for index in range(16, 176)], None)
@example(32, [(index, 0) for index in range(16, 116)], None)
def test_elf_garbage_headers_give_an_image_or_an_image_error(bits, changes, size):
    data = bytearray(WHOLE[bits])
    for index, value in changes:
        data[index % len(data)] = value
    outcome(bytes(data[:size]))


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x7fELF", WHOLE[32][:20], WHOLE[64][:20], WHOLE[64][:52]]),
)
def test_elf_random_bytes_give_an_image_or_an_image_error(data, head):
    outcome(head + data)
