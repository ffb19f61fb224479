"""Flat views and their sections: lookup, windows, what a section gives to whoever serves an access."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_plans import SPAN, Plan, answers, shown, trees

from accel.address import ADDRESS_SPACE_SIZE, AddressRange
from accel.errors import AddressError
from accel.memory.flat_view import EMPTY_VIEW, MemoryRegionSection
from accel.memory.ioeventfd import IoEventFd
from accel.memory.region import MemoryRegion
from accel.memory.render import render


def two_rams() -> MemoryRegion:
    root = MemoryRegion.container("root")
    for at in (0, 0x3000):
        root.add(MemoryRegion.ram("ram", 0x1000), at)
    return root


# lookup


@settings(max_examples=100)
@given(trees(), st.integers(0, SPAN), st.integers(0, SPAN))
def test_flat_view_looks_up_addresses_and_windows(plan: Plan, one: int, other: int) -> None:
    view = render(plan.build())
    for at, answer in enumerate(answers(plan)):
        section = view.find(at)
        assert view.index(at) == sum(1 for one in view if one.range.end <= at)
        assert view.first_from(at) == sum(1 for one in view if one.range.start < at)
        if answer is None:
            assert section is None
        else:
            assert section is not None
            assert section is view.sections[view.index(at)]
            assert section.region is answer.region
            assert section.offset + at - section.range.start == answer.offset
            assert at in section.range
    assert view.find(SPAN) is None
    assert view.find(ADDRESS_SPACE_SIZE - 1) is None
    window = AddressRange(min(one, other), max(one, other))
    found = list(view.overlapping(window))
    assert found == [section for section in view if section.range.intersection(window)]


@settings(max_examples=60)
@given(trees(), st.integers(0, SPAN), st.integers(0, SPAN))
def test_flat_view_windows_cover_what_is_mapped_and_refuse_a_hole(plan: Plan, one: int, other: int) -> None:
    view = render(plan.build())
    start, end = min(one, other), max(one, other)
    holes = [at for at, answer in enumerate(answers(plan)) if answer is None and start <= at < end]
    if holes:
        with pytest.raises(AddressError, match=f"nothing is mapped at {holes[0]:#x} of 'here'"):
            view.windows(start, end - start, "here")
        return
    at = start
    for section, first, size in view.windows(start, end - start, "here"):
        assert first == at
        assert size
        assert section.range.covers(AddressRange.sized(first, size))
        at += size
    assert at == end


def test_flat_view_reaches_from_the_first_to_the_last_address() -> None:
    root = MemoryRegion.container("root")
    root.add(MemoryRegion.mmio("all", ADDRESS_SPACE_SIZE), 0)
    view = render(root)
    assert view.find(0) is view.find(ADDRESS_SPACE_SIZE - 1) is view.sections[0]
    assert view.find(ADDRESS_SPACE_SIZE) is None
    assert view.index(ADDRESS_SPACE_SIZE) == 1


def test_flat_view_without_sections_finds_nothing() -> None:
    assert EMPTY_VIEW.find(0) is None
    assert EMPTY_VIEW.index(0) == EMPTY_VIEW.first_from(0) == len(EMPTY_VIEW) == 0
    assert list(EMPTY_VIEW.overlapping(AddressRange(0, ADDRESS_SPACE_SIZE))) == []
    assert EMPTY_VIEW.windows(5, 0, "here") == []


@settings(max_examples=60)
@given(trees(), st.lists(st.integers(0, SPAN), max_size=6))
def test_flat_view_replaced_has_the_parts_in_place_of_the_old(plan: Plan, cuts: list[int]) -> None:
    view = render(plan.build())
    numbers = sorted(cut % (len(view) + 1) for cut in cuts)
    numbers = numbers[: len(numbers) // 2 * 2]
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    parts = [(first, last, list(view.sections[first:last][:1])) for first, last in pairs]
    replaced = view.replaced(parts)
    wanted: list[MemoryRegionSection] = []
    at = 0
    for first, last, new in parts:
        wanted += [*view.sections[at:first], *new]
        at = last
    wanted += view.sections[at:]
    assert list(replaced) == wanted
    assert [replaced.index(one.range.start) for one in wanted] == list(range(len(wanted)))


# as a value


@pytest.mark.parametrize("address", [0, 0x1FFF])
def test_flat_view_is_a_value(address: int) -> None:
    root = two_rams()
    one, other = render(root), render(root)
    assert one == other
    assert hash(one) == hash(other)
    root.children[0].set_enabled(False)
    assert render(root) != one
    assert one != shown(one)
    assert one.find(address % 0x1000) is one.sections[0]


def test_flat_view_prints_its_sections() -> None:
    root = MemoryRegion.container("root")
    assert str(EMPTY_VIEW) == "(empty)"
    root.add(MemoryRegion.ram("ram", 0x1000), 0)
    root.add(MemoryRegion.rom("bios", b"", 0x1000), 0x2000)
    root.add(MemoryRegion.mmio("uart", 8), 0x4000)
    flash, hidden = MemoryRegion.rom_device("flash", b"", 8), MemoryRegion.rom_device("hidden", b"", 8)
    hidden.set_romd(False)
    root.add(flash, 0x5000)
    root.add(hidden, 0x6000)
    assert str(render(root)).splitlines() == [
        "0000000000000000-0000000000000fff ram: ram @0x0",
        "0000000000002000-0000000000002fff rom: bios @0x0",
        "0000000000004000-0000000000004007 mmio: uart @0x0",
        "0000000000005000-0000000000005007 rom: flash @0x0",
        "0000000000006000-0000000000006007 romd: hidden @0x0",
    ]


# sections


def test_flat_view_section_part_shows_the_same_bytes() -> None:
    ram = MemoryRegion.ram("ram", 0x2000)
    root = MemoryRegion.container("root")
    root.add(MemoryRegion.alias("a", ram, 0x800, readonly=True), 0x8000)
    (section,) = render(root)
    part = section.part(0x8400, 0x8800)
    assert (part.range, part.offset, part.readonly) == (AddressRange(0x8400, 0x8800), 0xC00, True)
    assert part.host_address == ram.block.address + 0xC00


def test_flat_view_section_span_outlives_what_becomes_of_the_region() -> None:
    ram = MemoryRegion.ram("ram", 0x2000)
    ram.write(0x1FFF, b"x")
    root = MemoryRegion.container("root")
    root.add(MemoryRegion.alias("a", ram, 0x800), 0x8000)
    (section,) = render(root)
    ram.resize(0x1000)
    assert bytes(section.span(0x8000 + 0x17FF, 1)) == b"x"
    section.span(0x8000, 2)[:] = b"yz"
    assert ram.read(0x800, 2) == b"yz"
    assert section.host_address == ram.block.address + 0x800


def test_flat_view_section_gives_what_it_shows_of_queued_ranges_and_doorbells() -> None:
    """Ranges are clipped; a doorbell shows whole or not at all, one of any size by its first byte."""
    region = MemoryRegion.mmio("m", 0x100)
    section = MemoryRegionSection(
        AddressRange(0x1000, 0x1010),
        region,
        0x20,
        coalesced=(AddressRange(0, 8), AddressRange(0x1C, 0x24), AddressRange(0x28, 0x2A), AddressRange(0x2E, 0x80)),
        eventfds=tuple(IoEventFd(at, size, None, 3) for at, size in [(0x1E, 4), (0x20, 8), (0x2E, 4), (0x2F, 0)]),
    )
    wanted = [(0x1000, 0x1004), (0x1008, 0x100A), (0x100E, 0x1010)]
    assert [(one.start, one.end) for one in section.coalesced_ranges()] == wanted
    assert [(one.offset, one.size) for one in section.eventfds_at()] == [(0x1000, 8), (0x100F, 0)]
    assert section == MemoryRegionSection(AddressRange(0x1000, 0x1010), region, 0x20), "they are outside of identity"
