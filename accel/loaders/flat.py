"""Flat binaries: bytes without a header, copied to one address and entered there.

Takes whatever no other loader recognises, so it is asked last.
"""

from __future__ import annotations

from accel.address import ADDRESS_SPACE_SIZE
from accel.arch.x86 import BootMode
from accel.errors import ImageError
from accel.loaders.checks import check_entry
from accel.loaders.image import Image, Loader, LoadOptions, Segment

#: Where a PC's firmware loads a boot sector.
REAL_MODE_ADDRESS = 0x7C00
#: The first address above the PC's firmware window, where most kernels are linked to.
LOAD_ADDRESS = 0x10_0000


def detect(head: bytes) -> bool:
    """Return whether there is anything at all."""
    return bool(head)


def load(name: str, data: bytes, options: LoadOptions) -> Image:
    """Return `data` as one segment; unless `options` say otherwise, real mode enters at its first byte.

    Raises:
        ImageError: It is empty, its address or entry cannot be, or it is to start at the reset vector.
    """
    mode = options.mode or BootMode.REAL16
    if mode is BootMode.RESET:
        raise ImageError(name, "a flat image cannot start in mode reset; load firmware with --firmware")
    if not data:
        raise ImageError(name, "the image is empty; was it built?")
    address = options.load_address
    if address is None:
        address = REAL_MODE_ADDRESS if mode is BootMode.REAL16 else LOAD_ADDRESS
    if not 0 <= address <= ADDRESS_SPACE_SIZE - len(data):
        raise ImageError(name, f"{len(data):#x} bytes do not fit at load address {address:#x}; lower it")
    entry = address if options.entry is None else options.entry
    segments = (Segment(address, data, len(data)),)
    check_entry(name, segments, entry)
    return Image(name=name, loader=FLAT.name, segments=segments, entry=entry, mode=mode)


FLAT = Loader(
    name="flat",
    summary="flat binary, entered at its load address (real mode: 0x7c00, otherwise 0x100000)",
    detect=detect,
    load=load,
    priority=-100,
)
