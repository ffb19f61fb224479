"""Sets of memslots: what is found by address and by number, and that a set made from another shares most with it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.address import PAGE_SIZE, AddressRange
from accel.memory.ram_block import RamBlock
from accel.memory.slot_plan import Slot
from accel_mock.kvm import slot_map
from accel_mock.kvm.slot_map import MemSlot, SlotMap

BLOCK = RamBlock("block", PAGE_SIZE)


def _slot(number: int, page: int, pages: int = 1) -> MemSlot:
    slot = Slot(page * PAGE_SIZE, pages * PAGE_SIZE, BLOCK.address, False, BLOCK)
    return MemSlot(number, slot, BLOCK.view)


def _check(table: SlotMap, expected: dict[int, MemSlot], pages: int) -> None:
    """Hold a set against its slots by number, looked through one by one."""
    ordered = sorted(expected.values(), key=lambda one: one.slot.gpa)
    assert list(table) == list(table.slots) == ordered
    assert len(table) == len(ordered)
    for number in range(-2, 300, 7):
        assert table.numbered(number) is expected.get(number)
    for number in expected:
        assert table.numbered(number) is expected[number]
    for page in range(pages):
        for address in (page * PAGE_SIZE, page * PAGE_SIZE + 0xFFF):
            here = [one for one in ordered if one.slot.range.start <= address < one.slot.range.end]
            assert table.find(address) is (here[0] if here else None)


@pytest.fixture(params=[2, 3, 256])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut sets into chunks of so many slots."""
    monkeypatch.setattr(slot_map, "_CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
def test_slot_map_after_random_changes_agrees_with_a_dict() -> None:
    for seed in range(40):
        random_one = random.Random(seed)
        table, expected = SlotMap(), dict[int, MemSlot]()
        for _ in range(40):
            used = {page for one in expected.values() for page in _pages(one)}
            change = random_one.choice(("with", "with", "without", "replaced"))
            before, had = table, dict(expected)
            if change == "with":
                number, page, count = random_one.randrange(300), random_one.randrange(60), random_one.randint(1, 3)
                if number in expected or used & set(range(page, page + count)):
                    continue
                expected[number] = _slot(number, page, count)
                table = table.with_slot(expected[number])
            elif expected:
                number = random_one.choice(list(expected))
                old = expected.pop(number)
                if change == "without":
                    table = table.without(old)
                else:
                    expected[number] = _slot(number, _pages(old)[0], len(_pages(old)))
                    table = table.replaced(old, expected[number])
            _check(table, expected, 64)
            _check(before, had, 64)
        _check(SlotMap(expected.values()), expected, 64)


def _pages(one: MemSlot) -> range:
    return range(one.slot.range.start // PAGE_SIZE, one.slot.range.end // PAGE_SIZE)


@pytest.mark.usefixtures("chunk")
def test_slot_map_overlapping_has_the_slots_with_an_address_in_the_window() -> None:
    slots = [
        _slot(number, page, pages) for number, (page, pages) in enumerate([(1, 1), (2, 3), (7, 1), (9, 2), (12, 1)])
    ]
    table = SlotMap(slots)
    for start in range(14):
        for end in range(start + 1, 15):
            for skew in (0, 5):
                window = AddressRange(start * PAGE_SIZE + skew, end * PAGE_SIZE)
                assert table.overlapping(window) == tuple(one for one in slots if one.slot.range.overlaps(window))


@given(st.permutations(range(40)))
def test_slot_map_does_not_depend_on_the_order_in_which_slots_came(order: list[int]) -> None:
    table = SlotMap()
    for number in order:
        table = table.with_slot(_slot(number, 2 * number))
    assert [one.number for one in table] == list(range(40))


def test_slot_map_of_a_full_vm_shares_all_but_a_chunk_and_a_row_with_the_one_before() -> None:
    """So that no slot call costs as much as there are slots."""
    slots = [_slot(number, 2 * number) for number in range(32_764)]
    table = SlotMap(slots)
    new = _slot(32_764, 2 * 5000 + 1)
    for changed in (table.with_slot(new), table.without(slots[777]), table.replaced(slots[9], _slot(9, 18))):
        assert len(changed._chunks) - len(table._chunks) <= 1
        assert len(set(map(id, changed._chunks)) - set(map(id, table._chunks))) <= 2
        assert len(set(map(id, changed._rows)) - set(map(id, table._rows))) == 1
    assert table.find(2 * 20_000 * PAGE_SIZE) is table.numbered(20_000) is slots[20_000]
    assert max(len(one.slots) for one in table._chunks) < 1000
    assert len(table._chunks) < 1000


def test_slot_map_chunks_stay_small_however_slots_come() -> None:
    table = SlotMap()
    for number in range(3000):
        table = table.with_slot(_slot(number, number))
    assert max(len(one.slots) for one in table._chunks) <= slot_map._CHUNK
