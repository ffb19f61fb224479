"""x86: registers, string port accesses, and state after an access: for accelerators that execute machine code."""

from __future__ import annotations

import pytest
from attrs import evolve

from accel.arch.x86 import X86State
from accel.exits import Exit, Halt, IoIn, IoOut, MmioRead, Shutdown
from accel.machine import Machine
from accel.memory.region import MemoryRegion
from accel.program import Add, Loop, Out
from accel.testing.conformance.lane import Lane, Lanes
from accel.testing.conformance.pace import Pace
from accel.testing.conformance.verdict import due, expect, shown
from accel.testing.machines import MachineFactory

pytestmark = pytest.mark.accelerators(executes="x86")

CODE = 0x8000
DATA = 0x9000
PORT = 0x80
HLT = "f4"


def boot(one: Machine, code: str) -> None:
    """Load 16-bit code, as hex digits."""
    one.load(bytes.fromhex(code), load_address=CODE, mode="real16")


def state_of(vcpu: Lane) -> X86State:
    """Return the state, read on the vCPU's thread."""
    found = vcpu.call(vcpu.vcpu.read_state, "reading the state")
    assert isinstance(found, X86State)
    return found


def word(value: int) -> str:
    """Return a 16-bit value as it stands in code."""
    return value.to_bytes(2, "little").hex()


def test_x86_registers_are_as_the_code_leaves_them(machine: MachineFactory, lane: Lanes) -> None:
    """What code puts into registers is in the state that is read after it has halted, with RIP behind the HLT."""
    one = machine()
    code = "66b878563412 66bb21436587 b91122 ba3344 be5566 bf7788 bd99aa f9" + HLT  # mov to each register; stc; hlt
    boot(one, code)
    vcpu = lane(one)
    due(vcpu.run(), Halt, "at HLT")
    state = state_of(vcpu)
    wanted = {
        "rax": 0x1234_5678, "rbx": 0x8765_4321, "rcx": 0x2211, "rdx": 0x4433, "rsi": 0x6655, "rdi": 0x8877,
        "rbp": 0xAA99, "rip": CODE + len(bytes.fromhex(code)),
    }  # fmt: skip
    for name, value in wanted.items():
        mask = 0xFFFF if name in ("rcx", "rdx", "rsi", "rdi", "rbp") else 0xFFFF_FFFF
        found = getattr(state, name) & mask
        expect(found == value, f"{name} is {found:#x} after code that leaves {value:#x} there")
    expect(state.rflags & 1, f"RFLAGS is {state.rflags:#x} after STC")


def test_x86_registers_are_what_was_written(machine: MachineFactory, lane: Lanes) -> None:
    """`write_state` sets what `read_state` returns, and the guest goes on with it."""
    one = machine()
    boot(one, "ee" + HLT)  # out dx, al; hlt
    vcpu = lane(one)
    state = evolve(state_of(vcpu), rax=0x5A, rdx=0x3C8, rbx=0x1111_2222, rsi=0x77, rip=CODE)
    vcpu.call(lambda: vcpu.vcpu.write_state(state), "writing the state")
    found = state_of(vcpu)
    for name in ("rax", "rdx", "rbx", "rsi", "rip", "rsp", "cr0"):
        was, is_now = getattr(state, name), getattr(found, name)
        expect(was == is_now, f"{name} was written as {was:#x} and is read as {is_now:#x}")
    due(vcpu.run(), IoOut, "after AL and DX were written", port=0x3C8, data=b"\x5a")


def test_x86_state_after_a_read_has_the_reply(machine: MachineFactory, lane: Lanes) -> None:
    """`finish` completes the access of the last exit: the state then has the reply, and RIP is behind the access."""
    one = machine()
    boot(one, "ba" + word(PORT) + "ec 88c3" + HLT)  # mov dx, PORT; in al, dx; mov bl, al; hlt
    vcpu = lane(one)
    due(vcpu.run(), IoIn, "at IN", port=PORT, size=1).reply(0x9C)
    state = state_of(vcpu)
    expect(state.rax & 0xFF == 0x9C, f"AL is {state.rax & 0xFF:#x} after IN was answered with 0x9c")
    expect(state.rip == CODE + 4, f"RIP is {state.rip:#x} after IN at {CODE + 3:#x}")
    due(vcpu.run(), Halt, "after the state was read")
    expect(state_of(vcpu).rbx & 0xFF == 0x9C, "the code behind IN did not get the reply once the state was read")


def test_x86_state_after_a_memory_read_has_the_reply(machine: MachineFactory, lane: Lanes) -> None:
    """The same for a read of memory that is not there."""
    one = machine(memory="4M")
    boot(one, "b800f0 8ed8 a10001" + HLT)  # mov ax, 0xf000; mov ds, ax; mov ax, [0x100]; hlt
    one.memory.add(MemoryRegion.mmio("device", 0x1000), at=0xF_0000, priority=1)
    vcpu = lane(one)
    due(vcpu.run(), MmioRead, "at a load from a device", address=0xF_0100, size=2).reply(0xBEEF)
    found = state_of(vcpu).rax & 0xFFFF
    expect(found == 0xBEEF, f"AX is {found:#x} after a load that was answered with 0xbeef")
    due(vcpu.run(), Halt, "after the state was read")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_x86_string_writes_to_a_port_give_all_items(machine: MachineFactory, lane: Lanes, size: int) -> None:
    """REP OUTS comes out with all items, in order, in exits of one or more: each has `count` items of `size` bytes."""
    one, data = machine(), bytes(range(1, 1 + 5 * size))
    opcode = {1: "f36e", 2: "f36f", 4: "66f36f"}[size]
    boot(one, f"fc ba{word(PORT)} b90500 be{word(DATA)} {opcode}" + HLT)  # cld; mov dx, cx, si; rep outs; hlt
    one.memory.write(DATA, data)
    vcpu, written = lane(one), b""
    while not isinstance(found := vcpu.run(), Halt):
        due(found, IoOut, "at REP OUTS", port=PORT, size=size)
        assert isinstance(found, IoOut)
        fits = found.count >= 1 and len(found.data) == found.count * size
        expect(fits, f"REP OUTS came out with {found.count} items of {size} bytes and {len(found.data)} bytes")
        written += found.data
        expect(len(written) <= len(data), f"REP OUTS of 5 items of {size} bytes came out with {written.hex(' ')}")
    expect(written == data, f"REP OUTS of {data.hex(' ')} came out with {written.hex(' ')}")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_x86_string_reads_of_a_port_take_all_items(machine: MachineFactory, lane: Lanes, size: int) -> None:
    """REP INS takes an answer for each item, in order, also where one exit asks for several."""
    one, data = machine(), bytes(range(0x41, 0x41 + 6 * size))
    opcode = {1: "f36c", 2: "f36d", 4: "66f36d"}[size]
    boot(one, f"fc ba{word(PORT)} b90600 bf{word(DATA)} {opcode}" + HLT)
    vcpu, given = lane(one), 0
    while not isinstance(found := vcpu.run(), Halt):
        due(found, IoIn, "at REP INS", port=PORT, size=size)
        assert isinstance(found, IoIn)
        part = data[given : given + found.count * size]
        expect(len(part) == found.count * size, f"REP INS of 6 items asks for more, {found.count} at last")
        found.reply(part)
        given += len(part)
    read = one.memory.read(DATA, len(data))
    expect(read == data, f"REP INS was answered with {data.hex(' ')}, and memory has {read.hex(' ')}")


def test_x86_state_can_be_read_while_the_guest_runs(machine: MachineFactory, patience: float) -> None:
    """`Vcpu.call` reads the state of a running vCPU on its thread, again and again, and the guest goes on."""
    one = machine()
    pace = Pace(one, patience)
    pace.begin(Loop((Loop((Add(0x30_0000, 1, 8),), 100), Out(pace.port, 0)), None))
    for _ in range(5):
        pace.wait()
        state = one.vm.vcpus[0].call(one.vm.vcpus[0].read_state)
        expect(state.efer & 0x400, f"EFER is {state.efer:#x} in a guest in long mode")
        expect(0x10_0000 <= state.rip < 0x20_0000, f"RIP is {state.rip:#x} in a program that lies at 0x100000")
    pace.wait()
    pace.end()
    added = int.from_bytes(one.memory.read(0x30_0000, 8), "little")
    expect(pace.count * 100 <= added, f"a guest whose state was read made {added} additions in {pace.count} rounds")


def test_x86_triple_fault_is_a_shutdown(machine: MachineFactory, lane: Lanes) -> None:
    """A fault that cannot be delivered comes out as SHUTDOWN."""
    one = machine()
    one.load(b"\x0f\x0b\xf4", mode="long64")  # ud2; hlt: there is no interrupt table
    found: Exit = lane(one).run()
    expect(isinstance(found, Shutdown), f"at a triple fault the vCPU came out with {shown(found)}; due was Shutdown")
