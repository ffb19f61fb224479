"""What a loader makes of an image file: pieces of memory, an entry point and the mode to enter in.

A loader reads bytes and returns an `Image`; it never touches a machine. `Machine.load` puts the pieces in
place, so that the same image loads into any accelerator that executes what it states.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import field, frozen

from accel.address import AddressRange
from accel.arch.x86 import BootMode


@frozen
class Segment:
    """`data` at a guest-physical `address`, followed by zeros up to `size` bytes."""

    address: int
    data: bytes | memoryview = field(repr=False)
    size: int

    @property
    def range(self) -> AddressRange:
        """The addresses it takes up."""
        return AddressRange.sized(self.address, self.size)


@frozen
class Image:
    """A loaded image.

    Attributes:
        name: Where it came from, for messages.
        loader: Name of the loader that read it.
        segments: What goes into RAM, ascending and without overlap.
        rom: What is mapped read-only in regions of its own.
        entry: Address of the first instruction; for ``RESET`` the architecture's reset vector.
        mode: The CPU mode at the entry.
        executes: What an accelerator must execute to run it.
    """

    name: str
    loader: str
    segments: tuple[Segment, ...]
    entry: int
    mode: BootMode
    rom: tuple[Segment, ...] = ()
    executes: str = "x86"


@frozen
class LoadOptions:
    """What the user asked for; None means that the loader decides.

    Attributes:
        load_address: Where a flat image goes.
        entry: The entry point.
        mode: The CPU mode at the entry.
    """

    load_address: int | None = None
    entry: int | None = None
    mode: BootMode | None = None


@frozen
class Loader:
    """One image format, as registered through ``accel_register_loaders``.

    Attributes:
        name: Its name, such as ``elf``.
        summary: One line for `accelctl list loaders`.
        detect: Tells from the first 4,096 bytes whether an image is of this format.
        load: Reads the image: `(name, data, options)`. Raises ImageError.
        priority: Loaders are asked from high to low; the flat loader takes whatever is left.
    """

    name: str
    summary: str
    detect: Callable[[bytes], bool]
    load: Callable[[str, bytes, LoadOptions], Image]
    priority: int = 0


#: Larger image files are refused before they are read.
MAX_IMAGE_SIZE = 1 << 30


def image_name(path: Path | str) -> str:
    """Return how an image is called in messages."""
    return str(path)
