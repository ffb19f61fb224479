"""The mock's vCPU: what each operation does, what it comes out with, and how it goes on."""

from collections.abc import Callable

import pytest

from accel.errors import CapabilityError, StateError
from accel.exits import (
    Exit,
    FailEntry,
    Halt,
    InternalError,
    Interrupted,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Shutdown,
)
from accel.memory.region import MemoryRegion
from accel.program import ERRORS, MAX_DEPTH, RETURN_BYTE, Add, Fetch, GuestProgram, In, Load, Loop, Op, Out, Store
from accel.program import Halt as HaltOp
from accel.vm import Vcpu, Vm
from accel_mock.vcpu import MockVcpu

HOLE = 0x10000
ROM = 0x40000
Start = Callable[..., Exit]

REPORT = Out(0xF4, ERRORS)


def _errors(found: Exit) -> int:
    assert isinstance(found, IoOut)
    assert found.port == REPORT.port
    return int.from_bytes(found.data, "little")


@pytest.fixture
def rom(vm: Vm) -> MemoryRegion:
    """A page of ROM full of returns at `ROM`."""
    region = MemoryRegion.rom("rom", bytes([RETURN_BYTE]) * 4096)
    vm.memory.add(region, at=ROM)
    return region


# memory


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_mock_vcpu_store_in_ram_reaches_the_host_without_an_exit(vm: Vm, start: Start, size: int) -> None:
    value = 0x8877665544332211 & (1 << 8 * size) - 1
    assert start(Store(0x2001, value, size)) == Halt()
    assert vm.memory.read(0x2000, 10) == b"\0" + value.to_bytes(size, "little").ljust(9, b"\0")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_mock_vcpu_load_counts_what_is_not_expected(vm: Vm, start: Start, size: int) -> None:
    vm.memory.write(0x2000, bytes(range(1, 9)))
    value = int.from_bytes(bytes(range(1, size + 1)), "little")
    right, wrong = Load(0x2000, size, expect=value), Load(0x2000, size, expect=value ^ 1)
    assert _errors(start(right, wrong, Load(0x2000, size), wrong, REPORT)) == 2


def test_mock_vcpu_load_in_a_hole_exits_and_takes_the_reply(vcpu: Vcpu, start: Start) -> None:
    found = start(Load(HOLE, 4, expect=0x11223344), Load(HOLE, 4, expect=0), REPORT)
    assert isinstance(found, MmioRead)
    assert (found.address, found.size) == (HOLE, 4)
    found.reply(0xFF_1122_3344)
    again = vcpu.run()
    assert isinstance(again, MmioRead)
    again.reply(1)
    assert _errors(vcpu.run()) == 1


def test_mock_vcpu_store_in_a_hole_exits_with_the_value(vcpu: Vcpu, start: Start) -> None:
    assert start(Store(HOLE, 0xABCD, 2)) == MmioWrite(HOLE, 2, 0xABCD)
    assert vcpu.run() == Halt()


def test_mock_vcpu_store_in_rom_exits_and_changes_nothing(rom: MemoryRegion, vcpu: Vcpu, start: Start) -> None:
    value = int.from_bytes(bytes([RETURN_BYTE]) * 4, "little")
    assert start(Store(ROM, 0, 4), Load(ROM, 4, expect=value), REPORT) == MmioWrite(ROM, 4, 0)
    assert _errors(vcpu.run()) == 0


def test_mock_vcpu_access_across_pages_exits_for_each_part_without_memory(vm: Vm, vcpu: Vcpu, start: Start) -> None:
    vm.memory.write(HOLE - 3, b"\x11\x22\x33")
    found = start(Store(HOLE - 3, 0x8877665544332211, 8), Load(HOLE - 3, 8, expect=0xEE332211), REPORT)
    assert found == MmioWrite(HOLE, 5, 0x8877665544)
    assert vm.memory.read(HOLE - 3, 3) == b"\x11\x22\x33"
    again = vcpu.run()
    assert isinstance(again, MmioRead)
    assert (again.address, again.size) == (HOLE, 5)
    again.reply(0xEE)
    assert _errors(vcpu.run()) == 0


def test_mock_vcpu_access_across_two_missing_pages_exits_twice(vcpu: Vcpu, start: Start) -> None:
    edge = HOLE + 0x1000
    found = start(Load(edge - 2, 4, expect=0x44332211), REPORT)
    for address, reply in ((edge - 2, 0x2211), (edge, 0x4433)):
        assert isinstance(found, MmioRead)
        assert (found.address, found.size) == (address, 2)
        found.reply(reply)
        found = vcpu.run()
    assert _errors(found) == 0


def test_mock_vcpu_access_across_two_slots_of_ram_does_not_exit(vm: Vm, start: Start) -> None:
    vm.memory.add(MemoryRegion.ram("more", 0x1000), at=HOLE)
    edge = Store(HOLE - 1, 0x2211, 2)
    assert _errors(start(edge, Load(HOLE - 1, 2, expect=0x2211), REPORT)) == 0
    assert vm.memory.read(HOLE - 1, 2) == b"\x11\x22"


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_mock_vcpu_add_wraps_at_its_size(vm: Vm, start: Start, size: int) -> None:
    vm.memory.write(0x2000, b"\xff" * 16)
    assert start(Add(0x2000, 3, size)) == Halt()
    assert vm.memory.read(0x2000, 9) == b"\x02".ljust(size, b"\0") + b"\xff" * (9 - size)


def test_mock_vcpu_add_in_a_hole_is_a_read_and_a_write(vcpu: Vcpu, start: Start) -> None:
    found = start(Add(HOLE, 3, 2))
    assert isinstance(found, MmioRead)
    found.reply(0xFFFF)
    assert vcpu.run() == MmioWrite(HOLE, 2, 2)
    assert vcpu.run() == Halt()


def test_mock_vcpu_add_in_rom_reads_it_and_exits_for_the_write(rom: MemoryRegion, vcpu: Vcpu, start: Start) -> None:
    assert start(Add(ROM, 1, 1)) == MmioWrite(ROM, 1, RETURN_BYTE + 1)


def test_mock_vcpu_add_begun_in_a_hole_writes_to_memory_that_came_meanwhile(vm: Vm, vcpu: Vcpu, start: Start) -> None:
    found = start(Add(HOLE, 3, 2))
    assert isinstance(found, MmioRead)
    found.reply(5)
    vm.memory.add(MemoryRegion.ram("late", 0x1000), at=HOLE)
    assert vcpu.run() == Halt()
    assert vm.memory.read(HOLE, 2) == b"\x08\0"


# code


def test_mock_vcpu_fetch_of_a_return_goes_on(rom: MemoryRegion, vm: Vm, start: Start) -> None:
    assert start(Store(0x3000, RETURN_BYTE, 1), Fetch(0x3000), Fetch(ROM)) == Halt()


def test_mock_vcpu_fetch_from_a_hole_is_an_internal_error_there(vm: Vm, vcpu: Vcpu, start: Start) -> None:
    found = start(Fetch(HOLE))
    assert isinstance(found, InternalError)
    assert f"{HOLE:#x}" in found.detail
    assert vcpu.backend.fault_address() == HOLE
    # As on KVM, the operation is tried again.
    vm.memory.add(MemoryRegion.rom("late", bytes([RETURN_BYTE]), 0x1000), at=HOLE)
    assert vcpu.run() == Halt()


def test_mock_vcpu_fetch_of_another_instruction_shuts_down(vcpu: Vcpu, start: Start) -> None:
    found = start(Fetch(0x3000))
    assert isinstance(found, Shutdown)
    assert "0x00" in found.detail
    assert vcpu.backend.fault_address() is None


# ports


@pytest.mark.parametrize("size", [1, 2, 4])
def test_mock_vcpu_out_exits_with_port_and_data(vcpu: Vcpu, start: Start, size: int) -> None:
    value = 0x44332211 & (1 << 8 * size) - 1
    assert start(Out(0x3F8, value, size)) == IoOut(0x3F8, size, 1, value.to_bytes(size, "little"))
    assert vcpu.run() == Halt()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_mock_vcpu_in_exits_and_compares_the_reply(vcpu: Vcpu, start: Start, size: int) -> None:
    value = 0x44332211 & (1 << 8 * size) - 1
    found = start(In(0x60, size, expect=value), In(0x60, size, expect=value), In(0x60, size), REPORT)
    for reply in (value, value ^ 1, 0):
        assert isinstance(found, IoIn)
        assert (found.port, found.size, found.count) == (0x60, size, 1)
        found.reply(reply)
        found = vcpu.run()
    assert _errors(found) == 1


@pytest.mark.parametrize(("size", "shown"), [(1, 0xFF), (2, 300), (4, 300)])
def test_mock_vcpu_error_count_is_saturated_to_the_size(start: Start, size: int, shown: int) -> None:
    found = start(Loop((Load(0x2000, expect=1),), 300), Out(0xF4, ERRORS, size))
    assert _errors(found) == shown


# loops and the end


def test_mock_vcpu_nested_loops_run_as_often_as_they_say(vm: Vm, start: Start) -> None:
    ops = Loop((Add(0x2000), Loop((Add(0x2004), Loop((Add(0x2008),), 5)), 3), Loop((Add(0x200C),), 2)), 4)
    assert start(ops, Loop((Add(0x2000),), 10)) == Halt()
    counts = [int.from_bytes(vm.memory.read(0x2000 + 4 * n, 4), "little") for n in range(4)]
    assert counts == [14, 12, 60, 8]


def test_mock_vcpu_loops_to_the_limit_of_nesting_run(vm: Vm, start: Start) -> None:
    op: Op = Add(0x2000)
    for _ in range(MAX_DEPTH):
        op = Loop((op,), 2)
    assert start(op) == Halt()
    assert vm.memory.read(0x2000, 4) == (2**MAX_DEPTH).to_bytes(4, "little")


def test_mock_vcpu_end_and_halt_stay_halted(vcpu: Vcpu, start: Start) -> None:
    for ops in ((), (HaltOp(), Out(0xE9, 1))):
        assert start(*ops) == Halt()
        assert vcpu.run() == Halt()


def test_mock_vcpu_without_a_program_fails_to_enter(vcpu: Vcpu) -> None:
    assert isinstance(vcpu.run(), FailEntry)


def test_mock_vcpu_program_that_is_loaded_again_starts_afresh(vcpu: Vcpu, start: Start) -> None:
    assert isinstance(start(Load(0x2000, expect=1), In(0x60, 1, expect=7)), IoIn)
    assert start(Out(0xE9, 1), REPORT) == IoOut(0xE9, 1, 1, b"\1")
    assert _errors(vcpu.run()) == 0


# kicks and completion


@pytest.mark.parametrize("body", [(), (Load(0x2000),), (Load(0x2000), Store(0x2000, 1))])
def test_mock_vcpu_kick_before_run_interrupts_it_once(vcpu: Vcpu, body: tuple[Op, ...]) -> None:
    vcpu.load_program(GuestProgram((Loop(body, None),)))
    for _ in range(3):
        vcpu.kick()
        vcpu.kick()
        assert vcpu.run() == Interrupted()
    vcpu.load_program(GuestProgram((Out(0xE9, 1),)))
    assert isinstance(vcpu.run(), IoOut)


def test_mock_vcpu_kick_that_was_taken_does_not_come_back_with_a_new_slot(vcpu: Vcpu, start: Start) -> None:
    vcpu.kick()
    assert start(REPORT) == Interrupted()
    assert isinstance(vcpu.backend, MockVcpu)
    vcpu.backend.attention = True  # as a slot call does
    assert _errors(vcpu.run()) == 0


def test_mock_vcpu_kicked_after_an_exit_completes_the_access_first(vm: Vm, vcpu: Vcpu, start: Start) -> None:
    found = start(Add(HOLE, 1, 4), Store(0x2000, 1))
    assert isinstance(found, MmioRead)
    found.reply(1)
    vcpu.kick()
    assert vcpu.run() == MmioWrite(HOLE, 4, 2)
    assert vcpu.run() == Interrupted()
    assert vm.memory.read(0x2000, 4) == b"\0\0\0\0"
    assert vcpu.run() == Halt()
    assert vm.memory.read(0x2000, 4) == b"\1\0\0\0"


def test_mock_vcpu_finish_completes_the_access_and_no_more(vm: Vm, vcpu: Vcpu, start: Start) -> None:
    found = start(Load(HOLE, expect=0), Store(0x2000, 1))
    assert isinstance(found, MmioRead)
    found.reply(0)
    with pytest.raises(CapabilityError):  # after completing: there are no registers to read
        vcpu.read_state()
    assert vm.memory.read(0x2000, 4) == b"\0\0\0\0"
    assert vcpu.run() == Halt()


def test_mock_vcpu_finish_says_that_the_access_needs_another_exit(vcpu: Vcpu, start: Start) -> None:
    found = start(Add(HOLE, 1, 4))
    assert isinstance(found, MmioRead)
    found.reply(1)
    with pytest.raises(StateError):
        vcpu.read_state()
    assert vcpu.run() == MmioWrite(HOLE, 4, 2)
    assert vcpu.run() == Halt()
