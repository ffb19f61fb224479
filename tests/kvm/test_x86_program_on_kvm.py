"""One program, two accelerators: what KVM executes as machine code is what the mock interprets."""

from __future__ import annotations

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.devices.port_handler import PortAccess
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.program import ERRORS, RETURN_BYTE, Add, Fetch, GuestProgram, Halt, In, Load, Loop, Op, Out, Store
from accel.result import Outcome

# Two pages of RAM with a hole before, between and after; a page of ROM; a device. Each at a page's edge.
RAM, ROM, DEVICE = 0x1000_1000, 0x1000_4000, 0x1000_6000
ROM_BYTES = bytes(range(16)) * 256


@frozen
class Seen:
    """What a program did, as far as the host can tell."""

    outcome: Outcome
    log: list[tuple[object, ...]]
    ram: bytes
    exits: dict[str, int]


def _run(accelerator: str, program: GuestProgram) -> Seen:
    log: list[tuple[object, ...]] = []

    def read(offset: int, size: int) -> int:
        log.append(("read", offset, size))
        return 0x0807_0605_0403_0201 + offset

    def write(offset: int, value: int, size: int) -> None:
        log.append(("write", offset, value, size))

    with Machine.create(accelerator, memory="2M") as machine:
        assert machine.accelerator == accelerator
        ram = [MemoryRegion.ram(name, 0x1000) for name in ("first", "second")]
        with machine.transaction():
            machine.memory.add(ram[0], RAM)
            machine.memory.add(ram[1], RAM + 0x1000)
            machine.memory.add(MemoryRegion.rom("rom", ROM_BYTES), ROM)
            machine.memory.add(MemoryRegion.mmio("device", 0x2000, read=read, write=write), DEVICE)

        @machine.port(0x80, 8)
        def port(access: PortAccess) -> None:
            log.append(("port", access.port, access.size, access.is_write, access.value))
            if not access.is_write:
                access.reply(0x0403_0201)

        machine.load(program)
        result = machine.run(60)
        exits = {kind: count for kind, count in result.exits.items() if kind != "interrupted"}
        contents = b"".join(region.read(0, 0x1000) for region in ram)
    return Seen(result.outcome, log, contents, exits)


SIZES = st.sampled_from([1, 2, 4, 8])
PLACES = st.builds(
    lambda base, offset: base + offset,
    st.sampled_from([RAM, RAM + 0x1000, RAM + 0x2000, ROM, ROM + 0x1000, DEVICE, DEVICE + 0x1000]),
    st.integers(-9, 9),
)


def _value(size: int) -> st.SearchStrategy[int]:
    most = (1 << 8 * size) - 1
    return st.sampled_from([0, 1, 0x0201 & most, 0x0403_0201 & most, 0x0807_0605_0403_0201 & most, most])


MEMORY_OPS = SIZES.flatmap(
    lambda size: st.one_of(
        st.builds(Load, PLACES, st.just(size), st.none() | _value(size)),
        st.builds(Store, PLACES, _value(size), st.just(size)),
        st.builds(Add, PLACES.map(lambda place: place - place % size), _value(size), st.just(size)),
    )
)
PORT_OPS = st.sampled_from([1, 2, 4]).flatmap(
    lambda size: st.one_of(
        st.builds(In, st.integers(0x80, 0x88 - size), st.just(size), st.none() | _value(size)),
        st.builds(Out, st.integers(0x80, 0x88 - size), _value(size) | st.just(ERRORS), st.just(size)),
    )
)
OPS = st.recursive(
    MEMORY_OPS | PORT_OPS,
    lambda inner: st.builds(Loop, st.lists(inner, max_size=3), st.integers(1, 3)),
    max_leaves=10,
)


@pytest.mark.kvm
@settings(max_examples=60, deadline=None)
@given(st.lists(OPS, min_size=1, max_size=10))
def test_x86_program_does_on_kvm_what_the_mock_does(ops: list[Op]) -> None:
    program = GuestProgram([*ops, Out(0x80, ERRORS, 4)])
    assert _run("kvm", program) == _run("mock", program)


@pytest.mark.kvm
@pytest.mark.parametrize(
    "ops",
    [
        [Store(RAM + 5, RETURN_BYTE, 1), Loop([Fetch(RAM + 5)], 10), Out(0x80, 1), Halt(), Out(0x80, 2)],
        [Fetch(RAM - 0x1000), Out(0x80, 1)],  # nothing there: internal error
        [Loop([Load(RAM, expect=1)], 300), Out(0x80, ERRORS, 1), Out(0x80, ERRORS, 2)],
    ],
    ids=["return", "hole", "saturate"],
)
def test_x86_program_that_fetches_or_fails_does_the_same(ops: list[Op]) -> None:
    assert _run("kvm", GuestProgram(ops)) == _run("mock", GuestProgram(ops))
