"""Exceptions through the guest's own tables, in each mode, and what comes of a table that is no good."""

from __future__ import annotations

import attrs
import pytest
from accel_unicorn import interrupts

import accel
from accel.arch.x86 import X86Segment, X86Table

HANDLER, TABLE, GDT, TSS, STACK = 0x20_0000, 0x21_0000, 0x22_0000, 0x23_0000, 0x25_0000


def long_gate(handler: int, *, kind: int = 0xE, dpl: int = 0, stack: int = 0, selector: int = 8) -> bytes:
    low = (
        handler & 0xFFFF
        | selector << 16
        | stack << 32
        | (0x80 | dpl << 5 | kind) << 40
        | (handler >> 16 & 0xFFFF) << 48
    )
    return low.to_bytes(8, "little") + (handler >> 32).to_bytes(8, "little")


def gate32(handler: int, *, kind: int = 0xE, dpl: int = 0, selector: int = 8) -> bytes:
    return (handler & 0xFFFF | selector << 16 | (0x80 | dpl << 5 | kind) << 40 | (handler >> 16) << 48).to_bytes(
        8, "little"
    )


def in_long_mode(bench, code: bytes, gates: dict[int, bytes], handler: bytes = b"\xe6\x42\xf4", **registers):
    """A guest of 64-bit code whose handler writes to port 0x42."""
    one = bench(code, mode="long64")
    write = one.machine.memory.write
    write(HANDLER, handler)
    for vector, gate in gates.items():
        write(TABLE + 16 * vector, gate)
    state = one.vcpu.read_state()
    state = attrs.evolve(state, idt=X86Table(TABLE, 0xFFF), rsp=STACK, **registers)
    one.vcpu.write_state(state)
    return one


def frame(one, count: int, size: int = 8) -> list[int]:
    state = one.vcpu.read_state()
    data = one.machine.memory.read(state.rsp, count * size)
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


def test_exception_in_long_mode_enters_the_handler_with_its_frame(bench):
    one = in_long_mode(bench, b"\x31\xc9\x90\xf7\xf1", {0: long_gate(HANDLER)}, rflags=0x202)  # div ecx
    assert isinstance(one.vcpu.run(), accel.IoOut)
    rip, cs, flags, rsp, ss = frame(one, 5)
    assert (rip, cs, rsp, ss) == (0x10_0003, 8, STACK, 0x10)
    assert flags & 0x200
    assert not one.vcpu.read_state().rflags & 0x200


def test_trap_gate_leaves_interrupts_on(bench):
    one = in_long_mode(bench, b"\x0f\x0b", {6: long_gate(HANDLER, kind=0xF)}, rflags=0x202)  # ud2
    assert isinstance(one.vcpu.run(), accel.IoOut)
    assert one.vcpu.read_state().rflags & 0x200


def test_handler_that_returns_goes_on_behind_the_int(bench):
    one = in_long_mode(bench, b"\xcd\x30\xe6\x43\xf4", {0x30: long_gate(HANDLER)}, handler=b"\xff\xc0\x48\xcf")
    found = one.vcpu.run()  # inc eax; iretq
    assert (found.port, found.data) == (0x43, b"\x01")
    assert one.vcpu.read_state().rsp == STACK


def test_breakpoint_returns_behind_itself(bench):
    one = in_long_mode(bench, b"\xcc\xe6\x43\xf4", {3: long_gate(HANDLER)}, handler=b"\xff\xc0\x48\xcf")
    assert one.vcpu.run().data == b"\x01"


def test_page_fault_tells_address_and_cause_and_is_tried_again(bench):
    # mov [rbx], al to a page that is not there; the handler maps it (a large page over itself) and returns
    one = in_long_mode(bench, b"\x88\x03\xe6\x43\xf4", {14: long_gate(HANDLER)}, rbx=0x80_0000_0000, rax=0x5A)
    assert isinstance(one.vcpu.run(), accel.IoOut)
    code, rip = frame(one, 2)
    assert (code, rip, one.vcpu.read_state().cr2) == (2, 0x10_0000, 0x80_0000_0000)  # a write, not present


def test_protection_fault_has_the_selector_as_its_code(bench):
    one = in_long_mode(bench, b"\x8e\xd8", {13: long_gate(HANDLER)}, rax=0x1230)  # mov ds, ax
    assert isinstance(one.vcpu.run(), accel.IoOut)
    assert frame(one, 2) == [0x1230, 0x10_0000]


def test_interrupt_stack_table_gives_the_stack(bench):
    one = in_long_mode(
        bench,
        b"\x0f\x0b",
        {6: long_gate(HANDLER, stack=3)},
        tr=X86Segment(base=TSS, limit=0x67, selector=0x18, type=0xB, s=False),
    )
    one.machine.memory.write(TSS + 0x24 + 8 * 2, (0x26_0008).to_bytes(8, "little"))
    assert isinstance(one.vcpu.run(), accel.IoOut)
    assert one.vcpu.read_state().rsp == 0x26_0000 - 40
    assert frame(one, 5)[3] == STACK


def test_exception_from_user_mode_switches_to_the_stack_of_the_kernel(bench):
    user = X86Segment(limit=0xFFFF_FFFF, selector=0x1B, type=0xB, dpl=3, long=True, granularity=True)
    data = X86Segment(limit=0xFFFF_FFFF, selector=0x23, type=3, dpl=3, db=True, granularity=True)
    one = in_long_mode(
        bench,
        b"\xfa\xf4",  # cli: not in user mode
        {13: long_gate(HANDLER)},
        cs=user,
        ss=data,
        tr=X86Segment(base=TSS, limit=0x67, selector=0x28, type=0xB, s=False),
    )
    memory = one.machine.memory
    memory.write(TSS + 4, (0x26_0000).to_bytes(8, "little"))
    cr3 = one.vcpu.read_state().cr3
    for table in (cr3, cr3 + 0x1000):  # let user mode in
        entry = int.from_bytes(memory.read(table, 8), "little")
        memory.write(table, (entry | 4).to_bytes(8, "little"))
    table = int.from_bytes(memory.read(int.from_bytes(memory.read(cr3, 8), "little") & ~0xFFF, 8), "little") & ~0xFFF
    for number in range(4):
        entry = int.from_bytes(memory.read(table + 8 * number, 8), "little")
        memory.write(table + 8 * number, (entry | 4).to_bytes(8, "little"))
    assert isinstance(one.vcpu.run(), accel.IoOut)
    assert frame(one, 6) == [0, 0x10_0000, 0x1B, 0x1_0002, STACK, 0x23]  # RF: it is tried again
    state = one.vcpu.read_state()
    assert (state.cs.selector, state.ss.selector, state.rsp) == (8, 0, 0x26_0000 - 48)


def test_exception_without_a_gate_is_a_double_fault(bench):
    one = in_long_mode(bench, b"\x8e\xd8", {8: long_gate(HANDLER)}, rax=0x1230)  # its own gate, 13, is missing
    assert isinstance(one.vcpu.run(), accel.IoOut)
    assert frame(one, 2) == [0, 0x10_0000]


def test_exception_without_any_gate_is_a_shutdown(bench):
    one = in_long_mode(bench, b"\x0f\x0b", {})
    found = one.vcpu.run()
    assert isinstance(found, accel.Shutdown)
    assert "triple fault" in found.detail


def test_exception_whose_stack_is_nowhere_is_a_double_fault_on_another(bench):
    one = in_long_mode(
        bench,
        b"\x48\xbc\x00\x00\x00\x00\x80\x00\x00\x00\x0f\x0b",  # mov rsp, 2^39: no page there; ud2
        {6: long_gate(HANDLER), 8: long_gate(HANDLER, stack=1), 14: long_gate(HANDLER)},
        tr=X86Segment(base=TSS, limit=0x67, selector=0x18, type=0xB, s=False),
    )
    one.machine.memory.write(TSS + 0x24, (0x26_0000).to_bytes(8, "little"))
    assert isinstance(one.vcpu.run(), accel.IoOut)
    assert frame(one, 2) == [0, 0x10_000A]


def test_exception_in_protected_mode_pushes_words_of_32_bits(bench):
    one = bench(b"\xcd\x30\xe6\x43\xf4", mode="protected32")
    one.machine.memory.write(HANDLER, b"\xff\xc0\xcf")  # inc eax; iret
    one.machine.memory.write(TABLE + 8 * 0x30, gate32(HANDLER))
    one.vcpu.write_state(attrs.evolve(one.vcpu.read_state(), idt=X86Table(TABLE, 0x7FF)))
    assert one.vcpu.run().data == b"\x01"


def test_exception_in_real_mode_goes_by_the_vector_table(bench):
    one = bench(b"\xcd\x30\xe6\x43\xf4")
    one.machine.memory.write(4 * 0x30, b"\x00\x05\x00\x10")  # 1000:0500
    one.machine.memory.write(0x1_0500, b"\x40\xcf")  # inc ax; iret
    found = one.vcpu.run()
    assert (found.port, found.data) == (0x43, b"\x01")


def test_system_call_enters_the_kernel_and_returns(bench):
    # syscall; out 0x43, al; hlt. The handler: inc eax; out 0x42, al; jmp rcx (it was called from the kernel)
    one = in_long_mode(bench, b"\x0f\x05\xe6\x43\xf4", {}, handler=b"\xff\xc0\xe6\x42\xff\xe1")
    engine = one.vcpu.backend.engine
    engine.write_msr(0xC000_0080, engine.read_msr(0xC000_0080) | 1)
    engine.write_msr(0xC000_0081, 0x8 << 32)
    engine.write_msr(0xC000_0082, HANDLER)
    assert one.vcpu.run().port == 0x42
    assert one.vcpu.read_state().rcx == 0x10_0002
    assert one.vcpu.run().port == 0x43


def test_int_to_a_gate_that_user_mode_may_not_use_is_a_protection_fault(bench):
    user = X86Segment(limit=0xFFFF_FFFF, selector=0x1B, type=0xB, dpl=3, long=True, granularity=True)
    one = in_long_mode(bench, b"\xcd\x30", {0x30: long_gate(HANDLER), 13: long_gate(HANDLER)})
    state = attrs.evolve(
        one.vcpu.read_state(), cs=user, tr=X86Segment(base=TSS, limit=0x67, selector=0x28, type=0xB, s=False)
    )
    one.machine.memory.write(TSS + 4, (0x26_0000).to_bytes(8, "little"))
    behind = attrs.evolve(state, rip=state.rip + 2)
    found = interrupts.deliver(behind, 0x30, 0, one.vcpu.backend._memory, software=True)
    assert found.rip == HANDLER
    data = one.machine.memory.read(found.rsp, 16)
    assert [int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")] == [0x30 * 8 + 2, 0x10_0000]


@pytest.mark.parametrize("mode", ["long64", "protected32", "real16"])
def test_loop_of_exceptions_can_be_kicked(bench, mode):
    one = bench(b"\x0f\x0b", mode=mode)
    if mode == "real16":
        one.machine.memory.write(4 * 6, b"\x00\x7c\x00\x00")
    else:
        at, gate = (16 * 6, long_gate(0x10_0000)) if mode == "long64" else (8 * 6, gate32(0x10_0000))
        one.machine.memory.write(TABLE + at, gate)
        one.vcpu.write_state(attrs.evolve(one.vcpu.read_state(), idt=X86Table(TABLE, 0xFFF)))
    run = one.machine.start()
    run.stop()
    assert run.done


def test_exception_after_a_handled_one_is_no_double_fault(bench):
    # div ecx, three times; the handler says so and goes on behind it
    skip = b"\x48\x83\x04\x24\x02\xe6\x42\x48\xcf"  # add qword [rsp], 2; out 0x42, al; iretq
    gates = {0: long_gate(HANDLER)}
    one = in_long_mode(bench, b"\x31\xc9" + 3 * b"\xf7\xf1" + b"\xf4", gates, skip, rax=7)
    assert [type(found) for found in one.exits()] == [accel.IoOut] * 3 + [accel.Halt]


def test_exceptions_whose_handler_cannot_be_fetched_can_be_kicked(bench):
    """Page faults for ever on a stack that is always the same one: no instruction is ever begun."""
    nowhere = long_gate(0x80_0000_0000, stack=1)
    one = in_long_mode(
        bench,
        b"\x0f\x0b",
        {6: nowhere, 14: nowhere},
        tr=X86Segment(base=TSS, limit=0x67, selector=0x18, type=0xB, s=False),
    )
    one.machine.memory.write(TSS + 0x24, (0x26_0000).to_bytes(8, "little"))
    run = one.machine.start()
    one.machine.memory.add(accel.MemoryRegion.ram("more", "4K"), at=0x1000_0000)
    run.stop()
    assert run.done


def test_fault_behind_a_device_read_is_delivered_without_another_read_although_state_is_read_between(bench):
    # movsb from a device to a page that is not there
    one = in_long_mode(bench, b"\xa4", {14: long_gate(HANDLER)}, rsi=0xE000_0000, rdi=0x80_0000_0000)
    one.vcpu.run().reply(0x5A)
    assert one.vcpu.read_state().cr2 == 0x80_0000_0000
    assert isinstance(one.vcpu.run(), accel.IoOut)
    assert frame(one, 2) == [2, 0x10_0000]


def test_fetch_that_fails_behind_a_device_read_is_the_next_instruction_s(bench):
    one = in_long_mode(bench, b"\xff\x23", {14: long_gate(HANDLER)}, rbx=0xE000_0000)  # jmp [rbx]
    one.vcpu.run().reply(0x80_0000_0000)
    assert one.vcpu.read_state().rip == 0x80_0000_0000
    assert isinstance(one.vcpu.run(), accel.IoOut)
    assert frame(one, 2) == [0, 0x80_0000_0000]


@pytest.mark.parametrize("code", [b"\xcd\x06", b"\x66\xcd\x06"])
def test_int_6_returns_behind_itself_as_any_int(bench, code):
    one = in_long_mode(bench, code + b"\xe6\x43\xf4", {6: long_gate(HANDLER)}, handler=b"\xff\xc0\x48\xcf")
    found = one.vcpu.run()  # inc eax; iretq
    assert (found.port, found.data) == (0x43, b"\x01")
