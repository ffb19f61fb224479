"""The guests that are measured: two from ``examples/guests``, and one that writes to memory where there is none."""

from __future__ import annotations

from pathlib import Path

from benchmarks.processes import ROOT

LOAD_ADDRESS = 0x7C00
COUNT_OFFSET = 4
WRITTEN_ADDRESS = 0x7C08
SERIAL_PORT = 0x3F8
CONSOLE_PORT = 0xE9
MEMORY = 64 << 20

#: Where `MMIO_IMAGE` writes, and the RAM below.
MMIO_ADDRESS = 0xA0000

_FOLDER = ROOT / "examples" / "guests"
EXITS = _FOLDER / "exits.bin"
CONSOLE = _FOLDER / "console-bench.bin"

#: ``examples/guests/src/writes.s`` with memory in place of the port: real mode, loaded at 0x7C00.
MMIO_IMAGE = bytes.fromhex(
    "eb0a 66 90"  # 7c00  jmp begin; pad
    "00000000"  # 7c04  writes: how many to make
    "00000000"  # 7c08  written: how many were made
    "668b0e047c"  # 7c0c  begin: mov writes, %ecx
    "b800a0"  # 7c11  mov $0xa000, %ax
    "8ec0"  # 7c14  mov %ax, %es
    "31ff"  # 7c16  xor %di, %di
    "b02e"  # 7c18  mov $'.', %al
    "6631f6"  # 7c1a  xor %esi, %esi
    "268805"  # 7c1d  1: mov %al, %es:(%di)
    "6646"  # 7c20  inc %esi
    "67e2f8"  # 7c22  addr32 loop 1b
    "668936087c"  # 7c25  mov %esi, written
    "b000"  # 7c2a  mov $0, %al
    "e6f4"  # 7c2c  out %al, $0xf4
    "fa"  # 7c2e  cli
    "f4"  # 7c2f  2: hlt
    "ebfd"  # 7c30  jmp 2b
)

_OUT_AL_DX = b"\xee"
_NOP = b"\x90"


def silent(image: bytes) -> bytes:
    """Return a port-writing image without its write, whose time is what the guest's own loop takes."""
    if image.count(_OUT_AL_DX) != 1:
        raise ValueError("an image with exactly one `out %al, %dx` was expected")
    return image.replace(_OUT_AL_DX, _NOP)


def write_image(folder: Path, name: str, image: bytes) -> Path:
    """Put an image into a file for the C side, and return its path."""
    path = folder / name
    path.write_bytes(image)
    return path
