"""Whether an image fits into RAM, and what the error advises."""

import pytest

from accel.address import AddressRange
from accel.arch.x86 import BootMode, ram_layout
from accel.errors import ImageError
from accel.loaders.checks import check_fits
from accel.loaders.image import Image, Segment

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
RAM = ram_layout(64 * MIB)


def image(*pieces, rom=()):
    segments = tuple(Segment(address, b"", size) for address, size in pieces)
    return Image("guest.elf", "elf", segments, entry=0, mode=BootMode.LONG64, rom=rom)


@pytest.mark.parametrize(
    "pieces",
    [[], [(0, 64 * MIB)], [(64 * MIB - 1, 1)], [(0, 1), (1 * MIB, 1 * MIB)], [(1 << 40, 0)]],
)
def test_check_fits_inside_ram_passes(pieces):
    check_fits(image(*pieces), RAM)


def test_check_fits_across_touching_ranges_passes():
    check_fits(image((0, 2 * MIB)), [AddressRange(1 * MIB, 2 * MIB), AddressRange(0, 1 * MIB)])


def test_check_fits_across_the_gap_above_4_gib_passes():
    check_fits(image((4 * GIB, 1 * GIB)), ram_layout(4 * GIB))


def test_check_fits_rom_needs_no_ram():
    check_fits(image(rom=(Segment(4 * GIB - 64 * KIB, b"", 64 * KIB),)), RAM)


@pytest.mark.parametrize(
    ("address", "size", "advice"),
    [
        (64 * MIB, 1, "use --memory 65M or more, or load the image lower"),
        (64 * MIB - 1, 2, "use --memory 65M or more"),
        (2 * GIB, 1 * GIB, "use --memory 3G or more"),
        (3 * GIB, 1, "[0xc0000000, 0x100000000) is left to devices: load the image elsewhere"),
        (3 * GIB - 1, 2, "is left to devices"),
        (4 * GIB - 1, 2, "is left to devices"),
        (4 * GIB, 1 * GIB, "use --memory 4G or more"),
        (1 << 50, 1, "no --memory reaches so far: load the image lower"),
    ],
)
def test_check_fits_outside_ram_names_segment_ram_and_advice(address, size, advice):
    with pytest.raises(ImageError) as caught:
        check_fits(image((0, 1), (address, size)), RAM)
    message = str(caught.value)
    assert message.startswith(
        f"guest.elf: segment 1 at {AddressRange.sized(address, size)} is not in RAM, which is [0x0, 0x4000000); "
    )
    assert advice in message


@pytest.mark.parametrize(
    ("address", "size"), [(64 * MIB, 1), (2 * GIB, 1 * GIB), (4 * GIB, 1 * GIB), (5 * GIB + 1, 77)]
)
def test_check_fits_advised_memory_is_enough(address, size):
    with pytest.raises(ImageError) as caught:
        check_fits(image((address, size)), RAM)
    advised = str(caught.value).partition("--memory ")[2].split()[0]
    units = {"M": MIB, "G": GIB}
    check_fits(image((address, size)), ram_layout(int(advised[:-1]) * units[advised[-1]]))
