"""Guest programs as images: assembled for x86, so that `Machine.load` treats them like any other.

Above the assembler and the image format. Programs have no file format of their own, so nothing here is
registered as a loader.
"""

from __future__ import annotations

from accel.arch.x86 import BootMode
from accel.arch.x86_program import assemble
from accel.loaders.flat import LOAD_ADDRESS
from accel.loaders.image import Image, Segment
from accel.program import GuestProgram


def program_image(program: GuestProgram, load_address: int = LOAD_ADDRESS) -> Image:
    """Return `program` as machine code at `load_address`, entered there in long mode.

    Raises:
        ProgramError: The program cannot be assembled.
        AddressError: The code does not end by 2^64.
    """
    code = assemble(program)
    segment = Segment(load_address, code, len(code))
    return Image(
        name="guest program",
        loader="program",
        segments=(segment,),
        entry=segment.range.start,
        mode=BootMode.LONG64,
    )
