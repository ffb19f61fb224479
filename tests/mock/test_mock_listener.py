"""The mock's memory listener: whatever happens to the tree, the slots map what the view shows."""

import errno
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.address import PAGE_SIZE, AddressRange
from accel.errors import AccelError, BackendError, MapLostError, MemorySlotError, RegionError
from accel.exits import Halt, MmioRead
from accel.memory.region import MemoryRegion
from accel.memory.slot_plan import Slot
from accel.program import GuestProgram, Load
from accel.vm import OpenAccelerator, Vm
from accel_mock.kvm.memslots import MemSlots
from accel_mock.plugin import MockAccelerator
from accel_mock.vm import MockVm

Open = Callable[..., Vm]


def _memslots(vm: Vm) -> MemSlots:
    assert isinstance(vm.backend, MockVm)
    return vm.backend._memslots


def _slots(vm: Vm) -> list[Slot]:
    return [one.slot for one in _memslots(vm).table.slots]


def _check(vm: Vm) -> None:
    """Each page is mapped exactly as the view shows it."""
    pages: dict[int, tuple[int, bool]] = {}
    for section in vm.memory.view:
        if section.is_ram:
            start, end = section.range.start, section.range.end
            for page in range(start, end, PAGE_SIZE):
                pages[page] = (section.host_address + page - start, section.readonly)
    mapped: dict[int, tuple[int, bool]] = {}
    for slot in _slots(vm):
        for page in range(slot.range.start, slot.range.end, PAGE_SIZE):
            assert page not in mapped
            mapped[page] = (slot.hva + page - slot.gpa, slot.readonly)
    assert mapped == pages


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["move", "resize", "hide", "show", "readonly", "writable"]),
        st.integers(0, 3),
        st.integers(0, 15),
    ),
    min_size=1,
    max_size=4,
)


@given(st.sampled_from(["least", "replace"]), st.lists(EDITS, max_size=6))
def test_mock_listener_slots_are_the_view_after_any_edits(
    plan: str, transactions: list[list[tuple[str, int, int]]]
) -> None:
    with OpenAccelerator(MockAccelerator(), {"plan": plan}) as mock:
        vm = mock.create_vm()
        regions = [MemoryRegion.ram(f"ram{n}", PAGE_SIZE, 4 * PAGE_SIZE) for n in range(4)]
        with vm.transaction():
            for n, region in enumerate(regions):
                vm.memory.add(region, at=3 * n * PAGE_SIZE, priority=n % 2)
        for edits in transactions:
            with vm.transaction():
                for what, which, value in edits:
                    region = regions[which]
                    match what:
                        case "move":
                            region.move(value * PAGE_SIZE)
                        case "resize":
                            region.resize((value % 4 + 1) * PAGE_SIZE)
                        case "hide" | "show":
                            region.set_enabled(what == "show")
                        case _:
                            region.set_readonly(what == "readonly")
            _check(vm)


def test_mock_listener_plans_least_change_for_growth_and_all_for_replace(open_mock: Open) -> None:
    for plan, expected in (("least", [0x1000, 0x1000]), ("replace", [0x2000])):
        vm = open_mock(plan=plan)
        region = MemoryRegion.ram("ram", 0x1000, 0x2000)
        vm.memory.add(region, at=0)
        region.resize(0x2000)
        assert [slot.size for slot in _slots(vm)] == expected
        _check(vm)


@pytest.mark.parametrize(("plan", "gone", "holds"), [("replace", 1, 1), ("least", 1, 0), ("least", 2, 1)])
def test_mock_listener_asks_for_a_hold_where_a_deleted_range_comes_back_or_may_have_to(
    open_mock: Open, plan: str, gone: int, holds: int
) -> None:
    """Beside what goes for good: one slot, or two, of which the first comes back if the second does not go."""
    vm = open_mock(plan=plan)
    regions = [MemoryRegion.ram(f"ram{n}", 0x1000, 0x2000) for n in range(3)]
    with vm.transaction():
        for n, region in enumerate(regions):
            vm.memory.add(region, at=n * 0x8000)
    with vm.transaction():
        for region in regions[:gone]:
            vm.memory.remove(region)
        regions[2].resize(0x2000)
    assert vm.blocker.stats.inhibits == holds
    _check(vm)


def test_mock_listener_slot_numbers_are_used_again(open_mock: Open) -> None:
    vm = open_mock(slot_count=2)
    for _ in range(5):
        region = MemoryRegion.ram("ram", 0x1000)
        vm.memory.add(region, at=0)
        vm.memory.remove(region)
    assert _slots(vm) == []


@pytest.mark.parametrize("error", [MemoryError("torn"), BackendError("slot call", errno.ENOMEM)])
def test_mock_listener_slot_number_of_a_slot_that_did_not_come_is_used_again_whatever_was_raised(
    open_mock: Open, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    vm = open_mock()

    def broken(number: int, slot: Slot) -> None:
        raise error

    with monkeypatch.context() as patch, pytest.raises(AccelError, match=r"torn|ENOMEM"):
        patch.setattr(_memslots(vm), "create", broken)
        vm.memory.add(MemoryRegion.ram("refused", 0x1000), at=0)
    vm.memory.add(MemoryRegion.ram("ram", 0x1000), at=0)
    assert [one.number for one in _memslots(vm).table.slots] == [0]


def test_mock_listener_more_slots_than_there_are_is_refused_before_anything_changes(open_mock: Open) -> None:
    vm = open_mock(slot_count=2)
    vm.memory.add(MemoryRegion.ram("one", 0x1000), at=0)
    before = _memslots(vm).table

    def change() -> None:
        with vm.transaction():
            vm.memory.add(MemoryRegion.ram("two", 0x1000), at=0x4000)
            vm.memory.add(MemoryRegion.ram("three", 0x1000), at=0x8000)

    with pytest.raises(MemorySlotError) as caught:
        change()
    assert (caught.value.errno, caught.value.gpa) == (errno.ENOSPC, 0x8000)
    assert _memslots(vm).table is before
    _check(vm)


@pytest.mark.parametrize("failing", range(4))
def test_mock_listener_failed_slot_call_leaves_the_map_as_it_was(
    open_mock: Open, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The transaction makes four slot calls, two deletes and two creates; each of them fails once."""
    vm = open_mock(plan="replace", slot_count=2)
    regions = [MemoryRegion.ram(name, 0x1000, 0x2000) for name in ("one", "two")]
    with vm.transaction():
        vm.memory.add(regions[0], at=0)
        vm.memory.add(regions[1], at=0x8000)
    before = _slots(vm)
    memslots = _memslots(vm)
    calls = 0

    def counted(call: Callable[[int, Slot], None]) -> Callable[[int, Slot], None]:
        def wrapped(number: int, slot: Slot) -> None:
            nonlocal calls
            calls += 1
            if calls == failing + 1:
                raise MemorySlotError(
                    "injected", errno.ENOMEM, slot=number, gpa=slot.gpa, hva=slot.hva, size=slot.size, flags=0
                )
            call(number, slot)

        return wrapped

    monkeypatch.setattr(memslots, "create", counted(memslots.create))
    monkeypatch.setattr(memslots, "delete", counted(memslots.delete))

    def change() -> None:
        with vm.transaction():
            for region in regions:
                region.resize(0x2000)

    with pytest.raises(MemorySlotError, match="injected"):
        change()
    assert _slots(vm) == before
    assert [region.size for region in regions] == [0x1000, 0x1000]
    monkeypatch.undo()
    regions[0].resize(0x2000)
    _check(vm)


def test_mock_listener_failed_undo_loses_the_map_and_names_what_is_left(
    open_mock: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = open_mock(plan="replace")
    region = MemoryRegion.ram("one", 0x1000, 0x2000)
    with vm.transaction():
        vm.memory.add(region, at=0)
        vm.memory.add(MemoryRegion.ram("two", 0x1000), at=0x8000)
    vcpu = vm.create_vcpu(0)
    vcpu.load_program(GuestProgram((Load(0),)))

    def fail(number: int, slot: Slot) -> None:
        raise MemorySlotError(
            "injected", errno.ENOMEM, slot=number, gpa=slot.gpa, hva=slot.hva, size=slot.size, flags=0
        )

    monkeypatch.setattr(_memslots(vm), "create", fail)
    with pytest.raises(MapLostError) as caught:
        region.resize(0x2000)
    assert len(caught.value.slots) == 1
    assert "GPA 0x8000" in caught.value.slots[0]
    with pytest.raises(MapLostError):
        vcpu.run()


def test_mock_listener_maps_whole_pages_and_serves_the_rest_by_exits(open_mock: Open) -> None:
    vm = open_mock()
    vm.memory.add(MemoryRegion.ram("ram", 0x3000), at=0x800)
    # The host address is page aligned and the guest address is not: nothing can be mapped.
    assert _slots(vm) == []
    vm.memory.add(MemoryRegion.ram("short", 0x1800), at=0x8000)
    assert [slot.range for slot in _slots(vm)] == [AddressRange(0x8000, 0x9000)]
    vcpu = vm.create_vcpu(0)
    vcpu.load_program(GuestProgram((Load(0x8000), Load(0x9000))))
    found = vcpu.run()
    assert isinstance(found, MmioRead)
    assert found.address == 0x9000
    assert vcpu.run() == Halt()


def test_mock_listener_closed_vm_lets_go_of_its_memory(open_mock: Open) -> None:
    vm = open_mock()
    region = MemoryRegion.ram("ram", 0x1000)
    vm.memory.add(region, at=0)
    assert region.block is not None
    mapping = region.block._map
    vm.close()
    region.block.close()
    assert mapping.closed


def test_mock_listener_refused_edit_changes_no_slot(open_mock: Open) -> None:
    vm = open_mock()
    region = MemoryRegion.ram("ram", 0x1000)

    def change() -> None:
        with vm.transaction():
            vm.memory.add(region, at=0)
            region.resize("1M")

    with pytest.raises(RegionError):
        change()
    assert _slots(vm) == []
