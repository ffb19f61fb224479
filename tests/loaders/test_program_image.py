"""Guest programs as images."""

import pytest

from accel.address import AddressRange
from accel.arch.x86 import BootMode
from accel.arch.x86_program import assemble
from accel.errors import AddressError
from accel.loaders.program import program_image
from accel.testing.programs import hello


def test_program_image_is_the_code_entered_at_its_first_byte_in_long_mode() -> None:
    code = assemble(hello())
    image = program_image(hello())
    assert (image.entry, image.mode, image.executes) == (0x100000, BootMode.LONG64, "x86")
    assert [(one.range, bytes(one.data)) for one in image.segments] == [(AddressRange.sized(0x100000, len(code)), code)]


def test_program_image_goes_where_it_is_asked_to() -> None:
    image = program_image(hello(), 0x20_0000)
    assert image.entry == image.segments[0].address == 0x20_0000


def test_program_image_beyond_all_addresses_is_refused() -> None:
    with pytest.raises(AddressError):
        program_image(hello(), (1 << 64) - 4)
