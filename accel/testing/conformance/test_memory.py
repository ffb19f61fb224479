"""Memory: what the guest sees of regions that come, go, move, grow, shrink, cover each other and show twice."""

from __future__ import annotations

import threading

import pytest

from accel.exits import Exit, Interrupted, IoIn, IoOut, MmioRead, MmioWrite
from accel.memory.region import MemoryRegion
from accel.program import Add, Load, Loop, Out, Store
from accel.testing.claims import Claims
from accel.testing.conformance.lane import Lanes
from accel.testing.conformance.look import BASE, judged, look, pages, perform, tagged, write
from accel.testing.conformance.verdict import Violation, due, expect
from accel.testing.machines import MachineFactory

pytestmark = pytest.mark.accelerators(executes=("program", "x86"))

SIZES = (1, 2, 4, 8)
VALUE = 0x8877_6655_4433_2211


def low(size: int) -> int:
    """Return the low `size` bytes of a value whose bytes all differ."""
    return VALUE & (1 << 8 * size) - 1


def no_exits(exits: list[Exit], what: str) -> None:
    """Raise Violation if something came out."""
    for found in exits:
        raise Violation(f"{what} came out: {found}")


def test_memory_holds_what_the_guest_stores_in_every_size(machine: MachineFactory, lane: Lanes) -> None:
    """Stores of 1, 2, 4 and 8 bytes, aligned or not, are in RAM as little-endian bytes, for the guest and the host."""
    one, ram = machine(), MemoryRegion.ram("ram", "64K")
    one.memory.add(ram, at=BASE)
    places = [(0x100 * size + 0x20 * shift + shift, size) for size in SIZES for shift in range(size)]
    ops = [Store(BASE + offset, low(size), size) for offset, size in places]
    ops += [Load(BASE + offset, size, expect=low(size)) for offset, size in places]  # type: ignore[misc]
    played = perform(one, lane(one), ops)
    no_exits(played.exits, "an access to RAM")
    expect(not played.errors, f"{played.errors} of {len(places)} loads from RAM gave something else than was stored")
    for offset, size in places:
        data = ram.read(offset, size)
        expect(
            data == low(size).to_bytes(size, "little"),
            f"a store of {low(size):#x} as {size} bytes at offset {offset:#x} left {data.hex(' ')} in RAM",
        )
        rest = ram.read(offset + size, 1)
        expect(rest == b"\0", f"a store of {size} bytes at offset {offset:#x} wrote beyond its end")


def test_memory_shows_what_the_host_writes(machine: MachineFactory, lane: Lanes) -> None:
    """What the host writes into RAM, before a region is added or after, is what the guest reads next."""
    one, ram = machine(), MemoryRegion.ram("ram", "64K")
    ram.write(0x100, low(8).to_bytes(8, "little"))
    one.memory.add(ram, at=BASE)
    vcpu = lane(one)
    look(one, vcpu, {BASE + 0x100: low(8)}, "after a write before the region was added", size=8)
    one.memory.write(BASE + 0x100, b"\x05\0\0\0\0\0\0\0")
    look(one, vcpu, {BASE + 0x100: 5}, "after a write by the host", size=8)


@pytest.mark.parametrize("size", SIZES)
def test_memory_locked_add_wraps_in_its_size(machine: MachineFactory, lane: Lanes, size: int) -> None:
    """A locked addition in RAM changes its own bytes, wraps, and does not come out."""
    one, ram = machine(), MemoryRegion.ram("ram", "64K")
    one.memory.add(ram, at=BASE)
    most = (1 << 8 * size) - 1
    ram.write(0x80, most.to_bytes(size, "little") + b"\x77")
    played = perform(one, lane(one), [Add(BASE + 0x80, 3, size), Load(BASE + 0x80, size, expect=2)])
    no_exits(played.exits, "a locked addition in RAM")
    found = ram.read(0x80, size + 1)
    wanted = b"\x02".ljust(size, b"\0") + b"\x77"
    expect(found == wanted, f"{most:#x} plus 3 in {size} bytes, and 77 behind it, is {found.hex(' ')} in RAM")


@pytest.mark.parametrize("size", SIZES)
def test_memory_ends_where_the_region_ends(machine: MachineFactory, lane: Lanes, claims: Claims, size: int) -> None:
    """The first and the last bytes of a region are RAM; those right before and behind it come out as MMIO."""
    one, page = machine(), claims.page_size
    one.memory.add(tagged("ram", 2, 0x10, page), at=BASE)
    wanted = {BASE - size: None, BASE: 0x10, BASE + 2 * page: None}
    look(one, lane(one), wanted, "next to a region", size=size)
    played = perform(one, lane(one), [Store(BASE + 2 * page - size, low(size), size)])
    no_exits(played.exits, "a store to the last bytes of RAM")
    found = one.memory.read(BASE + 2 * page - size, size)
    expect(found == low(size).to_bytes(size, "little"), f"the last {size} bytes of RAM are {found.hex(' ')}")


def test_memory_comes_and_goes(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """A region that is added is RAM; one that is removed is a hole, and keeps its contents for when it comes back."""
    one, page = machine(), claims.page_size
    vcpu, ram = lane(one), tagged("ram", 2, 0x20, page)
    look(one, vcpu, pages(BASE, [None, None], page), "before a region is added")
    for turn in range(3):
        one.memory.add(ram, at=BASE)
        look(one, vcpu, pages(BASE, [0x20, 0x21, None], page), f"after a region was added for the {turn + 1}. time")
        one.memory.remove(ram)
        look(one, vcpu, pages(BASE, [None, None], page), f"after a region was removed for the {turn + 1}. time")


@pytest.mark.parametrize("step", [-1, 1, 5])
def test_memory_moves(machine: MachineFactory, lane: Lanes, claims: Claims, step: int) -> None:
    """A region that moves is in the new place with its contents, and only there; also where both overlap."""
    one, page = machine(), claims.page_size
    vcpu, ram = lane(one), tagged("ram", 3, 0x30, page)
    one.memory.add(ram, at=BASE + 2 * page)
    for turn in (1, 0):
        at = 2 + turn * step
        ram.move(BASE + at * page)
        wanted: list[int | None] = [None] * 12
        wanted[at : at + 3] = [0x30, 0x31, 0x32]
        look(one, vcpu, pages(BASE, wanted, page), f"after a region moved by {step if turn else -step} pages")
        write(one, vcpu, {BASE + at * page + 16: 0x99 + turn}, "after a region moved")
        found = int.from_bytes(ram.read(16, 4), "little")
        expect(found == 0x99 + turn, f"after a region moved, a store to it is {found:#x} in its memory")


def test_memory_grows_and_shrinks(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """RAM that is resized keeps its contents; what it grows by is RAM, what it shrinks by is a hole."""
    one, page = machine(), claims.page_size
    vcpu, ram = lane(one), tagged("ram", 2, 0x40, page, max_size=8 * page)
    one.memory.add(ram, at=BASE)
    for count in (5, 3, 8, 1, 2):
        ram.resize(count * page)
        for number in range(count):
            ram.write(number * page, (0x40 + number).to_bytes(4, "little"))
        wanted = {BASE + number * page: 0x40 + number if number < count else None for number in range(9)}
        look(one, vcpu, wanted, f"after RAM was resized to {count} pages")


def test_memory_splits_and_merges(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """A device over the middle of RAM splits it: both sides stay RAM, the middle comes out; and all comes back."""
    one, page = machine(), claims.page_size
    vcpu, ram = lane(one), tagged("ram", 6, 0x50, page)
    device = MemoryRegion.mmio("device", page, read=lambda offset, size: 0)
    one.memory.add(ram, at=BASE)
    for number in (2, 0, 5):
        one.memory.add(device, at=BASE + number * page, priority=1)
        wanted: list[int | None] = [0x50 + n for n in range(6)]
        wanted[number] = None
        look(one, vcpu, pages(BASE, wanted, page), f"with a device over page {number} of 6")
        one.memory.remove(device)
        look(one, vcpu, pages(BASE, [0x50 + n for n in range(6)], page), "after the device went")


def test_memory_that_goes_is_gone_for_a_guest_that_stays_inside(
    machine: MachineFactory, lane: Lanes, claims: Claims
) -> None:
    """Once a change is made, no vCPU reaches memory that went, not even one that has been in the guest all the time and
    used it: its host memory may be something else by then."""
    page = claims.page_size
    for access in (Load(BASE + page, 8), Store(BASE + page, 1, 8), Add(BASE + page, 1, 8)):
        one, ram = machine(Out(0x80, 1), Loop((access,), None)), MemoryRegion.ram("ram", 2 * page)
        one.memory.add(ram, at=BASE)
        vcpu = lane(one)
        due(vcpu.run(), IoOut, "at the first operation")
        vcpu.start()
        waited = threading.Event()
        while isinstance(access, Add) and ram.read(page, 8) == bytes(8) and not vcpu.idle:
            waited.wait(0.001)
        one.memory.remove(ram)
        what = f"a guest that does {type(access).__name__} all the time, when its memory was removed,"
        found = vcpu.exit(what)
        if isinstance(found, Interrupted):  # it was held for the change
            found = vcpu.run(what)
        after = ram.read(page, 8)
        if isinstance(access, Add) and isinstance(found, MmioWrite):  # it went between the read and the write
            value = int.from_bytes(after, "little") + 1
            due(found, MmioWrite, f"of {what}", address=BASE + page, size=8, value=value)
        else:
            due(found, MmioWrite if isinstance(access, Store) else MmioRead, f"of {what}", address=BASE + page, size=8)
        waited.wait(0.001)
        expect(ram.read(page, 8) == after, f"{what} still wrote to it")


def test_memory_above_4g_is_not_that_below(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """Addresses have more than 32 bits: in RAM, and where they come out."""
    if "program" not in claims.executes:
        pytest.skip(f"{claims.name} executes no programs as they are; page tables of x86 ones end where RAM does")
    one, page, high = machine(), claims.page_size, 0x21_0000_0000
    with one.transaction():
        one.memory.add(tagged("low", 1, 0x10, page), at=BASE)
        one.memory.add(tagged("high", 1, 0x20, page), at=high + BASE)
    wanted = pages(BASE, [0x10, None], page) | pages(high + BASE, [0x20, None], page)
    look(one, lane(one), wanted, "with RAM at one place below 4 GiB, and above")


def test_memory_of_a_higher_priority_covers(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """Where RAM covers RAM, the guest sees the one of higher priority; a region that is disabled covers nothing."""
    one, page = machine(), claims.page_size
    vcpu, cover = lane(one), tagged("cover", 2, 0x70, page)
    one.memory.add(tagged("ram", 4, 0x60, page), at=BASE)
    one.memory.add(cover, at=BASE + page, priority=1)
    covered, bare = [0x60, 0x70, 0x71, 0x63], [0x60, 0x61, 0x62, 0x63]
    look(one, vcpu, pages(BASE, covered, page), "with RAM over RAM")
    cover.set_enabled(False)
    look(one, vcpu, pages(BASE, bare, page), "after the upper region was disabled")
    cover.set_enabled(True)
    look(one, vcpu, pages(BASE, covered, page), "after the upper region was enabled again")
    cover.set_priority(-1)
    look(one, vcpu, pages(BASE, bare, page), "after the upper region's priority went below the other's")


def test_memory_shows_twice_through_aliases(machine: MachineFactory, lane: Lanes, claims: Claims) -> None:
    """An alias shows the same memory in another place: what is stored in one is read in the other."""
    one, page = machine(), claims.page_size
    vcpu, ram = lane(one), tagged("ram", 4, 0x80, page)
    far = 0xD000_0000
    window = MemoryRegion.alias("window", ram, page, 2 * page)
    with one.transaction():
        one.memory.add(ram, at=BASE)
        one.memory.add(window, at=far)
    look(one, vcpu, pages(BASE, [0x80, 0x81, 0x82, 0x83], page), "with an alias elsewhere")
    look(one, vcpu, pages(far, [0x81, 0x82, None], page), "through an alias")
    write(one, vcpu, {far + 64: 0xABCD}, "through an alias")
    look(one, vcpu, {BASE + page + 64: 0xABCD}, "after a store through an alias")
    window.set_target_offset(2 * page)
    look(one, vcpu, pages(far, [0x82, 0x83, None], page), "after an alias was turned to another part")
    window.move(far + page)
    look(one, vcpu, pages(far, [None, 0x82, 0x83, None], page), "after an alias moved")
    look(one, vcpu, pages(BASE, [0x80, 0x81, 0x82, 0x83], page), "at what an alias shows, after that moved,")


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("border", ["inside a region", "between regions"])
def test_memory_access_across_a_border_of_pages_is_one_value(
    machine: MachineFactory, lane: Lanes, claims: Claims, size: int, border: str
) -> None:
    """An access that crosses from one page to the next reads and writes both, whether or not they lie together."""
    one, page = machine(), claims.page_size
    if border == "inside a region":
        one.memory.add(MemoryRegion.ram("both", 2 * page), at=BASE)
    else:
        with one.transaction():
            one.memory.add(MemoryRegion.ram("upper", page), at=BASE + page)
            one.memory.add(MemoryRegion.ram("lower", page), at=BASE)
    vcpu = lane(one)
    for cut in range(1, size):
        at = BASE + page - cut
        played = perform(one, vcpu, [Store(at, low(size), size), Load(at, size, expect=low(size))])
        no_exits(played.exits, f"an access of {size} bytes across a border {border}")
        found = one.memory.read(at, size)
        expect(
            found == low(size).to_bytes(size, "little") and not played.errors,
            f"{low(size):#x} stored across a border {border}, {cut} bytes before it, is {found.hex(' ')} there",
        )


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("first", ["RAM", "hole"])
def test_memory_access_across_the_end_of_ram_comes_out_with_the_rest(
    machine: MachineFactory, lane: Lanes, claims: Claims, size: int, first: str
) -> None:
    """Of an access that crosses from RAM into a hole, or the other way, the hole's bytes come out, each once."""
    one, page = machine(), claims.page_size
    ram = MemoryRegion.ram("ram", page)
    border = BASE + page
    one.memory.add(ram, at=BASE if first == "RAM" else border)
    vcpu, data = lane(one), low(size).to_bytes(size, "little")
    for cut in range(1, size):
        at = border - cut
        outside = range(border, at + size) if first == "RAM" else range(at, border)
        written: dict[int, int] = {}
        for found in perform(one, vcpu, [Store(at, low(size), size)]).exits:
            if isinstance(found, MmioWrite):
                for n, byte in enumerate(found.value.to_bytes(found.size, "little")):
                    expect(found.address + n not in written, f"a byte of one store came out twice: {found}")
                    written[found.address + n] = byte
        wanted = {address: data[address - at] for address in outside}
        what = f"a store of {data.hex(' ')}, {cut} bytes before the border of {first} and what follows,"
        expect(written == wanted, f"{what} came out as {_bytes(written)}; due was {_bytes(wanted)}")
        inside = one.memory.read(border - cut if first == "RAM" else border, size - len(outside))
        kept = data[:cut] if first == "RAM" else data[cut:]
        expect(inside == kept, f"{what} left {inside.hex(' ')} in RAM; due was {kept.hex(' ')}")

        def answer(found: IoIn | MmioRead, at: int = at) -> int:
            assert isinstance(found, MmioRead)
            return int.from_bytes(bytes(data[found.address - at + n] for n in range(found.size)), "little")

        errors = perform(one, vcpu, [Load(at, size, expect=low(size))], answer).errors
        expect(not errors, f"a load of {size} bytes, {cut} before the border of {first}, did not join both parts")


def _bytes(found: dict[int, int]) -> str:
    return ", ".join(f"{address:#x}: {byte:02x}" for address, byte in sorted(found.items())) or "nothing"


def test_memory_that_does_not_fit_the_granule_is_still_ram(
    machine: MachineFactory, claims: Claims, patience: float
) -> None:
    """Where a region does not fit into pages of `page_size`, or lies askew to them, its accesses come out, and the core
    serves them: the guest sees RAM."""
    page = claims.page_size
    ram = MemoryRegion.ram("ram", 8 * page)
    one = machine()
    windows = [(0, 0, page // 2), (2 * page, page // 2, 2 * page), (5 * page + page // 4, 4 * page, 2 * page + 0x10)]
    with one.transaction():
        for number, (at, offset, size) in enumerate(windows):
            one.memory.add(MemoryRegion.alias(f"window {number}", ram, offset, size), at=BASE + at)
    ops = []
    for at, _, size in windows:
        places = [BASE + at + n for n in range(0, size - 8, max(8, size // 24) & ~7)] + [BASE + at + size - 8]
        ops += [op for n, place in enumerate(places) for op in (Store(place, n + 1, 8), Load(place, 8, expect=n + 1))]
    judged(one, ops, patience, "in a region that does not fit the granule")
