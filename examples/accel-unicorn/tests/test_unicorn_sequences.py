"""The machinery of the comparison itself, which needs no KVM: encodings, flags, jumps, shrinking and the report."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from known_differences import KNOWN
from two_sides import Outcome, Side, differences, joined, report, shrink
from x86_draw import draw_fault, draw_sequence, draw_unit, names_of
from x86_encoding import AF, CF, OF, PF, SF, STATUS, ZF, Effect, UndefinedFlagError
from x86_faults import FAULTS
from x86_forms import FORMS, shift_effect
from x86_modes import BY_NAME, CODE, MODES
from x86_sequences import Sequence

by_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


@pytest.fixture(scope="module")
def unicorn() -> Iterator[Side]:
    with Side("unicorn") as side:
        yield side


class Broken(Side):
    """Forgets a carry out of each XADD."""

    def run(self, sequence: Sequence) -> Outcome:
        found = super().run(sequence)
        return evolve(found, flags=found.flags ^ CF) if "xadd" in sequence.forms else found


def test_sequences_are_the_same_each_time():
    mode = BY_NAME["long64"]
    assert draw_sequence(mode, "7") == draw_sequence(mode, "7")
    assert draw_sequence(mode, "7").code != draw_sequence(mode, "8").code


@by_mode
def test_there_are_enough_forms_and_each_can_be_drawn(mode):
    assert len(names_of(mode)) > 120
    for name in names_of(mode):
        assert draw_unit(mode, name, "0").forms == {name}
    for name, one in FAULTS.items():
        if one.exists(mode):
            assert draw_fault(mode, name, "0").forms >= {name}


@by_mode
def test_sequence_that_touches_nothing_else_ends_at_its_end(mode, unicorn):
    for seed in range(30):
        sequence = draw_sequence(mode, f"end {seed}")
        found = unicorn.run(sequence)
        assert (found.end, found.registers["rip"]) == ("halt", CODE + len(sequence.code)), report(
            sequence, (unicorn, unicorn)
        )


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump, to read the instructions")
@pytest.mark.parametrize(("name", "machine"), [("long64", "i386:x86-64"), ("protected32", "i386"), ("real16", "i8086")])
def test_encoded_instructions_are_what_they_say(name, machine, tmp_path):
    """As far as their lengths and mnemonics tell; objdump has other names for some."""
    mode, code, expected = BY_NAME[name], b"", []
    for form in names_of(mode):
        for seed in range(4):
            for _, one, text in list(draw_unit(mode, form, f"{seed}").lines())[:-1]:
                expected.append((len(code), one.hex(), text))
                code += one
    (tmp_path / "code.bin").write_bytes(code)
    command = ["objdump", "-D", "-b", "binary", "-m", machine, "-M", "intel", "--insn-width=16", "code.bin"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    found = {}
    for line in output.splitlines():
        address, _, rest = line.partition(":\t")
        if rest:
            data, _, shown = rest.partition("\t")
            found[int(address, 16)] = (data.replace(" ", ""), shown)
    for at, data, text in expected:
        assert found[at][0] == data, (text, found[at])
        known = text.split()[0] if text.split()[0] not in ("lock", "rep", "repe", "repne") else text.split()[1]
        assert known.rstrip("0123456789")[:3] in found[at][1], (text, found[at])


def test_flags_after_shifts_are_those_that_the_manual_defines():
    assert shift_effect("shl", 4, 0) == shift_effect("shl", 4, 32) == Effect()
    assert shift_effect("shl", 4, 1).undefines == AF
    assert shift_effect("shl", 4, 5).undefines == AF | OF
    assert shift_effect("shr", 1, 8).undefines == AF | OF | CF
    assert shift_effect("sar", 1, 8).undefines == AF | OF
    assert shift_effect("shl", 8, 33).undefines == AF | OF
    assert shift_effect("rol", 2, 16) == Effect(0, CF, OF)
    assert shift_effect("rcl", 2, 1) == Effect(CF, CF | OF, 0)


def test_what_depends_on_an_undefined_flag_is_no_sequence():
    product = Effect(writes=CF | OF, undefines=SF | ZF | AF | PF)
    defined = product.after(STATUS)
    assert defined == CF | OF
    assert Effect(reads=CF).after(defined) == defined
    with pytest.raises(UndefinedFlagError):
        Effect(reads=CF | ZF).after(defined)
    assert Effect(writes=STATUS, maybe=True).after(defined) == defined


@by_mode
def test_smaller_sequences_depend_on_no_undefined_flag(mode):
    for seed in range(10):
        for one in draw_sequence(mode, f"{seed}").smaller():
            assert one.defined | STATUS == STATUS
            assert one.code.endswith(b"\xf4")


def test_difference_is_shrunk_to_the_instruction_and_shown(unicorn):
    mode = BY_NAME["protected32"]
    seed = next(seed for seed in range(1000) if _has_much_and(draw_sequence(mode, f"{seed}"), "xadd"))
    with Broken("unicorn") as broken:

        def differs(sequence: Sequence) -> bool:
            return bool(differences(sequence, unicorn.run(sequence), broken.run(sequence)))

        sequence = draw_sequence(mode, f"{seed}")
        assert differs(sequence)
        small = shrink(sequence, differs)
        shown = report(small, (unicorn, broken))
    assert small.forms == {"xadd"}
    assert len(small.nodes) == 1
    (code, text) = next((code, text) for _, code, text in small.lines() if "xadd" in text)
    assert code.hex() in shown
    assert text in shown
    assert "begins with rax=" in shown
    assert "  flags: " in shown


def _has_much_and(sequence: Sequence, form: str) -> bool:
    return form in sequence.forms and len(sequence.forms) > 6 and bool(sequence.defined & CF)


def test_writes_next_to_each_other_are_compared_as_one():
    bytewise = (("write", 0xA000, 1, 1), ("write", 0xA001, 1, 2), ("read", 0xA000, 2, 0), ("write", 0xA002, 1, 3))
    assert joined(bytewise) == (("write", 0xA000, 2, 0x201), ("read", 0xA000, 2, 0), ("write", 0xA002, 1, 3))


def test_forms_are_named_once():
    assert not set(FORMS) & set(FAULTS)


def test_page_names_each_known_difference():
    page = (Path(__file__).parents[1] / "README.md").read_text()
    section = page.partition("## What is the same as on KVM, what is not\n")[2].partition("\n## ")[0]
    named = [name for line in section.splitlines() if line.startswith("| `") for name in line.split("|")[1].split(",")]
    assert {name.strip(" `") for name in named} == {one.name for one in KNOWN}
