"""Registers: what is written is what is read, in each mode, and what the guest then finds."""

from __future__ import annotations

import pytest
from accel_unicorn.engine import Engine
from accel_unicorn.layout import GENERAL, layout
from accel_unicorn.state import mode_bits, read_state, write_state
from attrs import evolve, fields
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accel.arch.x86 import X86Segment, X86State, X86Table
from accel.errors import CapabilityError

words = st.integers(0, (1 << 64) - 1)
flags = st.integers(0, 0xFFF).map(lambda value: value & 0xFD5 | 2)
segments = st.builds(
    X86Segment,
    base=st.integers(0, (1 << 32) - 1),
    limit=st.integers(0, (1 << 32) - 1),
    selector=st.integers(0, 0xFFFF),
    type=st.integers(0, 15),
    present=st.booleans(),
    dpl=st.integers(0, 3),
    db=st.booleans(),
    s=st.booleans(),
    long=st.booleans(),
    granularity=st.booleans(),
    available=st.booleans(),
)
tables = st.builds(X86Table, base=words, limit=st.integers(0, 0xFFFF))
SEGMENT_NAMES = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
states = st.builds(
    X86State,
    **dict.fromkeys((*GENERAL, "rip", "cr2", "cr3"), words),
    **dict.fromkeys(SEGMENT_NAMES, segments),
    rflags=flags,
    gdt=tables,
    idt=tables,
    cr0=st.sampled_from([0x10, 0x11, 0x8000_0033]),
    cr4=st.sampled_from([0, 0x20, 0x620]),
    efer=st.sampled_from([0, 0x500, 0x501]),
    cr8=st.integers(0, 15),
    apic_base=st.none(),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(states)
def test_state_that_is_written_is_read_back_whole(state):
    engine = Engine()
    try:
        write_state(engine, state)
        assert read_state(engine, state) == state
    finally:
        engine.close()


def test_layout_covers_every_register_of_the_state():
    covered = {*GENERAL, *SEGMENT_NAMES, "rip", "rflags", "gdt", "idt", "cr0", "cr2", "cr3", "cr4", "cr8", "efer"}
    assert {one.name for one in fields(X86State)} - covered == {"apic_base"}


def test_layout_is_found_once_and_distinct():
    found = layout()
    assert len({found.general, found.efer, found.error_code}) == 3
    assert layout() is found


def test_mode_bits_are_those_that_the_engine_derives_itself(bench):
    """In each boot mode, after the guest has loaded its segments anew, so that the engine has computed them."""
    import struct

    for mode, code in (
        ("protected32", b"\x8c\xd8\x8e\xd8\x8c\xd0\x8e\xd0\xf4"),
        ("long64", b"\x8c\xd8\x8e\xd8\x8c\xd0\x8e\xd0\xf4"),
        ("real16", b"\x8c\xd8\x8e\xd8\x8c\xd0\x8e\xd0\xf4"),
    ):
        one = bench(code, mode=mode)
        one.vcpu.run()
        with one.vcpu.backend.engine.context() as data:
            derived = struct.unpack_from("<I", data, layout().hflags)[0]
        assert derived & ~8 == mode_bits(one.vcpu.read_state()), mode


def test_flags_that_are_written_are_what_the_guest_finds(bench):
    one = bench(b"\x9c\x58\xf4", mode="long64")  # pushfq; pop rax
    one.vcpu.write_state(evolve(one.vcpu.read_state(), rflags=0xCD7))
    one.vcpu.run()
    assert one.vcpu.read_state().rax == 0xCD7


def test_new_vcpu_is_in_the_state_after_reset(bench):
    one = bench()
    assert one.vcpu.read_state() == X86State()


def test_nested_guests_are_refused_and_the_guest_cannot_turn_them_on(bench):
    # mov ecx, 0xc0000080; rdmsr; or ah, 0x10; wrmsr; rdmsr; hlt
    one = bench(b"\xb9\x80\x00\x00\xc0\x0f\x32\x80\xcc\x10\x0f\x30\x0f\x32\xf4", mode="long64")
    state = one.vcpu.read_state()
    with pytest.raises(CapabilityError, match="SVME"):
        one.vcpu.write_state(evolve(state, efer=state.efer | 0x1000))
    one.vcpu.run()
    assert one.vcpu.read_state().rax & 0x1000 == 0
