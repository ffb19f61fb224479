"""PC firmware: an image that ends at 4 GiB, where a CPU fetches its first instruction.

The image is mapped read-only below 4 GiB. PC firmware also expects its last 128 KiB below 1 MiB, in memory
that it may write to; there it lies as a copy in RAM. Nothing in a file says that it is firmware, so this
loader is never picked by itself.
"""

from __future__ import annotations

from accel.address import PAGE_SIZE, format_size
from accel.arch.x86 import RESET_VECTOR, BootMode
from accel.errors import ImageError
from accel.loaders.image import Image, Loader, LoadOptions, Segment

#: The region below 4 GiB that a PC decodes as its flash, clear of the APICs at 0xfec00000 and 0xfee00000.
MAX_FIRMWARE_SIZE = 16 << 20
#: The legacy window below 1 MiB, from 0xe0000.
LEGACY_SIZE = 128 << 10

_ROM_END = 4 << 30
_LEGACY_END = 1 << 20


def detect(head: bytes) -> bool:
    """Return False: firmware is asked for by name."""
    return False


def load(name: str, data: bytes, options: LoadOptions) -> Image:
    """Return `data` read-only below 4 GiB and its end as RAM below 1 MiB, to start in the reset state.

    Raises:
        ImageError: The size is not one that can be mapped, or `options` ask for another place, entry or mode.
    """
    if options.load_address is not None or options.entry is not None:
        raise ImageError(name, "firmware has its place and entry: drop --load-address and --entry")
    if options.mode not in (None, BootMode.RESET):
        raise ImageError(name, f"firmware starts in mode reset, not {options.mode}")
    size = len(data)
    if not size or size % PAGE_SIZE:
        raise ImageError(
            name,
            f"firmware of {size:#x} bytes cannot be mapped in pages of {PAGE_SIZE:#x}; is the file complete?",
        )
    if size > MAX_FIRMWARE_SIZE:
        raise ImageError(
            name,
            f"firmware of {size:#x} bytes reaches below the flash window of {format_size(MAX_FIRMWARE_SIZE)} "
            "that ends at 4 GiB; use a smaller build",
        )
    legacy = min(size, LEGACY_SIZE)
    return Image(
        name=name,
        loader=FIRMWARE.name,
        segments=(Segment(_LEGACY_END - legacy, memoryview(data)[size - legacy :], legacy),),
        rom=(Segment(_ROM_END - size, data, size),),
        entry=RESET_VECTOR,
        mode=BootMode.RESET,
    )


FIRMWARE = Loader(
    name="firmware",
    summary="PC firmware, read-only below 4 GiB and entered at the reset vector (--firmware)",
    detect=detect,
    load=load,
    priority=-200,
)
