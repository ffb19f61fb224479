"""The x86 form of guest programs: each encoding, and how loops are laid out."""

import pytest

from accel.arch.x86_program import ADDRESS_END, assemble
from accel.errors import ProgramError
from accel.program import ERRORS, MAX_DEPTH, Add, Fetch, GuestProgram, Halt, In, Load, Loop, Op, Out, Store

PROLOGUE = "31db"  # xor ebx, ebx
HALT = "faf4ebfd"  # cli; hlt; jmp back to hlt
AT = "48b8 5544332211000000"  # mov rax, 0x1122334455
COUNT = "7403 48ffc3"  # je over; inc rbx
SATURATE = "4889d8 4839c8 7603 4889c8"  # mov rax, rbx; cmp rax, rcx; jbe over; mov rax, rcx


def _assembled(*ops: Op) -> str:
    return assemble(GuestProgram(ops)).hex()


@pytest.mark.parametrize(
    ("op", "code"),
    [
        (Load(0x1122334455, 1), f"{AT} 0fb608"),
        (Load(0x1122334455, 2), f"{AT} 0fb708"),
        (Load(0x1122334455, 4), f"{AT} 8b08"),
        (Load(0x1122334455, 8), f"{AT} 488b08"),
        (Load(0x1122334455, 1, expect=5), f"{AT} 0fb608 80f905 {COUNT}"),
        (Load(0x1122334455, 2, expect=5), f"{AT} 0fb708 6681f90500 {COUNT}"),
        (Load(0x1122334455, 4, expect=5), f"{AT} 8b08 81f905000000 {COUNT}"),
        (Load(0x1122334455, 8, expect=5), f"{AT} 488b08 48ba0500000000000000 4839d1 {COUNT}"),
        (Store(0x1122334455, 0x7F, 1), f"{AT} c6007f"),
        (Store(0x1122334455, 0x7F, 2), f"{AT} 66c7007f00"),
        (Store(0x1122334455, 0x7F, 4), f"{AT} c7007f000000"),
        (Store(0x1122334455, 0x7F, 8), f"{AT} 48b97f00000000000000 488908"),
        (Add(0x1122334455, 0x7F, 1), f"{AT} f080007f"),
        (Add(0x1122334400, 0x7F, 2), "48b8 0044332211000000 f06681007f00"),
        (Add(0x1122334400, 0x7F, 4), "48b8 0044332211000000 f081007f000000"),
        (Add(0x1122334400, 0x7F, 8), "48b8 0044332211000000 48b97f00000000000000 f0480108"),
        (Fetch(0x1122334455), f"{AT} ffd0"),
        (In(0x3F8, 1), "baf8030000 ec"),
        (In(0x3F8, 1, expect=5), f"baf8030000 ec 3c05 {COUNT}"),
        (In(0x3F8, 2, expect=5), f"baf8030000 66ed 663d0500 {COUNT}"),
        (In(0x3F8, 4, expect=5), f"baf8030000 ed 3d05000000 {COUNT}"),
        (Out(0x3F8, 5, 1), "baf8030000 b805000000 ee"),
        (Out(0x3F8, 5, 2), "baf8030000 b805000000 66ef"),
        (Out(0x3F8, 5, 4), "baf8030000 b805000000 ef"),
        (Out(0x3F8, ERRORS, 1), f"baf8030000 b9ff000000 {SATURATE} ee"),
        (Out(0x3F8, ERRORS, 2), f"baf8030000 b9ffff0000 {SATURATE} 66ef"),
        (Out(0x3F8, ERRORS, 4), f"baf8030000 b9ffffffff {SATURATE} ef"),
        (Halt(), HALT),
        # jmp to itself
        (Loop([], None), "e9 fbffffff"),
        # 5 bytes out, 1 byte in, 5 bytes jump: back by 11
        (Loop([In(0x3F8)], None), "baf8030000 ec e9 f5ffffff"),
        # mov r8, 3; (in); dec r8; jnz back by 15
        (Loop([In(0x3F8)], 3), "49b80300000000000000 baf8030000 ec 49ffc8 0f85 f1ffffff"),
    ],
    ids=str,
)
def test_x86_program_operation_has_its_encoding(op: Op, code: str) -> None:
    assert _assembled(op) == (PROLOGUE + code + HALT).replace(" ", "")


def test_x86_program_nested_loops_count_in_registers_of_their_own() -> None:
    op: Op = Loop([], 2)
    for _ in range(MAX_DEPTH - 1):
        op = Loop([op], 2)
    code = _assembled(op)
    for register in range(8):
        assert code.count(f"49{0xB8 + register:02x}0200000000000000") == 1
        assert code.count(f"49ff{0xC8 + register:02x}0f85") == 1


def test_x86_program_loops_side_by_side_share_a_register() -> None:
    one = "49b80200000000000000 49ffc8 0f85f7ffffff"
    assert _assembled(Loop([], 2), Loop([], 2)) == (PROLOGUE + one + one + HALT).replace(" ", "")


def test_x86_program_address_that_paging_cannot_reach_is_refused() -> None:
    assemble(GuestProgram([Load(ADDRESS_END - 8, 8)]))
    with pytest.raises(ProgramError, match=r"program\[0\]\.body\[0\]\.address"):
        assemble(GuestProgram([Loop([Load(ADDRESS_END - 7, 8)], 1)]))
    with pytest.raises(ProgramError, match="x86 code reaches"):
        assemble(GuestProgram([Fetch(ADDRESS_END)]))
