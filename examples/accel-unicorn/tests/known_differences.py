"""What is known not to be the same on Unicorn and on KVM, with the reason, and which of them does as the manual says.

Sequences are drawn without what is listed here; `test_unicorn_instructions_as_kvm.py` shows for each entry that it
still differs, so the list does not outlive its reasons. Some KVM hosts execute guest code in the kernel's instruction
emulator, which knows fewer instructions than the processor; where KVM executes it on the processor, the entries that
are about the emulator are compared like everything else.

"The manual" is the Intel SDM: volume 2 where nothing else is said.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable

from attrs import frozen
from x86_draw import Excluded
from x86_encoding import STATUS, Instruction
from x86_modes import Mode


class Wrong(enum.Enum):
    """Who does not do what the manual says."""

    UNICORN = "Unicorn"
    EMULATOR = "KVM where it executes guest code in its instruction emulator"
    KVM = "KVM"
    NOBODY = "neither"


@frozen
class Known:
    """A known difference.

    Attributes:
        name: For the test's name.
        wrong: Who is wrong.
        forms: Forms, or faults, with which it shows.
        modes: Modes in which it shows.
        matches: Tells of an instruction that it is about.
        shows: How the lines about the difference begin; what else were different would be another one.
        why: The explanation.
        device: Whether it is about the device page only.
    """

    name: str
    wrong: Wrong
    forms: tuple[str, ...]
    modes: tuple[str, ...]
    matches: Callable[[Instruction], bool]
    shows: tuple[str, ...]
    why: str
    device: bool = False


_FLAT = ("protected32", "protected32-bases", "protected16", "compat32")
_LEGACY = (*_FLAT, "real16")
_PROTECTED = ("long64", *_FLAT)
_ANY = (*_PROTECTED, "real16")
_STOPS = ("end: InternalError",)


def _is(*mnemonics: str) -> Callable[[Instruction], bool]:
    return lambda one: one.mnemonic in mnemonics


def _forgets_immediate(one: Instruction) -> bool:
    return one.mnemonic in ("shld", "shrd") and one.relative is not None and not one.operands.endswith("cl")


def _modifies_nowhere(one: Instruction) -> bool:
    return one.mnemonic in ("add", "xchg") and bool(one.effect.reads) and "[" in one.operands


def _undefined_to_the_emulator(one: Instruction) -> bool:
    return one.mnemonic == "undefined" and one.operands in ("0fffc0", "0fb9c0", "fef8", "27", "37")


UNICORN = (
    Known(
        "lock-neg",
        Wrong.UNICORN,
        ("neg",),
        _ANY,
        _is("lock neg"),
        ("flags",),
        "LOCK NEG sets the flags by the operand's old value instead of the new one. NEG without LOCK is right. Of a "
        "device that answers something else each time, LOCK NEG reads until somebody kicks the vCPU.",
    ),
    Known(
        "shld-relative",
        Wrong.UNICORN,
        ("shld", "shrd"),
        ("long64",),
        _forgets_immediate,
        ("flags", "[", "and "),
        "SHLD and SHRD by a constant, of an operand relative to RIP: Unicorn forgets that the constant is a part of "
        "the instruction, and takes the operand one byte too low. With CL, or any other operand, it is right.",
    ),
    Known(
        "loop-on-a-condition",
        Wrong.UNICORN,
        ("loop on a condition",),
        _ANY,
        _is("loope", "loopne"),
        ("flags",),
        "LOOPE and LOOPNE change no flag. Where the counter ends the loop, Unicorn leaves flags of some earlier "
        "instruction, so a conditional jump behind the loop may go wrong.",
    ),
    Known(
        "cmpxchg8b-flags",
        Wrong.UNICORN,
        ("cmpxchg8b and flags",),
        _ANY,
        lambda one: one.mnemonic.endswith("cmpxchg8b") and not one.effect.undefines,
        ("flags",),
        "CMPXCHG8B changes ZF only. Unicorn sets the others to what they were some instructions earlier.",
    ),
    Known(
        "write-fault",
        Wrong.UNICORN,
        ("page fault", "page fault across pages"),
        ("long64",),
        _modifies_nowhere,
        ("[",),
        "An instruction that reads and then writes a page that is not there: the page fault's error code says that it "
        "was a read. It is one that needs a page to write to, and processors say so, and KVM.",
    ),
    Known(
        "jump-nowhere",
        Wrong.UNICORN,
        ("not canonical jump",),
        ("long64",),
        lambda one: one.mnemonic == "jmp" and bool(one.effect.reads),
        ("[",),
        "A jump to an address that cannot be: the protection fault is the jump's, so its address is what is pushed "
        "(JMP: #GP(0) if the target is not canonical). Unicorn jumps, and pushes the target.",
    ),
    Known(
        "lock-without-a-write",
        Wrong.UNICORN,
        ("undefined opcode",),
        _ANY,
        lambda one: one.operands == "f08b00",
        ("end", "r", "cs", "cr2", "access", "flags", "[", "and "),
        "LOCK before an instruction that writes no memory, such as a load, is ignored. It is an undefined opcode.",
    ),
    Known(
        "reserved-cr4",
        Wrong.UNICORN,
        ("reserved control bits",),
        ("long64", "protected32", "protected32-bases", "compat32"),
        lambda one: one.operands.startswith("cr4"),
        ("end", "r", "[", "and ", "cr2"),
        "Reserved bits of CR4 can be set, where a processor has a protection fault.",
    ),
    Known(
        "unknown-msr",
        Wrong.UNICORN,
        ("no such msr",),
        _ANY,
        _is("rdmsr"),
        ("r", "[", "and ", "flags", "cs"),
        "RDMSR of a register that does not exist gives 0, where a processor has a protection fault.",
    ),
    Known(
        "limits",
        Wrong.UNICORN,
        ("beyond the limit of real mode",),
        ("real16",),
        lambda one: bool(one.effect.reads) and "bx]" in one.operands,
        ("end", "r", "[", "and ", "flags"),
        "Unicorn checks no segment limits, so what lies behind 64 KiB of a segment can be accessed.",
    ),
    Known(
        "vectors-into-a-device",
        Wrong.UNICORN,
        ("movups",),
        _PROTECTED,
        _is("movups"),
        ("access", "[", "and "),
        "A read of 16 bytes that begins in memory and ends on a device page is told to the device in wrong sizes.",
        device=True,
    ),
)

KVM = (
    Known(
        "rep-ins-to-a-device",
        Wrong.KVM,
        ("ins",),
        _ANY,
        lambda one: one.mnemonic.startswith("rep ins"),
        ("access", "[", "and "),
        "REP INS into a device: KVM, on every host, reads several items ahead and writes them as larger ones. If DF is "
        "set, it writes the first of those that it has read, forgets the others and reads again. INS is a read and a "
        "write for each item, as Unicorn has it.",
        device=True,
    ),
)

NEITHER = (
    Known(
        "order-of-cmps",
        Wrong.NOBODY,
        ("cmps",),
        _ANY,
        lambda one: "cmps" in one.mnemonic,
        ("access", "flags", "r", "end"),
        "CMPS reads two operands. KVM reads the one at RSI first and Unicorn the one at RDI; the manual gives no "
        "order. It shows where both are a device's.",
        device=True,
    ),
)

EMULATOR = (
    Known(
        "nested-enter",
        Wrong.EMULATOR,
        ("enter nested",),
        _ANY,
        lambda one: one.mnemonic == "enter" and not one.operands.endswith(" 0"),
        _STOPS,
        "ENTER with a nesting level is not emulated.",
    ),
    Known(
        "enter-of-words",
        Wrong.EMULATOR,
        ("enter and leave",),
        ("protected16",),
        _is("enter"),
        ("r", "["),
        "ENTER of 16 bits on a stack of 32 pushes four bytes. It pushes as many as the operand has, two.",
    ),
    Known(
        "decimal",
        Wrong.EMULATOR,
        ("daa", "aaa", "aas"),
        _LEGACY,
        _is("daa", "aaa", "aas"),
        _STOPS,
        "DAA, AAA and AAS are not emulated. DAS is.",
    ),
    Known(
        "decimal-flags",
        Wrong.EMULATOR,
        ("aam", "aad"),
        _LEGACY,
        lambda one: one.mnemonic in ("aam", "aad") and not one.operands,
        ("flags",),
        "AAM and AAD set ZF and SF by all of AX or EAX. The manual says by AL.",
    ),
    Known(
        "vector-arithmetic",
        Wrong.EMULATOR,
        ("paddq",),
        _PROTECTED,
        _is("paddq"),
        _STOPS,
        "Vector arithmetic is not emulated. Moves of 16 bytes are.",
    ),
    Known(
        "vector-quadwords",
        Wrong.EMULATOR,
        ("movq",),
        _PROTECTED,
        _is("movq"),
        _STOPS,
        "Moves between memory and half of a vector register are not emulated.",
    ),
    Known(
        "floating-point",
        Wrong.EMULATOR,
        ("fild and fistp",),
        _ANY,
        _is("fild", "fistp"),
        _STOPS,
        "Floating-point instructions are not emulated, but for the few that initialise and ask for the state.",
    ),
    Known(
        "software-interrupts",
        Wrong.EMULATOR,
        ("int n", "int3", "into"),
        _PROTECTED,
        _is("int", "int3", "into"),
        _STOPS,
        "INT, INT3 and INTO are emulated in real mode only.",
    ),
    Known(
        "undefined-opcodes",
        Wrong.EMULATOR,
        ("undefined opcode", "undefined in long mode"),
        _ANY,
        _undefined_to_the_emulator,
        _STOPS,
        "Some opcodes that are no instructions end as an internal error instead of the exception.",
    ),
    Known(
        "torn-writes",
        Wrong.EMULATOR,
        ("page fault across pages",),
        ("long64",),
        lambda one: one.effect.reads == STATUS and one.mnemonic == "mov" and "[rsi]," in one.operands,
        ("[", "and "),
        "A write that ends on a page that is not there writes what lies before it. The manual has it write nothing.",
    ),
    Known(
        "frames-behind-a-base",
        Wrong.EMULATOR,
        ("divide by zero",),
        ("protected32-bases",),
        lambda one: one.effect.reads == STATUS and not one.mnemonic.startswith("pushf"),
        ("[", "and "),
        "An exception in protected mode pushes at the stack pointer, as if the stack segment had base 0.",
    ),
)

KNOWN = (*UNICORN, *KVM, *NEITHER, *EMULATOR)
#: Those that show on every host.
EVERYWHERE = (*UNICORN, *KVM, *NEITHER)


def excluding(entries: Iterable[Known], *, device: bool = False) -> Excluded:
    """Return what tells of instructions that an entry is about; those about devices count with `device` only."""
    counting = [one for one in entries if device or not one.device]

    def excluded(mode: Mode, instruction: Instruction) -> bool:
        return any(mode.name in one.modes and one.matches(instruction) for one in counting)

    return excluded
