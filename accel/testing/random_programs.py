"""Random guest programs for Hypothesis, and a machine on which two accelerators can be compared.

Above `program` and `machine`. It needs Hypothesis, so nothing else of `accel.testing` imports it.

>>> from accel.program import Load, Out, ERRORS
>>> found = run_program("mock", GuestProgram([Load(RAM, 4, 0), Out(PORTS.start, ERRORS, 4)]))
>>> found.outcome, found.log
(<Outcome.HALTED: 'halted'>, [('port', 128, 4, True, 0)])
"""

from __future__ import annotations

from typing import Literal

from attrs import frozen
from hypothesis import strategies as st

from accel.devices.port_handler import PortAccess
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.program import ERRORS, RETURN_BYTE, Add, Fetch, GuestProgram, Halt, In, Load, Loop, Op, Out, Store
from accel.result import Outcome

#: Two pages of RAM, a page of ROM and two of a device, with holes between.
RAM, ROM, DEVICE = 0x1000_1000, 0x1000_4000, 0x1000_6000
ROM_BYTES = bytes(range(16)) * 256
PORTS = range(0x80, 0x88)

#: Programs of the kinds that `operations` does not draw, by what they are about.
SPECIAL: dict[str, list[Op]] = {
    "return": [Store(RAM + 5, RETURN_BYTE, 1), Loop([Fetch(RAM + 5)], 10), Out(0x80, 1), Halt(), Out(0x80, 2)],
    "hole": [Fetch(RAM - 0x1000), Out(0x80, 1)],  # nothing there: internal error
    "saturate": [Loop([Load(RAM, expect=1)], 300), Out(0x80, ERRORS, 1), Out(0x80, ERRORS, 2)],
}

_PAGE = 0x1000
_EDGES = (RAM, RAM + _PAGE, RAM + 2 * _PAGE, ROM, ROM + _PAGE, DEVICE, DEVICE + _PAGE)
#: Operations begin so far from an edge.
_REACH = 9
_PATTERN = 0x0807_0605_0403_0201
_TIMEOUT_S = 60

_Size = Literal[1, 2, 4, 8]
_PortSize = Literal[1, 2, 4]


@frozen
class Seen:
    """What a program did, as far as the host can tell.

    Attributes:
        outcome: How it ended.
        log: What reached the device and the ports, in order.
        ram: The bytes of `RAM` in the end.
        exits: How many of each kind; without interruptions, which are the host's.
    """

    outcome: Outcome
    log: list[tuple[object, ...]]
    ram: bytes
    exits: dict[str, int]


def run_program(accelerator: str, program: GuestProgram) -> Seen:
    """Run `program` on a machine of this accelerator with `RAM`, `ROM`, `DEVICE` and `PORTS`.

    Raises:
        AccelError: There is no such accelerator, or it refuses the program.
    """
    log: list[tuple[object, ...]] = []

    def read(offset: int, size: int) -> int:
        log.append(("read", offset, size))
        return _PATTERN + offset

    def write(offset: int, value: int, size: int) -> None:
        log.append(("write", offset, value, size))

    with Machine.create(accelerator, memory="2M") as machine:
        ram = [MemoryRegion.ram(name, _PAGE) for name in ("first", "second")]
        with machine.transaction():
            machine.memory.add(ram[0], RAM)
            machine.memory.add(ram[1], RAM + _PAGE)
            machine.memory.add(MemoryRegion.rom("rom", ROM_BYTES), ROM)
            machine.memory.add(MemoryRegion.mmio("device", 2 * _PAGE, read=read, write=write), DEVICE)

        @machine.port(PORTS.start, len(PORTS))
        def port(access: PortAccess) -> None:
            log.append(("port", access.port, access.size, access.is_write, access.value))
            if not access.is_write:
                access.reply(_PATTERN & 0xFFFF_FFFF)

        machine.load(program)
        result = machine.run(_TIMEOUT_S)
        exits = {kind: count for kind, count in result.exits.items() if kind != "interrupted"}
        contents = b"".join(region.read(0, _PAGE) for region in ram)
    return Seen(result.outcome, log, contents, exits)


def operations() -> st.SearchStrategy[Op]:
    """Draw operations: loads and stores about the edges of what is there, additions, port accesses, and loops of them.

    Additions are aligned: they are atomic, and not every accelerator's are across a boundary.
    """
    near = st.builds(lambda edge, offset: edge + offset, st.sampled_from(_EDGES), st.integers(-_REACH, _REACH))
    sizes: tuple[_Size, ...] = (1, 2, 4, 8)
    port_sizes: tuple[_PortSize, ...] = (1, 2, 4)
    return st.recursive(
        st.sampled_from(sizes).flatmap(lambda size: _memory(near, size)) | st.sampled_from(port_sizes).flatmap(_port),
        lambda inner: st.builds(Loop, st.lists(inner, max_size=3), st.integers(1, 3)),
        max_leaves=10,
    )


def _memory(near: st.SearchStrategy[int], size: _Size) -> st.SearchStrategy[Op]:
    width = st.just(size)
    return st.one_of(
        st.builds(Load, near, width, st.none() | _values(size)),
        st.builds(Store, near, _values(size), width),
        st.builds(Add, near.map(lambda place: place - place % size), _values(size), width),
    )


def _port(size: _PortSize) -> st.SearchStrategy[Op]:
    at = st.integers(PORTS.start, PORTS.stop - size)
    return st.one_of(
        st.builds(In, at, st.just(size), st.none() | _values(size)),
        st.builds(Out, at, _values(size) | st.just(ERRORS), st.just(size)),
    )


def _values(size: int) -> st.SearchStrategy[int]:
    most = (1 << 8 * size) - 1
    return st.sampled_from([0, 1, 0x0201 & most, 0x0403_0201 & most, _PATTERN & most, most])
