"""Flat images: where they go, where they are entered, and what is refused."""

import pytest

from accel.arch.x86 import BootMode
from accel.errors import ImageError
from accel.loaders.flat import FLAT, detect
from accel.loaders.image import LoadOptions


def load(data=b"\xf4" * 512, **options):
    return FLAT.load("guest.bin", data, LoadOptions(**options))


@pytest.mark.parametrize(
    ("mode", "expected_mode", "address"),
    [
        (None, BootMode.REAL16, 0x7C00),
        (BootMode.REAL16, BootMode.REAL16, 0x7C00),
        (BootMode.PROTECTED32, BootMode.PROTECTED32, 0x100000),
        (BootMode.LONG64, BootMode.LONG64, 0x100000),
    ],
)
def test_flat_without_address_goes_where_the_mode_expects_it(mode, expected_mode, address):
    image = load(mode=mode)
    assert image.mode is expected_mode
    assert image.entry == address
    assert [(item.address, item.data, item.size) for item in image.segments] == [(address, b"\xf4" * 512, 512)]
    assert (image.name, image.loader, image.rom, image.executes) == ("guest.bin", "flat", (), "x86")


def test_flat_load_address_moves_image_and_entry():
    image = load(load_address=0x2000)
    assert (image.segments[0].address, image.entry) == (0x2000, 0x2000)


def test_flat_load_address_zero_is_an_address():
    assert load(load_address=0).segments[0].address == 0


def test_flat_entry_is_taken_within_the_image():
    assert load(load_address=0x2000, entry=0x21FF).entry == 0x21FF


@pytest.mark.parametrize("entry", [0, 0x1FFF, 0x2200])
def test_flat_entry_outside_the_image_is_refused(entry):
    with pytest.raises(ImageError) as caught:
        load(load_address=0x2000, entry=entry)
    assert str(caught.value).endswith(
        f"entry {entry:#x} is not in the image, which takes [0x2000, 0x2200); set --entry inside it"
    )


@pytest.mark.parametrize("address", [-1, (1 << 64) - 511])
def test_flat_load_address_out_of_range_is_refused(address):
    with pytest.raises(ImageError, match=f"0x200 bytes do not fit at load address {address:#x}"):
        load(load_address=address)


def test_flat_reset_mode_is_refused_with_the_next_step():
    with pytest.raises(ImageError, match="--firmware"):
        load(mode=BootMode.RESET)


def test_flat_empty_is_refused():
    with pytest.raises(ImageError, match="empty"):
        load(b"")


def test_flat_detect_takes_anything_but_nothing():
    assert detect(b"\0")
    assert not detect(b"")
