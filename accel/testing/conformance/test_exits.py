"""Exits: what a vCPU comes out with, the layout of the exit record, and the answers that the guest gets."""

from __future__ import annotations

import pytest

from accel.exits import ExitKind, Halt, InternalError, IoIn, IoOut, MmioRead, MmioWrite, Shutdown, pack_io
from accel.memory.region import MemoryRegion
from accel.program import ERRORS, RETURN_BYTE, Add, Fetch, GuestProgram, In, Load, Out, Store
from accel.testing.claims import Claims
from accel.testing.conformance.lane import Lanes, play
from accel.testing.conformance.verdict import due, expect, shown
from accel.testing.machines import MachineFactory
from accel.vcpu import Vcpu

pytestmark = pytest.mark.accelerators(executes=("program", "x86"))

HOLE = 0x1000_0000
PORT = 0x80
#: The x86 code that halts: no return, whatever executes it.
HALT_BYTE = 0xF4
VALUE = 0x8F9E_ADBC_CBDA_E9F8


def low(size: int) -> int:
    """Return the low `size` bytes of a value whose bytes all differ and whose high bits are set."""
    return VALUE & (1 << 8 * size) - 1


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("port", [0x80, 0x3FA, 0xFFF0])
def test_exits_out_gives_port_size_and_data(machine: MachineFactory, lane: Lanes, size: int, port: int) -> None:
    """A write to a port comes out as one IO exit with the port, the size, a count of 1 and the data, little-endian."""
    vcpu = lane(machine(Out(port, low(size), size)))
    found = due(vcpu.run(), IoOut, f"at a write of {size} bytes to port {port:#x}", port=port, size=size, count=1)
    expect(
        found.data == low(size).to_bytes(size, "little"),
        f"a write of {low(size):#x} as {size} bytes to port {port:#x} came out with the data {found.data.hex(' ')}",
    )
    due(vcpu.run(), Halt, "after the last operation")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_exits_in_gives_port_and_size_and_the_guest_reads_the_reply(
    machine: MachineFactory, lane: Lanes, size: int
) -> None:
    """A read of a port comes out as one IO exit; the guest reads what is in `io_data` at the next `run`."""
    vcpu = lane(machine(In(PORT, size, expect=low(size)), Out(PORT, ERRORS)))
    found = due(vcpu.run(), IoIn, f"at a read of {size} bytes from port {PORT:#x}", port=PORT, size=size, count=1)
    found.reply(low(size))
    report = due(vcpu.run(), IoOut, "after the reply")
    expect(report.data == b"\0", f"a guest that got {low(size):#x} from a port of {size} bytes read something else")


def test_exits_io_record_and_data_are_laid_out_as_documented(machine: MachineFactory, lane: Lanes) -> None:
    """Word 0 of an IO exit's record is ``is_out | size << 8 | port << 16 | count << 32``; its data is in `io_data`."""
    one = machine(Out(0x1234, 0xBEEF, 2), In(0xFFF0, 4))
    vcpu, backend = lane(one), one.vm.vcpus[0].backend
    for is_out, port, size in ((True, 0x1234, 2), (False, 0xFFF0, 4)):
        kind = vcpu.call(one.vm.vcpus[0].backend.run, "a port access")
        expect(kind == ExitKind.IO, f"`run` returned {kind!r} for a port access; due was ExitKind.IO (0)")
        due_word = pack_io(is_out=is_out, size=size, port=port)
        word = backend.record[0]
        expect(word == due_word, f"word 0 of the record is {word:#x} for a port access; due was {due_word:#x}")
        if is_out:
            data = bytes(backend.io_data[:size])
            expect(data == b"\xef\xbe", f"`io_data` begins with {data.hex(' ')} for 0xbeef; due was ef be")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_exits_store_to_a_hole_gives_address_size_and_value(machine: MachineFactory, lane: Lanes, size: int) -> None:
    """A store where nothing is mapped comes out as one MMIO exit with the address, the size and the whole value."""
    address = HOLE + 0x40
    one = machine(Store(address, low(size), size))
    found = lane(one).run()
    due(found, MmioWrite, f"at a store of {size} bytes to a hole", address=address, size=size, value=low(size))
    due(lane(one).run(), Halt, "after the last operation")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_exits_load_from_a_hole_gives_address_and_size_and_the_guest_reads_the_reply(
    machine: MachineFactory, lane: Lanes, size: int
) -> None:
    """A load where nothing is mapped comes out as one MMIO exit; the guest reads word 1 of the record at the next
    `run`."""
    address = HOLE + 0x88
    vcpu = lane(machine(Load(address, size, expect=low(size)), Out(PORT, ERRORS)))
    found = due(vcpu.run(), MmioRead, f"at a load of {size} bytes from a hole", address=address, size=size)
    found.reply(low(size))
    report = due(vcpu.run(), IoOut, "after the reply")
    expect(report.data == b"\0", f"a guest that got {low(size):#x} from a hole by {size} bytes read something else")


def test_exits_mmio_record_is_laid_out_as_documented(machine: MachineFactory, lane: Lanes) -> None:
    """The record of an MMIO exit is the address, the data, and ``size | is_write << 32``."""
    one = machine(Store(HOLE + 4, 0x1122_3344, 4), Load(HOLE + 8, 2))
    vcpu, backend = lane(one), one.vm.vcpus[0].backend
    for address, size, is_write in ((HOLE + 4, 4, 1), (HOLE + 8, 2, 0)):
        kind = vcpu.call(backend.run, "an access to a hole")
        expect(kind == ExitKind.MMIO, f"`run` returned {kind!r} for an access to a hole; due was ExitKind.MMIO (1)")
        words = tuple(backend.record[:3])
        expect(words[0] == address, f"word 0 of the record is {words[0]:#x}; the access was at {address:#x}")
        shape = size | is_write << 32
        expect(words[2] == shape, f"word 2 of the record is {words[2]:#x} for an access; due was {shape:#x}")
        if is_write:
            expect(words[1] & 0xFFFF_FFFF == 0x1122_3344, f"word 1 is {words[1]:#x} for a write of 0x11223344")


def test_exits_record_stays_where_it_is(machine: MachineFactory, lane: Lanes) -> None:
    """`record` is a view of at least three 64-bit words and `io_data` one of bytes, the same as long as the vCPU is."""
    one = machine(Out(PORT, 1), Store(HOLE, 1))
    backend = one.vm.vcpus[0].backend
    record, data = backend.record, backend.io_data
    play(lane(one))
    expect(backend.record is record, "`record` is another object after a run; vCPU threads keep the first")
    expect(backend.io_data is data, "`io_data` is another object after a run; vCPU threads keep the first")
    expect(record.itemsize == 8 and len(record) >= 3, f"`record` has {len(record)} items of {record.itemsize} bytes")
    expect(data.itemsize == 1 and len(data) >= 4, f"`io_data` has {len(data)} items of {data.itemsize} bytes")
    expect(not (record.readonly or data.readonly), "`record` or `io_data` is read-only; replies are written there")


def test_exits_come_in_the_order_of_the_program(machine: MachineFactory, lane: Lanes) -> None:
    """Exits come one at a time, in the order of the operations, and none is left out or repeated."""
    accesses = [Out(PORT + n % 3, n) if n % 2 else Store(HOLE + 8 * n, n) for n in range(40)]
    exits = play(lane(machine(*accesses)))
    due_texts = [
        shown(IoOut(PORT + n % 3, 1, 1, bytes((n,))) if n % 2 else MmioWrite(HOLE + 8 * n, 4, n)) for n in range(40)
    ]
    for found, wanted in zip(map(shown, exits), due_texts, strict=False):
        expect(found == wanted, f"of 40 accesses, one came out as {found}; due was {wanted}")
    expect(len(exits) == 40, f"40 accesses came out as {len(exits)} exits")


def test_exits_locked_add_to_a_hole_is_a_read_and_a_write(machine: MachineFactory, lane: Lanes) -> None:
    """A read-modify-write where nothing is mapped comes out as a read, and then a write of what it makes of the
    reply."""
    vcpu = lane(machine(Add(HOLE, 5, 4)))
    due(vcpu.run(), MmioRead, "at a locked addition to a hole", address=HOLE, size=4).reply(37)
    due(vcpu.run(), MmioWrite, "after the reply to a locked addition", address=HOLE, size=4, value=42)
    due(vcpu.run(), Halt, "after the last operation")


def test_exits_end_of_a_program_is_halt(machine: MachineFactory, lane: Lanes) -> None:
    """A guest that halts comes out as HALT, and as nothing else."""
    due(lane(machine(Store(0x30_0000, 1))).run(), Halt, "at the end of a program")


def test_exits_fetch_from_a_hole_is_a_failure_that_is_described(machine: MachineFactory, lane: Lanes) -> None:
    """Code where nothing is mapped cannot be executed: INTERNAL_ERROR or SHUTDOWN, with a description."""
    one = machine(Fetch(HOLE))
    found = lane(one).run("an instruction fetch from a hole")
    expect(
        isinstance(found, (InternalError, Shutdown)),
        f"at an instruction fetch from a hole the vCPU came out with {shown(found)}; due was InternalError",
    )
    vcpu: Vcpu = one.vm.vcpus[0]
    expect(vcpu.backend.describe(), "`describe` says nothing of an instruction fetch from a hole")
    place = vcpu.backend.fault_address()
    expect(place in (None, HOLE), f"`fault_address` is {place!r} for an instruction fetch from {HOLE:#x}")


def test_exits_fetch_finds_the_code_that_is_there_now(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """Code is executed as it is in memory by then: not as it was there before, in a region that has gone, or before the
    host wrote there."""
    one, page = machine(), claims.page_size
    vcpu, regions = lane(one), [MemoryRegion.ram(f"code{n}", page) for n in range(3)]
    for region, byte in zip(regions, (RETURN_BYTE, HALT_BYTE, RETURN_BYTE), strict=True):
        region.write(0x40, bytes((byte,)))
    program = GuestProgram([Fetch(HOLE + 0x40), Out(0x80, 1)])
    for turn, region in enumerate(regions):
        one.memory.add(region, at=HOLE)
        one.load(program)
        found = vcpu.run(f"code in region {turn + 1} of 3 in one place")
        if region is regions[1]:
            what = "a guest returned from code that was there before, in a region that has gone"
            expect(not isinstance(found, IoOut), what)
        else:
            due(found, IoOut, f"after code in region {turn + 1} of 3 in one place")
        one.memory.remove(region)
    one.memory.add(regions[0], at=HOLE)
    one.memory.write(HOLE + 0x40, bytes((HALT_BYTE,)))
    one.load(program)
    expect(not isinstance(vcpu.run(), IoOut), "a guest returned from code that the host had written over")
