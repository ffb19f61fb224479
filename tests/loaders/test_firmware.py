"""Firmware images: the end of the address space, the copy below 1 MiB, and what is refused."""

import pytest

from accel.arch.x86 import BootMode
from accel.errors import ImageError
from accel.loaders.firmware import FIRMWARE
from accel.loaders.image import LoadOptions

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def numbered(size):
    """Return `size` bytes in which each page differs."""
    return b"".join((page % 0xFFFF).to_bytes(2, "little") * 2048 for page in range(size // 4096))


def load(data, **options):
    return FIRMWARE.load("bios.bin", data, LoadOptions(**options))


@pytest.mark.parametrize("size", [4 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 16 * MIB])
def test_firmware_size_ends_at_4_gib_and_its_last_128_kib_at_1_mib(size):
    data = numbered(size)
    image = load(data)
    legacy = min(size, 128 * KIB)
    ((rom,), (low,)) = image.rom, image.segments
    assert (rom.address, rom.size) == (4 * GIB - size, size)
    assert rom.data == data
    assert (low.address, low.size) == (1 * MIB - legacy, legacy)
    assert low.data == data[-legacy:]
    assert (image.mode, image.entry, image.loader) == (BootMode.RESET, 0xFFFF_FFF0, "firmware")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "firmware of 0x0 bytes cannot be mapped in pages of 0x1000; is the file complete?"),
        (128 * KIB - 1, "firmware of 0x1ffff bytes cannot be mapped"),
        (16 * MIB + 4096, "reaches below the flash window of 16M that ends at 4 GiB; use a smaller build"),
    ],
)
def test_firmware_size_that_cannot_be_mapped_is_refused(size, message):
    with pytest.raises(ImageError) as caught:
        load(bytes(size))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_address": 0}, "drop --load-address"),
        ({"entry": 0xF0000}, "drop --load-address and --entry"),
        ({"mode": BootMode.REAL16}, "starts in mode reset, not real16"),
    ],
)
def test_firmware_options_that_would_move_it_are_refused(options, message):
    with pytest.raises(ImageError, match=message):
        load(bytes(64 * KIB), **options)


def test_firmware_mode_reset_is_its_own():
    assert load(bytes(64 * KIB), mode=BootMode.RESET).mode is BootMode.RESET


def test_firmware_detect_is_never_sure():
    assert not FIRMWARE.detect(b"\x55\xaa" * 2048)
