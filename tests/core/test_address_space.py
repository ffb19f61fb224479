"""Address spaces: several over shared trees, each with its own view and listeners; their life; how they print.

What is read and written through them is in test_host_access and test_guest_access.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import accel
from accel.address import ADDRESS_SPACE_SIZE
from accel.errors import AddressError, ClosedError, RegionError, StateError, UsageError
from accel.memory import guest_access
from accel.memory.address_space import AddressSpace
from accel.memory.listener import MemoryListener
from accel.memory.region import MemoryRegion


class Hearer(MemoryListener):
    """Notes what comes and goes."""

    name = "hearer"

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, int]] = []

    def region_add(self, section) -> None:
        self.heard.append(("add", section.region.name, section.range.start))

    def region_del(self, section) -> None:
        self.heard.append(("del", section.region.name, section.range.start))

    def take(self) -> list[tuple[str, str, int]]:
        heard, self.heard = self.heard, []
        return heard


@pytest.fixture
def vm() -> Iterator[accel.Vm]:
    with accel.open_accelerator("mock") as mock, mock.create_vm() as vm:
        yield vm


def shown(space: AddressSpace) -> list[tuple[int, int, str, int]]:
    return [(one.range.start, one.range.end, one.region.name, one.offset) for one in space.view]


# several spaces


def test_address_space_over_an_alias_of_memory_follows_it(vm) -> None:
    """A device behind a bridge: 64 KiB of its bus are a window onto memory from 1 MiB on."""
    root = MemoryRegion.container("bus", 1 << 32)
    window = MemoryRegion.alias("window", vm.memory.root, 1 << 20, 0x10000)
    root.add(window, 0x8000)
    bus = vm.create_address_space("bus", root)
    assert shown(bus) == []
    ram = MemoryRegion.ram("ram", "2M")
    vm.memory.add(ram, 0)
    assert shown(bus) == [(0x8000, 0x18000, "ram", 1 << 20)]
    bus.write(0x8000, b"from the bus")
    assert vm.memory.read(1 << 20, 12) == b"from the bus"
    window.set_target_offset(0x1000)
    assert shown(bus) == [(0x8000, 0x18000, "ram", 0x1000)]
    vm.memory.remove(ram)
    assert shown(bus) == []
    assert vm.address_spaces == (vm.memory, vm.io, bus)


def test_address_space_has_a_view_and_listeners_of_its_own(vm) -> None:
    both, root = MemoryRegion.ram("both", 0x1000), MemoryRegion.container("bus", 1 << 32)
    with vm.transaction():
        vm.memory.add(both, 0x1000)
        root.add(MemoryRegion.alias("again", both, 0x800), 0x5000)
    bus = vm.create_address_space("bus", root)
    of_memory, of_bus, of_both = Hearer(), Hearer(), Hearer()
    vm.memory.add_listener(of_memory)
    bus.add_listener(of_bus)
    for space in (vm.memory, bus):
        space.add_listener(of_both)
    assert of_bus.take() == [("add", "both", 0x5000)]
    of_memory.take()
    of_both.take()
    bus.add(MemoryRegion.mmio("own", 8), 0)
    assert (of_memory.take(), of_bus.take()) == ([], [("add", "own", 0)])
    both.set_enabled(False)
    assert of_memory.take() == [("del", "both", 0x1000)]
    assert of_bus.take() == [("del", "both", 0x5000)]
    assert of_both.take() == [("add", "own", 0), ("del", "both", 0x1000), ("del", "both", 0x5000)]
    guest_access.load(bus, 0x5000, 1)
    assert (bus.unassigned, vm.memory.unassigned) == (1, 0)


def test_address_space_may_share_a_root_with_another(vm) -> None:
    vm.memory.add(MemoryRegion.ram("ram", 0x1000), 0)
    twin = vm.create_address_space("twin", vm.memory.root)
    assert twin.view == vm.memory.view
    twin.add(MemoryRegion.mmio("device", 8), 0x2000)
    assert shown(vm.memory) == shown(twin) == [(0, 0x1000, "ram", 0), (0x2000, 0x2008, "device", 0)]


def test_address_space_changes_with_all_others_or_not_at_all(vm) -> None:
    """One of two spaces has a listener that refuses: neither changes."""

    class Refuser(Hearer):
        def region_add(self, section) -> None:
            if section.region.name == "no":
                raise ValueError("not that one")

    root = MemoryRegion.container("bus", 1 << 32)
    root.add(MemoryRegion.alias("all", vm.memory.root, 0, 1 << 32), 0)
    bus = vm.create_address_space("bus", root)
    bus.add_listener(Refuser())
    before = (vm.memory.view, bus.view)
    with pytest.raises(accel.AccelError, match="not that one"):
        vm.memory.add(MemoryRegion.ram("no", 0x1000), 0)
    assert (vm.memory.view, bus.view) == before
    vm.memory.add(MemoryRegion.ram("yes", 0x1000), 0)
    assert shown(bus) == [(0, 0x1000, "yes", 0)]


def test_address_space_of_a_name_that_is_taken_is_refused(vm) -> None:
    vm.create_address_space("bus", MemoryRegion.container("bus", 1 << 32))
    for name in ("bus", "memory", "io"):
        with pytest.raises(UsageError, match=f"address space '{name}' exists already"):
            vm.create_address_space(name, MemoryRegion.container("other", 1 << 32))
    assert len(vm.address_spaces) == 3


def test_address_space_over_a_region_of_another_vm_is_refused(vm) -> None:
    with accel.open_accelerator("mock") as mock, mock.create_vm() as other:
        with pytest.raises(RegionError, match="belongs to another VM"):
            vm.create_address_space("bus", other.memory.root)
        assert len(vm.address_spaces) == 2


def test_address_space_made_in_a_transaction_shows_with_its_end(vm) -> None:
    ram = MemoryRegion.ram("ram", 0x1000)
    with vm.transaction():
        bus = vm.create_address_space("bus", ram)
        vm.memory.add(MemoryRegion.alias("window", ram), 0x1000)
        assert shown(bus) == []
    assert shown(bus) == [(0, 0x1000, "ram", 0)]


def test_address_space_made_in_a_transaction_that_fails_never_was(vm) -> None:
    root = MemoryRegion.container("bus", 1 << 32)
    with pytest.raises(KeyError), vm.transaction():
        bus = vm.create_address_space("bus", root)
        bus.add(MemoryRegion.ram("ram", 0x1000), 0)
        raise KeyError("not like this")
    assert len(vm.address_spaces) == 2
    assert (shown(bus), root.children, bus.closed) == ([], (), True)
    for use in (lambda: bus.add(MemoryRegion.ram("late", 0x1000), 0), lambda: bus.read(0, 1)):
        with pytest.raises(ClosedError, match="address space 'bus' is closed"):
            use()
    bus.close()
    with accel.open_accelerator("mock") as mock, mock.create_vm() as other:
        other.create_address_space("bus", root)
    vm.create_address_space("bus", MemoryRegion.container("new", 1 << 32))


# the end of a space


def test_address_space_closed_shows_nothing_and_tells_its_listeners(vm) -> None:
    ram = MemoryRegion.ram("ram", 0x1000)
    bus = vm.create_address_space("bus", ram)
    hearer = Hearer()
    bus.add_listener(hearer)
    hearer.take()
    bus.close()
    assert hearer.take() == [("del", "ram", 0)]
    assert (bus.closed, shown(bus), bus.listeners) == (True, [], ())
    assert vm.address_spaces == (vm.memory, vm.io)
    bus.close()
    ram.release()
    vm.create_address_space("bus", MemoryRegion.container("again", 1 << 32))


def test_address_space_closed_refuses_use(vm) -> None:
    bus = vm.create_address_space("bus", MemoryRegion.ram("ram", 0x1000))
    bus.close()
    for use in (
        lambda: bus.read(0, 1),
        lambda: bus.write(0, b"x"),
        lambda: bus.copy(0, 1, 1),
        lambda: bus.load(0, 4),
        lambda: bus.store(0, 1, 4),
        lambda: bus.translate(0),
        lambda: bus.ram_view(0, 1),
        lambda: bus.mark_dirty(0, 1),
        lambda: bus.add(MemoryRegion.ram("late", 0x1000), 0),
        lambda: bus.remove(bus.root),
        lambda: bus.add_listener(Hearer()),
    ):
        with pytest.raises(ClosedError, match="address space 'bus' is closed"):
            use()
    assert guest_access.load(bus, 0, 2) == 0xFFFF


def test_address_space_in_an_open_transaction_cannot_be_closed(vm) -> None:
    bus = vm.create_address_space("bus", MemoryRegion.ram("ram", 0x1000))
    with vm.transaction(), pytest.raises(StateError, match="a transaction is open"):
        bus.close()
    assert not bus.closed
    assert shown(bus) == [(0, 0x1000, "ram", 0)]


def test_address_space_of_a_closed_vm_can_be_read_and_closed() -> None:
    with accel.open_accelerator("mock") as mock:
        vm = mock.create_vm()
        bus = vm.create_address_space("bus", MemoryRegion.ram("ram", 0x1000))
        bus.write(0, b"left")
        vm.close()
        assert bus.read(0, 4) == b"left"
        bus.close()
        bus.close()
        with pytest.raises(ClosedError, match="the VM is closed"):
            bus.add(MemoryRegion.ram("late", 8), 0)
        with pytest.raises(ClosedError, match="the VM is closed"):
            vm.create_address_space("late", MemoryRegion.container("late", 8))


def test_address_space_that_waits_to_be_closed_while_the_vm_is_closed_has_nothing_left_to_do(
    vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = vm.create_address_space("bus", MemoryRegion.ram("ram", 0x1000))
    exclusive = vm.transactions.exclusive

    def late():
        """Take the big lock after another thread had it last."""
        vm.close()
        return exclusive()

    monkeypatch.setattr(vm.transactions, "exclusive", late)
    bus.close()
    assert bus.read(0, 4) == bytes(4)


def test_address_space_reader_inside_goes_on_while_the_vm_is_closed() -> None:
    """A device's callback closes the VM and releases the memory in the middle of a copy out of it."""
    with accel.open_accelerator("mock") as mock:
        vm = mock.create_vm()
        ram = MemoryRegion.ram("ram", 0x1000)

        def read(offset: int, size: int) -> int:
            vm.close()
            ram.release()
            return 0

        with vm.transaction():
            vm.memory.add(MemoryRegion.mmio("closer", 8, read=read), 0)
            vm.memory.add(ram, 8)
        ram.write(0, b"still here")
        view = vm.memory.ram_view(8, 5)
        assert vm.memory.read(0, 18) == bytes(8) + b"still here"
        assert view == b"still"
        with pytest.raises(ClosedError, match="the host memory of 'ram' is released"):
            vm.memory.read(8, 4)


def test_address_space_root_of_the_whole_64_bits_has_a_last_byte(vm) -> None:
    bus = vm.create_address_space("bus", MemoryRegion.container("bus", ADDRESS_SPACE_SIZE))
    bus.add(MemoryRegion.ram("top", 0x1000), ADDRESS_SPACE_SIZE - 0x1000)
    bus.write(ADDRESS_SPACE_SIZE - 2, b"ok")
    assert bus.load(ADDRESS_SPACE_SIZE - 2, 2) == int.from_bytes(b"ok", "little")
    with pytest.raises(AddressError):
        bus.write(ADDRESS_SPACE_SIZE - 2, b"not")


# how it prints


def test_address_space_prints_the_tree(stage) -> None:
    ram, box = MemoryRegion.ram("ram", "64K"), MemoryRegion.container("box", 0x1000)
    box.add(MemoryRegion.mmio("inner", 8), 0x10)
    with stage.transaction():
        stage.memory.add(box, 0x20000, priority=1)
        stage.memory.add(ram, 0)
        stage.memory.add(MemoryRegion.alias("window", ram, 0x100, 0x200), 0x30000)
        stage.memory.add(MemoryRegion.rom("bios", b"x"), 0x40000)
    box.set_enabled(False)
    assert str(stage.memory).splitlines() == [
        "address-space: memory",
        "  0000000000000000-ffffffffffffffff (prio 0, container): memory",
        "    0000000000000000-000000000000ffff (prio 0, ram): ram",
        "    0000000000020000-0000000000020fff (prio 1, container): box [disabled]",
        "      0000000000020010-0000000000020017 (prio 0, mmio): inner",
        "    0000000000030000-00000000000301ff (prio 0, alias): alias window @ram 0000000000000100-00000000000002ff",
        "    0000000000040000-0000000000040000 (prio 0, rom): bios",
    ]


def test_address_space_prints_no_tree_that_is_edited_meanwhile(stage) -> None:
    held = []

    class Name(str):
        __slots__ = ()

        def __format__(self, spec: str) -> str:
            held.append(stage.big_lock.held())
            return str(self)

    stage.memory.add(MemoryRegion.ram(Name("ram"), 0x1000), 0)
    assert str(stage.memory).endswith("(prio 0, ram): ram")
    assert held
    assert all(held)
