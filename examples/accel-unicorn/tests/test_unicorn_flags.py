"""Flags survive what ends or interrupts an instruction right behind the one that has set them."""

from __future__ import annotations

import attrs
import pytest

import accel
from accel import Halt, MmioRead
from accel.arch.x86 import X86Table

HOLE = 0xE000_0000
HANDLER, TABLE = 0x20_0000, 0x21_0000
CF, PF, AF = 1, 4, 0x10

#: What is put into EAX, the addition or comparison, and the flags that it leaves.
CASES = {
    "add": (1, b"\x83\xc0\x02", PF),  # add eax, 2
    "carry": (0xFFFF_FFFF, b"\x83\xc0\x03", CF | AF),  # add eax, 3
    "cmp": (0x2F, b"\x83\xf8\x12", PF),  # cmp eax, 0x12
    "borrow": (0x20, b"\x83\xf8\x12", AF),
}
by_case = pytest.mark.parametrize(("value", "operation", "flags"), CASES.values(), ids=CASES)
LOAD, STORE = b"\x8b\x0b", b"\x89\x0b"  # mov ecx, [rbx]; mov [rbx], ecx
PUSHF_HLT = b"\x9c\xf4"


def prepared(bench, value: int, operation: bytes, code: bytes, **registers):
    """A guest that begins with the operation; the exclusive or before it leaves other flags."""
    one = bench(b"\x31\xd2" + operation + code, mode="long64")
    one.vcpu.write_state(attrs.evolve(one.vcpu.read_state(), rax=value, rbx=HOLE, **registers))
    return one


def pushed(one, offset: int = 0) -> int:
    state = one.vcpu.read_state()
    return int.from_bytes(one.machine.memory.read(state.rsp + offset, 8), "little") & (CF | PF | AF)


@by_case
@pytest.mark.parametrize("access", [LOAD, STORE], ids=["read", "write"])
def test_first_access_to_unassigned_memory_leaves_the_flags(bench, value, operation, flags, access):
    one = prepared(bench, value, operation, access + PUSHF_HLT)
    assert isinstance(one.exits()[-1], Halt)
    assert pushed(one) == flags


@by_case
def test_instruction_that_begins_anew_since_memory_changed_finds_the_same_flags(bench, value, operation, flags):
    one = prepared(bench, 0x55, operation, LOAD + PUSHF_HLT)
    one.exits()
    assert pushed(one) == 0
    # Now there are device pages, and the read is an exit without Python in between.
    state = one.vcpu.read_state()
    one.vcpu.write_state(attrs.evolve(state, rax=value, rip=0x10_0000, rsp=state.rsp + 8))
    found = one.vcpu.run()
    assert isinstance(found, MmioRead)
    one.machine.memory.add(accel.MemoryRegion.ram("new", "64K"), at=0x2000_0000)
    found.reply(0)
    assert one.vcpu.run() == Halt()
    assert pushed(one) == flags


@by_case
def test_exception_pushes_the_flags_of_the_instruction_before(bench, value, operation, flags):
    one = prepared(bench, value, operation, b"\xf7\xf2", idt=X86Table(TABLE, 0xFFF))  # div edx
    gate = HANDLER & 0xFFFF | 8 << 16 | 0x8E << 40 | HANDLER >> 16 << 48
    one.machine.memory.write(TABLE, gate.to_bytes(16, "little"))
    one.machine.memory.write(HANDLER, b"\xf4")
    assert one.vcpu.run() == Halt()
    assert pushed(one, 16) == flags
