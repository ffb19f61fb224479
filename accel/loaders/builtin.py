"""The loaders that come with the project, as they are registered."""

from accel.loaders.elf import ELF
from accel.loaders.firmware import FIRMWARE
from accel.loaders.flat import FLAT

BUILTIN_LOADERS = (ELF, FLAT, FIRMWARE)
