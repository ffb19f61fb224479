"""Loaders: from an image file to pieces of memory and an entry state."""

from accel.loaders.builtin import BUILTIN_LOADERS
from accel.loaders.checks import check_entry, check_fits
from accel.loaders.image import MAX_IMAGE_SIZE, Image, Loader, LoadOptions, Segment
from accel.loaders.load import load_image, read_image

__all__ = [
    "BUILTIN_LOADERS",
    "MAX_IMAGE_SIZE",
    "Image",
    "LoadOptions",
    "Loader",
    "Segment",
    "check_entry",
    "check_fits",
    "load_image",
    "read_image",
]
