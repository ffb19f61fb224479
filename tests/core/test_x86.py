"""x86 values: where RAM lies, descriptors, and the state after reset."""

import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from accel.address import AddressRange
from accel.arch.x86 import MAX_RAM, BootMode, X86Segment, X86State, ram_layout
from accel.errors import AddressError, UsageError

GIB = 1 << 30


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (4096, [(0, 4096)]),
        (3 * GIB, [(0, 3 * GIB)]),
        (3 * GIB + 4096, [(0, 3 * GIB), (4 * GIB, 4 * GIB + 4096)]),
        (24 * GIB, [(0, 3 * GIB), (4 * GIB, 25 * GIB)]),
    ],
)
def test_ram_layout_size_leaves_the_gap_below_4_gib(size, expected):
    assert ram_layout(size) == tuple(AddressRange(*item) for item in expected)


@given(st.integers(1, MAX_RAM // 4096))
def test_ram_layout_any_size_places_all_of_it(pages):
    layout = ram_layout(pages * 4096)
    assert sum(item.size for item in layout) == pages * 4096
    assert all(item.end <= 3 * GIB or item.start == 4 * GIB for item in layout)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "memory of 0 bytes: a guest needs some; try 64M"),
        (-4096, "a guest needs some"),
        (4097, "memory of 0x1001 bytes is no multiple of 0x1000; try 8K"),
        (MAX_RAM + 4096, "use at most 16T"),
    ],
)
def test_ram_layout_bad_size_is_refused_with_the_next_step(size, message):
    with pytest.raises(AddressError) as caught:
        ram_layout(size)
    assert message in str(caught.value)


def unpack(descriptor):
    """Decode a descriptor as the manual draws it: two 32-bit words."""
    low, high = descriptor & 0xFFFF_FFFF, descriptor >> 32
    granular = bool(high >> 23 & 1)
    limit = (low & 0xFFFF) | (high & 0xF0000)
    return X86Segment(
        base=low >> 16 | (high & 0xFF) << 16 | (high & 0xFF00_0000),
        limit=limit << 12 | 0xFFF if granular else limit,
        type=high >> 8 & 0xF,
        s=bool(high >> 12 & 1),
        dpl=high >> 13 & 3,
        present=bool(high >> 15 & 1),
        available=bool(high >> 20 & 1),
        long=bool(high >> 21 & 1),
        db=bool(high >> 22 & 1),
        granularity=granular,
    )


BOOL = st.booleans()


@given(
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 20) - 1),
    st.integers(0, 15),
    st.integers(0, 3),
    st.tuples(BOOL, BOOL, BOOL, BOOL, BOOL, BOOL),
)
def test_descriptor_any_segment_decodes_to_itself(base, limit, kind, dpl, flags):
    present, db, s, long, granularity, available = flags
    segment = X86Segment(
        base=base,
        limit=limit << 12 | 0xFFF if granularity else limit,
        type=kind,
        present=present,
        dpl=dpl,
        db=db,
        s=s,
        long=long,
        granularity=granularity,
        available=available,
    )
    assert unpack(segment.descriptor()) == segment


@pytest.mark.parametrize(
    ("segment", "descriptor"),
    [
        (X86Segment(limit=0xFFFF_FFFF, type=0xB, db=True, granularity=True), 0x00CF_9B00_0000_FFFF),
        (X86Segment(limit=0xFFFF_FFFF, type=0x3, db=True, granularity=True), 0x00CF_9300_0000_FFFF),
        (X86Segment(limit=0xFFFF_FFFF, type=0xB, long=True, granularity=True), 0x00AF_9B00_0000_FFFF),
    ],
)
def test_descriptor_flat_segments_are_the_usual_constants(segment, descriptor):
    assert segment.descriptor() == descriptor


def test_state_default_is_the_architecture_after_reset():
    state = X86State()
    assert state.cs.base + state.rip == 0xFFFF_FFF0
    assert (state.cs.selector, state.cs.limit) == (0xF000, 0xFFFF)
    assert state.rflags == 2
    assert state.cr0 == 0x6000_0010
    assert state.apic_base is None


def test_state_assignment_is_refused():
    with pytest.raises(FrozenInstanceError):
        X86State().rip = 1  # type: ignore[misc]


@pytest.mark.parametrize("mode", list(BootMode))
def test_boot_mode_text_is_its_value(mode):
    assert BootMode(str(mode)) is mode


@pytest.mark.parametrize(
    ("at", "selector", "offset"), [(0, 0, 0), (0xFFFF, 0, 0xFFFF), (0x1_0000, 0x1000, 0), (0xF_FFFF, 0xFFFF, 0xF)]
)
def test_state_entering_real16_reaches_the_address_by_segment_and_offset(at, selector, offset):
    state = X86State.entering("real16", at)
    assert (state.cs.base + state.rip, state.cs.selector, state.rip) == (at, selector, offset)
    assert (state.cr0 & 1, state.idt.limit) == (0, 0x3FF)


def test_state_entering_protected32_is_flat_and_without_paging():
    state = X86State.entering("protected32", 0x100_0000)
    segments = [state.cs, state.ds, state.es, state.fs, state.gs, state.ss]
    assert {(one.base, one.limit, one.db, one.dpl) for one in segments} == {(0, 0xFFFF_FFFF, True, 0)}
    assert (state.rip, state.cr0 >> 31, state.cr0 & 1, state.cr3, state.efer) == (0x100_0000, 0, 1, 0, 0)
    assert (state.gdt.limit, state.idt.limit) == (0, 0)


def test_state_entering_long64_has_paging_with_the_tables():
    state = X86State.entering(BootMode.LONG64, 0x7FFF_0000_1000, tables=0x3000)
    assert (state.rip, state.cr3, state.cr0 >> 31, state.cr4 >> 5 & 1) == (0x7FFF_0000_1000, 0x3000, 1, 1)
    assert (state.efer, state.cs.long, state.cs.db) == (0x500, True, False)


def test_state_entering_registers_replace_what_the_mode_has():
    state = X86State.entering("protected32", 0x1000, rcx=7, cr4=0)
    assert (state.rcx, state.cr4, state.rip) == (7, 0, 0x1000)


@pytest.mark.parametrize(
    ("mode", "at", "tables", "message"),
    [
        ("real16", 1 << 20, None, "0x100000 cannot be reached in real16, which ends at 0x100000"),
        ("protected32", 1 << 32, None, "cannot be reached in protected32"),
        ("long64", 1 << 47, 0x1000, "cannot be reached in long64"),
        ("protected32", -1, None, "cannot be reached"),
        ("long64", 0x1000, None, "long64 needs page tables in guest memory; give their address as tables"),
        ("protected32", 0x1000, 0, "protected32 has no page tables; leave tables out"),
        ("reset", 0x1000, None, "X86State() is that state"),
    ],
)
def test_state_entering_what_cannot_be_is_refused_with_the_next_step(mode, at, tables, message):
    with pytest.raises(UsageError) as caught:
        X86State.entering(mode, at, tables=tables)
    assert message in str(caught.value)
