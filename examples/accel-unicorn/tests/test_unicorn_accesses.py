"""Accesses that no memory serves: their shapes, their answers, and what happens when memory changes meanwhile."""

from __future__ import annotations

import attrs
import pytest

import accel
from accel import Halt, IoIn, IoOut, MmioRead, MmioWrite

HOLE = 0xE000_0000


def mov(register: int, value: int) -> bytes:
    """Mov r64, imm64."""
    return bytes((0x48, 0xB8 + register)) + value.to_bytes(8, "little")


RAX, RCX, RDX, RBX, RSP, RSI, RDI = 0, 1, 2, 3, 4, 6, 7
HLT = b"\xf4"


def shapes(exits):
    found = []
    for one in exits:
        match one:
            case MmioRead(address=address, size=size):
                found.append(("r", address, size))
            case MmioWrite(address=address, size=size, value=value):
                found.append(("w", address, size, value))
    return found


def test_access_of_every_size_comes_out_whole(bench):
    code = mov(RBX, HOLE) + mov(RAX, 0x1122_3344_5566_7788)
    code += b"\x88\x03\x66\x89\x43\x02\x89\x43\x04\x48\x89\x43\x08"  # mov [rbx], al; [rbx+2], ax; eax; rax
    code += b"\x8a\x0b\x66\x8b\x4b\x02\x8b\x4b\x04\x48\x8b\x4b\x08"
    one = bench(code + HLT, mode="long64")
    assert shapes(one.exits(0xA1A2_A3A4_A5A6_A7A8)) == [
        ("w", HOLE, 1, 0x88),
        ("w", HOLE + 2, 2, 0x7788),
        ("w", HOLE + 4, 4, 0x5566_7788),
        ("w", HOLE + 8, 8, 0x1122_3344_5566_7788),
        ("r", HOLE, 1),
        ("r", HOLE + 2, 2),
        ("r", HOLE + 4, 4),
        ("r", HOLE + 8, 8),
    ]
    assert one.vcpu.read_state().rcx == 0xA1A2_A3A4_A5A6_A7A8


@pytest.mark.parametrize("offset", [0x1001, 0x1003, 0x1007])
def test_unaligned_access_within_a_page_is_one_exit(bench, offset):
    at = HOLE + offset
    code = mov(RBX, at) + mov(RAX, 0x1122_3344_5566_7788) + b"\x48\x89\x03\x48\x8b\x0b\x48\x89\x03\x48\x8b\x0b" + HLT
    one = bench(code, mode="long64")
    pair = [("w", at, 8, 0x1122_3344_5566_7788), ("r", at, 8)]
    assert shapes(one.exits(0x0102_0304_0506_0708)) == 2 * pair
    assert one.vcpu.read_state().rcx == 0x0102_0304_0506_0708


@pytest.mark.parametrize("offset", [0x1001, 0x1003, 0x1006])
@pytest.mark.parametrize("size", [2, 4])
def test_unaligned_read_of_fewer_bytes_finds_all_of_them(bench, offset, size):
    at, prefix = HOLE + offset, b"\x66" * (size == 2)
    one = bench(mov(RBX, at) + 2 * (prefix + b"\x8b\x0b") + HLT, mode="long64")  # mov cx or ecx, [rbx]
    assert shapes(one.exits(0x0506_0708)) == 2 * [("r", at, size)]
    assert one.vcpu.read_state().rcx == 0x0506_0708 & (1 << 8 * size) - 1


def test_access_across_two_device_pages_is_two_exits(bench):
    at = HOLE + 0xFFD
    code = mov(RBX, at) + mov(RAX, 0x1122_3344_5566_7788) + 2 * b"\x48\x89\x03\x48\x8b\x0b" + HLT
    one = bench(code, mode="long64")
    four = [("w", at, 3, 0x66_7788), ("w", at + 3, 5, 0x11_2233_4455), ("r", at, 3), ("r", at + 3, 5)]
    assert shapes(one.exits(0x0807_0605_0403_0201)) == 2 * four
    assert one.vcpu.read_state().rcx == 0x0504_0302_0103_0201


def test_read_modify_write_of_a_device_is_a_read_and_a_write(bench):
    code = mov(RBX, HOLE) + b"\xf0\x83\x03\x05" + HLT  # lock add dword [rbx], 5
    assert shapes(bench(code, mode="long64").exits(10)) == [("r", HOLE, 4), ("w", HOLE, 4, 15)]


def test_string_copy_between_devices_makes_each_access_once(bench):
    code = mov(RSI, HOLE) + mov(RDI, HOLE + 0x10_0000) + mov(RCX, 3) + b"\xf3\xa5" + HLT  # rep movsd
    one = bench(code, mode="long64")
    assert shapes(one.exits(7)) == [
        shape for turn in range(3) for shape in (("r", HOLE + 4 * turn, 4), ("w", HOLE + 0x10_0000 + 4 * turn, 4, 7))
    ]
    state = one.vcpu.read_state()
    assert (state.rsi, state.rdi, state.rcx) == (HOLE + 12, HOLE + 0x10_000C, 0)


def test_push_and_call_on_a_device_stack_write_there(bench):
    code = mov(RSP, HOLE + 0x100) + b"\x6a\x05\xe8\x00\x00\x00\x00" + HLT  # push 5; call next
    assert shapes(bench(code, mode="long64").exits()) == [
        ("w", HOLE + 0xF8, 8, 5),
        ("w", HOLE + 0xF0, 8, 0x10_0000 + 10 + 2 + 5),
    ]


def test_repeated_port_instructions_come_out_item_by_item(bench):
    code = mov(RSI, 0x20_0000) + mov(RDI, 0x20_1000) + mov(RCX, 2) + mov(RDX, 0x77)
    code += b"\xf3\x66\x6f" + mov(RCX, 2) + b"\xf3\x6c" + HLT  # rep outsw; rep insb
    one = bench(code, mode="long64")
    one.machine.memory.write(0x20_0000, bytes(range(1, 5)))
    ports = [each for each in one.exits(9) if isinstance(each, IoIn | IoOut)]
    assert [(type(each), each.port, each.size, each.count) for each in ports] == [
        (IoOut, 0x77, 2, 1),
        (IoOut, 0x77, 2, 1),
        (IoIn, 0x77, 1, 1),
        (IoIn, 0x77, 1, 1),
    ]
    assert [each.data for each in ports[:2]] == [b"\x01\x02", b"\x03\x04"]
    assert one.machine.memory.read(0x20_1000, 3) == b"\x09\x09\x00"


def test_answer_completes_the_instruction_and_nothing_more_before_state_is_read(bench):
    code = mov(RBX, HOLE) + mov(RCX, 1) + b"\x8b\x03\xff\xc1\xff\xc1" + HLT  # mov eax, [rbx]; inc ecx twice
    one = bench(code, mode="long64")
    found = one.vcpu.run()
    found.reply(0x1234)
    state = one.vcpu.read_state()
    assert (state.rax, state.rcx, state.rip) == (0x1234, 1, 0x10_0000 + 22)
    assert one.vcpu.run() == Halt()
    assert one.vcpu.read_state().rcx == 3


def test_kick_at_an_exit_is_looked_at_after_the_access_is_complete(bench):
    one = bench(mov(RBX, HOLE) + b"\x8b\x03\xff\xc0" + HLT, mode="long64")
    one.vcpu.run().reply(41)
    one.vcpu.kick()
    assert one.vcpu.run() == accel.Interrupted()
    assert one.vcpu.read_state().rax == 41
    assert one.vcpu.run() == Halt()
    assert one.vcpu.read_state().rax == 42


@pytest.mark.parametrize("again", [False, True], ids=["first-access", "later-access"])
def test_memory_that_changes_while_a_device_is_read_is_seen_by_the_same_instruction(bench, again):
    """The instruction reads a device and writes RAM that moves away meanwhile: no access twice, no write to the old."""
    code = mov(RSI, HOLE) + mov(RDI, 0x1000_0000) + (b"\x8a\x06" if again else b"") + b"\xa5" + HLT  # movsd
    one = bench(code, mode="long64")
    ram = accel.MemoryRegion.ram("moving", "64K")
    one.machine.memory.add(ram, at=0x1000_0000)
    if again:
        one.vcpu.run().reply(0)
    found = one.vcpu.run()
    found.reply(0x55AA)
    with one.machine.transaction():
        one.machine.memory.remove(ram)
        one.machine.memory.add(other := accel.MemoryRegion.ram("new", "64K"), at=0x1000_0000)
    assert one.vcpu.run() == Halt()
    assert (ram.read(0, 4), other.read(0, 2)) == (bytes(4), b"\xaa\x55")


def test_device_that_maps_ram_over_its_neighbour_while_it_is_written_is_written_once(bench):
    code = mov(RBX, HOLE) + b"\xc6\x03\x01\xc6\x03\x02\x8a\x83\x00\x10\x00\x00" + HLT  # write twice, read a page on
    one = bench(code, mode="long64")
    ram = accel.MemoryRegion.ram("window", "4K")
    ram.write(0, b"\x77")
    written = []

    def write(offset: int, value: int, size: int) -> None:
        written.append(value)
        if value == 2:
            one.machine.memory.add(ram, at=HOLE + 0x1000)

    one.machine.memory.add(accel.MemoryRegion.mmio("switch", 0x1000, write=write), at=HOLE)
    one.machine.run(timeout=60)
    assert written == [1, 2]
    assert one.vcpu.read_state().rax & 0xFF == 0x77


def test_rom_keeps_its_bytes_and_tells_of_each_write(bench):
    code = mov(RBX, 0x1000_0000) + b"\xc7\x43\x02\x01\x00\x00\x00\xc6\x03\x02\x8b\x03" + HLT
    one = bench(code, mode="long64")
    one.machine.memory.add(accel.MemoryRegion.rom("rom", b"romromrom", "4K"), at=0x1000_0000)
    assert shapes(one.exits()) == [("w", 0x1000_0002, 4, 1), ("w", 0x1000_0000, 1, 2)]
    assert one.vcpu.read_state().rax == int.from_bytes(b"romr", "little")


def test_touching_more_unassigned_memory_than_device_pages_are_kept_for_goes_on(bench):
    # mov al, [rbx]; add rbx, 4 MiB; dec ecx; jnz
    code = mov(RBX, HOLE - (1 << 30)) + mov(RCX, 300) + b"\x8a\x03\x48\x81\xc3\x00\x00\x40\x00\xff\xc9\x75\xf3" + HLT
    one = bench(code, mode="long64")
    assert len(shapes(one.exits(1))) == 300
    assert len(one.vcpu.backend.engine._chunks) <= 64


@pytest.mark.parametrize(
    ("opcode", "immediate"),
    [(b"\x81\x3d", 4), (b"\x83\x3d", 1), (b"\xf7\x05", 4), (b"\x0f\xba\x25", 1), (b"\x3b\x0d", 0)],
)
def test_read_relative_to_rip_that_ends_on_a_device_is_of_what_lies_there(bench, opcode, immediate):
    end = 16 << 20  # of RAM; the read begins two bytes before it
    behind = 0x10_0000 + len(opcode) + 4 + immediate
    code = opcode + (end - 2 - behind).to_bytes(4, "little") + bytes(immediate)  # cmp, cmp, test, bt, cmp
    assert shapes(bench(code + HLT, mode="long64").exits()) == [("r", end, 2)]


@pytest.mark.parametrize("answer", [0x11, 0])
@pytest.mark.parametrize("rom", [False, True], ids=["device", "rom"])
def test_port_that_is_read_into_a_device_writes_it_once(bench, answer, rom):
    """The engine tries the write with a zero first."""
    code = mov(RDI, 0x1000_0000) + mov(RDX, 0x77) + mov(RCX, 3) + b"\xf3\x66\x6d" + HLT  # rep insw
    one = bench(code, mode="long64")
    if rom:
        one.machine.memory.add(accel.MemoryRegion.rom("rom", b"", "4K"), at=0x1000_0000)
    found = one.exits(answer)
    assert [type(each) for each in found] == 3 * [IoIn, MmioWrite] + [Halt]
    assert shapes(found) == [("w", 0x1000_0000 + 2 * number, 2, answer) for number in range(3)]


@pytest.mark.parametrize("offset", [0x1001, 0xFFE])
def test_port_that_is_read_into_a_device_at_an_odd_address_or_across_pages_writes_each_page_once(bench, offset):
    one = bench(mov(RDI, HOLE + offset) + mov(RDX, 0x77) + 2 * b"\x6d" + HLT, mode="long64")  # insd twice
    wanted = [("w", HOLE + offset + 4 * number, 4, 0x1111_1111) for number in range(2)]
    if offset == 0xFFE:
        wanted[:1] = [("w", HOLE + 0xFFE, 2, 0x1111), ("w", HOLE + 0x1000, 2, 0x1111)]
    found = one.exits(0x1111_1111)
    assert shapes(found) == wanted
    assert sum(isinstance(each, IoIn) for each in found) == 2


def test_port_that_is_read_into_a_device_is_read_once_whatever_the_device_does_to_memory(bench):
    one = bench(mov(RDI, HOLE) + mov(RDX, 0x77) + b"\x6c\x6c\xe4\x78" + HLT, mode="long64")  # insb twice; in al, 0x78
    written, ports = [], []

    def write(offset: int, value: int, size: int) -> None:
        written.append((offset, value))
        one.machine.memory.add(accel.MemoryRegion.ram(f"ram {offset}", "4K"), at=HOLE + 0x1000 * len(written))

    def read(access: accel.PortAccess) -> None:
        ports.append(access.port)
        access.reply(0x20 + len(ports))

    one.machine.port(0x77, 2)(read)

    one.machine.memory.add(accel.MemoryRegion.mmio("device", 0x1000, write=write), at=HOLE)
    one.machine.run(timeout=60)
    assert (written, ports) == ([(0, 0x21), (1, 0x22)], [0x77, 0x77, 0x78])
    assert one.vcpu.read_state().rax == 0x23


def test_zeros_that_an_instruction_writes_are_told_each_time(bench):
    # mov [rbx], al; out 0x42, al; jmp back
    one = bench(mov(RBX, HOLE) + b"\x88\x03\xe6\x42\xeb\xfa", mode="long64")
    assert shapes(one.vcpu.run() for _ in range(6)) == 3 * [("w", HOLE, 1, 0)]


def test_widening_read_that_ends_on_a_device_is_of_its_own_size(bench):
    end = 16 << 20  # of RAM
    one = bench(mov(RBX, end - 3) + b"\x48\x63\x0b" + HLT, mode="long64")  # movsxd rcx, dword [rbx]
    assert shapes(one.exits(0x80)) == [("r", end, 1)]
    assert one.vcpu.read_state().rcx == 0xFFFF_FFFF_8000_0000


def test_ins_where_another_instruction_wrote_zeros_writes_once(bench):
    one = bench(b"\xc6\x03\x00" + HLT, mode="long64")  # mov byte [rbx], 0
    start = attrs.evolve(one.vcpu.read_state(), rbx=HOLE, rdi=HOLE)
    for code, expected in ((b"\xc6\x03\x00", [("w", HOLE, 1, 0)]), (b"\x6c\x90\x90", [("w", HOLE, 1, 9)])):  # insb
        one.machine.memory.write(0x10_0000, code)
        one.vcpu.write_state(start)
        assert shapes(one.exits(9)) == expected


def test_string_read_that_ends_on_a_device_is_not_mistaken_for_what_follows_it(bench):
    end = 16 << 20  # of RAM
    code = mov(RSI, end - 3) + mov(RDI, 0x20_0000) + b"\xa5\x66\xff\xca" + HLT  # movsd; dec dx, which is also [rsi - 1]
    assert shapes(bench(code, mode="long64").exits()) == [("r", end, 1)]
