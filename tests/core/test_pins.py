"""Pins: memory that a published view shows cannot be released, and is counted exactly whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import PAGE_SIZE
from accel.errors import ClosedError, MemorySlotError, RegionError, StateError
from accel.memory.address_space import AddressSpace
from accel.memory.region import MemoryRegion


def ram(name: str = "ram", pages: int = 4) -> MemoryRegion:
    return MemoryRegion.ram(name, pages * PAGE_SIZE, 8 * PAGE_SIZE)


def test_pins_of_memory_in_the_map_keep_it_from_being_released(stage) -> None:
    region = ram()
    stage.memory.add(region, 0)
    with pytest.raises(StateError, match="RAM 'ram' is mapped 1 times; take its regions out of the VM's map"):
        region.release()
    region.write(0, b"still there")
    stage.memory.remove(region)
    region.release()
    region.release()
    with pytest.raises(ClosedError, match="the host memory of 'ram' is released"):
        region.read(0, 1)


@pytest.mark.parametrize("hide", ["disable", "overlap", "outside"])
def test_pins_of_memory_that_does_not_show_are_none(stage, hide: str) -> None:
    region, box = ram(), MemoryRegion.container("box", 0x10000)
    box.add(region, 0)
    stage.memory.add(box, 0)
    assert region.block.pins == 1
    if hide == "disable":
        box.set_enabled(False)
    elif hide == "overlap":
        stage.memory.add(MemoryRegion.mmio("over", 0x10000), 0, 1)
    else:
        region.move(0x10000)
    assert region.block.pins == 0
    stage.check()
    region.release()


def test_pins_go_with_the_vm(stage) -> None:
    region = ram()
    with stage.transaction():
        stage.memory.add(region, 0)
        stage.memory.add(MemoryRegion.alias("alias", region), 0x10000)
        stage.io.add(MemoryRegion.alias("ports", region), 0)
    assert region.block.pins == 3
    stage.transactions.close()
    assert region.block.pins == 0
    stage.transactions.close()
    assert region.block.pins == 0
    region.release()


def test_pins_go_with_a_space(stage) -> None:
    region = ram()
    bus = AddressSpace("bus", stage.transactions, MemoryRegion.container("bus", 1 << 20))
    bus.add(region, 0)
    stage.memory.add(region.alias("alias", region), 0)
    assert region.block.pins == 2
    bus.close()
    bus.close()
    assert region.block.pins == 1
    stage.check()


def test_pins_count_each_section_that_shows_the_memory(stage) -> None:
    region = ram()
    stage.memory.add(region, 0)
    with stage.transaction():
        stage.memory.add(MemoryRegion.alias("a", region, 0, PAGE_SIZE), 0x10000)
        stage.memory.add(MemoryRegion.alias("b", region, PAGE_SIZE, PAGE_SIZE), 0x10000 + PAGE_SIZE)
    assert region.block.pins == 2, "the aliases continue each other, so they are one section"
    hole = MemoryRegion.mmio("hole", PAGE_SIZE)
    stage.memory.add(hole, PAGE_SIZE, 1)
    assert region.block.pins == 3
    with stage.transaction():
        hole.move(2 * PAGE_SIZE)
        region.set_readonly(True)
    assert region.block.pins == 3, "all of its sections were replaced"
    stage.memory.remove(hole)
    assert region.block.pins == 2
    stage.check()


@pytest.mark.parametrize("how", ["raised", "refused", "failed", "nested"])
def test_pins_of_what_does_not_come_into_force_are_as_before(stage, how: str) -> None:
    kept, fresh = ram("kept"), ram("fresh")
    stage.memory.add(kept, 0)
    stage.slots.slot_count = 1 if how == "refused" else 100
    stage.slots.reset(fail_at={1} if how == "failed" else set())

    def edit() -> None:
        kept.set_readonly(True)
        stage.memory.add(fresh, 0x10000)
        if how in ("raised", "nested"):
            raise ZeroDivisionError

    with pytest.raises((ZeroDivisionError, MemorySlotError)), stage.transaction():
        if how == "nested":
            with stage.transaction():
                edit()
        edit()
    assert (kept.block.pins, fresh.block.pins) == (1, 0)
    stage.check()
    fresh.release()


def test_pins_of_released_memory_refuse_the_whole_change(stage) -> None:
    first, released, last = ram("first"), ram("released"), ram("last")
    released.release()
    with pytest.raises(ClosedError, match="the host memory of 'released' is released"), stage.transaction():
        stage.memory.add(first, 0)
        stage.memory.add(released, 0x10000)
        stage.memory.add(last, 0x20000)
    assert [one.block.pins for one in (first, released, last)] == [0, 0, 0]
    assert stage.slots.calls == []
    assert stage.memory.root.children == ()
    stage.check()


def test_pins_of_a_transaction_that_exits_after_it_is_in_force_are_of_the_new_view(stage) -> None:
    old, new = ram("old"), ram("new")
    stage.memory.add(old, 0)

    def leave() -> None:
        raise SystemExit

    stage.slots.commit = leave
    with pytest.raises(SystemExit), stage.transaction():
        stage.memory.remove(old)
        stage.memory.add(new, 0)
    assert (old.block.pins, new.block.pins) == (0, 1)
    stage.check()


def test_pins_are_taken_before_the_first_step_and_let_go_after_the_last(stage) -> None:
    old, new = ram("old"), ram("new")
    stage.memory.add(old, 0)
    seen = []
    stage.slots.before_call = lambda number: seen.append((old.block.pins, new.block.pins))
    with stage.transaction():
        stage.memory.remove(old)
        stage.memory.add(new, 0)
    assert seen == [(1, 1), (1, 1)]
    assert (old.block.pins, new.block.pins) == (0, 1)


@settings(max_examples=150)
@given(st.data())
def test_pins_of_random_transactions_are_exact(make_stage, data: st.DataObject) -> None:
    """`Stage.check` counts the sections of all views anew."""
    stage = make_stage()
    blocks = [ram(f"r{number}", 2) for number in range(2)]
    regions = [
        *blocks,
        *(MemoryRegion.alias(f"a{number}", blocks[number % 2], PAGE_SIZE, PAGE_SIZE) for number in (0, 1, 2)),
    ]
    regions.append(MemoryRegion.mmio("hole", PAGE_SIZE))
    for _ in range(data.draw(st.integers(1, 5))):
        stage.slots.reset(fail_at=data.draw(st.sets(st.integers(0, 3), max_size=1)))
        try:
            with stage.transaction():
                for _ in range(data.draw(st.integers(1, 4))):
                    region = data.draw(st.sampled_from(regions))
                    space = data.draw(st.sampled_from([stage.memory, stage.memory, stage.io]))
                    at = data.draw(st.integers(0, 6)) * PAGE_SIZE
                    if region.parent is None:
                        space.add(region, at, data.draw(st.integers(-1, 1)))
                    elif data.draw(st.booleans()):
                        region.move(at)
                    else:
                        region.parent.remove(region)
                if data.draw(st.sampled_from([False, False, True])):
                    raise ZeroDivisionError
        except (ZeroDivisionError, MemorySlotError, RegionError):
            pass
        stage.slots.reset()
        stage.check()
    shown = {section.region for space in stage.transactions.spaces for section in space.view}
    for region in blocks:
        if region in shown:
            with pytest.raises(StateError):
                region.release()
        else:
            region.release()
