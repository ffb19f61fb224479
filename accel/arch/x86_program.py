"""Assembles a `GuestProgram` into x86 machine code, so that real CPUs run what the mock interprets.

Owns the encodings it needs and nothing else; pure, above `x86` and `program`. Upstream: Intel SDM volume 2.

The code is for long mode with memory mapped to itself. It is position independent: memory is reached through
absolute addresses in registers, jumps are relative. What each register holds:

=========  ===========================================
RBX        the vCPU's error count
R8 to R15  the counters of nested loops, outermost R8
RAX..RDX   scratch
RSP        used by `Fetch` only, for its return address
=========  ===========================================

Nothing but what the program names is read or written (and the stack, by `Fetch`), so that a memory change
under the code or the stack is a matter of the program, not of this assembler.
"""

from __future__ import annotations

from accel.errors import ProgramError
from accel.program import Add, ErrorCount, Fetch, GuestProgram, Halt, In, Load, Loop, Op, Out, Store

#: End of the addresses that page tables of four levels reach without sign extension.
ADDRESS_END = 1 << 47

_CLEAR_ERRORS = b"\x31\xdb"  # xor ebx, ebx
_COUNT_UNLESS_EQUAL = b"\x74\x03\x48\xff\xc3"  # je over; inc rbx
_HALT = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp back to hlt: an NMI must not run on into what follows

# The operand is at [rax].
_LOAD_RCX = {1: b"\x0f\xb6\x08", 2: b"\x0f\xb7\x08", 4: b"\x8b\x08", 8: b"\x48\x8b\x08"}
_COMPARE_CX = {1: b"\x80\xf9", 2: b"\x66\x81\xf9", 4: b"\x81\xf9"}
_STORE = {1: b"\xc6\x00", 2: b"\x66\xc7\x00", 4: b"\xc7\x00"}
_STORE_RCX = b"\x48\x89\x08"
_ADD = {1: b"\xf0\x80\x00", 2: b"\xf0\x66\x81\x00", 4: b"\xf0\x81\x00"}
_ADD_RCX = b"\xf0\x48\x01\x08"

# The port is in dx.
_IN = {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}
_OUT = {1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}
_COMPARE_AX = {1: b"\x3c", 2: b"\x66\x3d", 4: b"\x3d"}


def assemble(program: GuestProgram) -> bytes:
    """Return long-mode machine code that runs `program`; it works at any address, O(operations).

    Entered at its first byte with memory mapped to itself and, where the program has a `Fetch`, a stack.

    Raises:
        ProgramError: An address is at or above `ADDRESS_END`.
    """
    return _CLEAR_ERRORS + _block("program", program.ops, 0) + _HALT


def _block(where: str, ops: tuple[Op, ...], depth: int) -> bytes:
    code = bytearray()
    for index, op in enumerate(ops):
        place = f"{where}[{index}]"
        match op:
            case Loop():
                code += _loop(place, op, depth)
            case In() | Out():
                code += _port(op)
            case Halt():
                code += _HALT
            case _:
                code += _memory(place, op)
    return bytes(code)


def _loop(where: str, loop: Loop, depth: int) -> bytes:
    body = _block(f"{where}.body", loop.body, depth + 1)
    if loop.count is None:
        return body + b"\xe9" + _relative(-len(body) - 5)
    start = bytes((0x49, 0xB8 + depth)) + _imm(loop.count, 8)
    body += bytes((0x49, 0xFF, 0xC8 + depth))  # dec the counter
    return start + body + b"\x0f\x85" + _relative(-len(body) - 6)


def _memory(where: str, op: Load | Store | Add | Fetch) -> bytes:
    size = 1 if isinstance(op, Fetch) else op.size
    if op.address + size > ADDRESS_END:
        raise ProgramError(where, "address", op.address, f"x86 code reaches addresses below {ADDRESS_END:#x}")
    code = b"\x48\xb8" + _imm(op.address, 8)  # mov rax, address
    match op:
        case Load(expect=expect):
            return code + _LOAD_RCX[size] + _expect_rcx(expect, size)
        case Store(value=value) if size == 8:
            return code + _rcx(value) + _STORE_RCX
        case Store(value=value):
            return code + _STORE[size] + _imm(value, size)
        case Add(value=value) if size == 8:
            return code + _rcx(value) + _ADD_RCX
        case Add(value=value):
            return code + _ADD[size] + _imm(value, size)
        case Fetch():
            return code + b"\xff\xd0"  # call rax


def _expect_rcx(value: int | None, size: int) -> bytes:
    if value is None:
        return b""
    if size < 8:
        return _COMPARE_CX[size] + _imm(value, size) + _COUNT_UNLESS_EQUAL
    return b"\x48\xba" + _imm(value, 8) + b"\x48\x39\xd1" + _COUNT_UNLESS_EQUAL  # mov rdx, value; cmp rcx, rdx


def _port(op: In | Out) -> bytes:
    code = b"\xba" + _imm(op.port, 4)  # mov edx, port
    if isinstance(op, Out):
        return code + _out_value(op) + _OUT[op.size]
    code += _IN[op.size]
    if op.expect is not None:
        code += _COMPARE_AX[op.size] + _imm(op.expect, op.size) + _COUNT_UNLESS_EQUAL
    return code


def _out_value(op: Out) -> bytes:
    if isinstance(op.value, ErrorCount):
        # mov ecx, limit; mov rax, rbx; cmp rax, rcx; jbe over; mov rax, rcx
        limit = (1 << 8 * op.size) - 1
        return b"\xb9" + _imm(limit, 4) + b"\x48\x89\xd8\x48\x39\xc8\x76\x03\x48\x89\xc8"
    return b"\xb8" + _imm(op.value, 4)  # mov eax, value


def _rcx(value: int) -> bytes:
    return b"\x48\xb9" + _imm(value, 8)


def _imm(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


def _relative(distance: int) -> bytes:
    return distance.to_bytes(4, "little", signed=True)
