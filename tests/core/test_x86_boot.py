"""The entry contract: what a guest finds in its registers and in memory, in each mode.

Page tables and descriptors are read back by a walker of this test's own, as the CPU would read them.
"""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.address import AddressRange
from accel.arch.x86 import BootMode, ram_layout
from accel.arch.x86_boot import plan_boot
from accel.arch.x86_paging import identity_tables, tables_size
from accel.errors import ImageError, UsageError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MODES = [BootMode.REAL16, BootMode.PROTECTED32, BootMode.LONG64]
ENTRY = {BootMode.REAL16: 0x7C00, BootMode.PROTECTED32: 1 * MIB, BootMode.LONG64: 1 * MIB}
DATA_END = {BootMode.REAL16: 64 * KIB, BootMode.PROTECTED32: 4 * GIB, BootMode.LONG64: 4 * GIB}


def plan(mode, *, entry=None, cpus=1, occupied=(), memory=64 * MIB, ram=None):
    return plan_boot(
        entry=ENTRY[mode] if entry is None else entry,
        mode=mode,
        cpus=cpus,
        occupied=occupied,
        ram=ram_layout(memory) if ram is None else ram,
        name="guest.bin",
    )


class Memory:
    """The plan's segments as sparse memory; what nobody wrote reads as zero."""

    def __init__(self, boot):
        self.segments = boot.segments

    def read(self, address, size):
        data = bytearray(size)
        for start, piece in self.segments:
            first, last = max(start, address), min(start + len(piece), address + size)
            if first < last:
                data[first - address : last - address] = piece[first - start : last - start]
        return bytes(data)

    def u64(self, address):
        return struct.unpack("<Q", self.read(address, 8))[0]

    def walk(self, cr3, linear):
        """Return the physical address of `linear`, or None where it is not mapped writable."""
        table = cr3
        for shift in (39, 30, 21, 12):
            entry = self.u64(table + (linear >> shift & 511) * 8)
            if entry & 3 != 3:
                return None
            if shift == 12 or (shift < 39 and entry & 0x80):
                mask = (1 << shift) - 1
                return entry & 0x000F_FFFF_FFFF_F000 & ~mask | linear & mask
            table = entry & 0x000F_FFFF_FFFF_F000
        raise AssertionError("unreachable")


def extents(boot):
    """Return every range that the plan uses, stacks and what it writes outside them."""
    stacks = list(boot.stacks)
    written = [AddressRange.sized(start, len(data)) for start, data in boot.segments]
    return stacks + [item for item in written if not any(stack.covers(item) for stack in stacks)]


def general_registers(state):
    names = ["rax", "rbx", "rcx", "rdx", "rbp", *(f"r{number}" for number in range(8, 16))]
    return [getattr(state, name) for name in names]


@pytest.mark.parametrize("mode", MODES)
def test_plan_boot_any_mode_passes_index_and_boot_info_in_registers(mode):
    boot = plan(mode, cpus=3)
    for index in range(3):
        state = boot.state(index)
        assert (state.rdi, state.rsi) == (index, boot.info)
        assert general_registers(state) == [0] * 13
        assert state.rflags == 2  # neither IF nor DF


@pytest.mark.parametrize("mode", MODES)
def test_plan_boot_any_mode_gives_each_vcpu_a_stack_of_its_own(mode):
    boot = plan(mode, cpus=4)
    size = 1 * KIB if mode is BootMode.REAL16 else 16 * KIB
    assert [stack.size for stack in boot.stacks] == [size] * 4
    for index, stack in enumerate(boot.stacks):
        assert stack.end - 64 < boot.state(index).rsp <= stack.end
        assert not any(stack.overlaps(other) for other in boot.stacks if other is not stack)


@pytest.mark.parametrize(
    ("mode", "bits", "stack"),
    [(BootMode.REAL16, 16, 1024), (BootMode.PROTECTED32, 32, 16384), (BootMode.LONG64, 64, 16384)],
)
def test_plan_boot_boot_info_says_what_the_machine_has(mode, bits, stack):
    boot = plan(mode, cpus=2, memory=5 * GIB)
    info = Memory(boot).read(boot.info, 48)
    assert info[:4] == b"ACCL"
    assert struct.unpack("<6I3Q", info)[1:] == (1, 48, bits, 2, stack, 3 * GIB, 2 * GIB, ENTRY[mode])


def test_plan_boot_ram_in_touching_pieces_counts_as_one():
    ram = [AddressRange(4 * GIB, 5 * GIB), AddressRange(0, 1 * MIB), AddressRange(1 * MIB, 2 * MIB)]
    boot = plan(BootMode.LONG64, ram=ram)
    assert struct.unpack_from("<2Q", Memory(boot).read(boot.info, 48), 24) == (2 * MIB, 1 * GIB)


def test_plan_boot_ram_across_4_gib_is_counted_on_both_sides():
    boot = plan(BootMode.LONG64, ram=[AddressRange(0, 6 * GIB)])
    assert struct.unpack_from("<2Q", Memory(boot).read(boot.info, 48), 24) == (4 * GIB, 2 * GIB)


# real16


@pytest.mark.parametrize(
    ("entry", "selector", "offset"),
    [(0, 0, 0), (0x7C00, 0, 0x7C00), (0xFFFF, 0, 0xFFFF), (0x10000, 0x1000, 0), (0x9FFF8, 0x9FFF, 8)],
)
def test_plan_boot_real16_entry_is_reached_by_segment_and_offset(entry, selector, offset):
    state = plan(BootMode.REAL16, entry=entry).state(0)
    assert (state.cs.selector, state.cs.base, state.rip) == (selector, selector * 16, offset)
    assert state.cs.base + state.rip == entry


def test_plan_boot_real16_data_segments_and_mode_are_plain():
    state = plan(BootMode.REAL16).state(0)
    for segment in (state.ds, state.es, state.ss):
        assert (segment.selector, segment.base, segment.limit) == (0, 0, 0xFFFF)
    assert state.cr0 & 0x8000_0001 == 0
    assert (state.cr4, state.efer) == (0, 0)
    assert (state.idt.base, state.idt.limit) == (0, 0x3FF)


def test_plan_boot_real16_most_vcpus_keep_below_64_kib_and_sp_in_16_bits():
    sector = [AddressRange(0x7C00, 0x7E00)]
    cpus = 23 + 31  # a KiB each: from the boot info's end to the sector, and from 0x8000 to 0xfc00
    boot = plan(BootMode.REAL16, cpus=cpus, occupied=sector)
    assert all(item.start >= 0x1000 and item.end <= 0xFC00 for item in extents(boot))
    assert all(boot.state(index).rsp <= 0xFFFF for index in range(cpus))
    with pytest.raises(ImageError, match="fewer --cpus"):
        plan(BootMode.REAL16, cpus=cpus + 1, occupied=sector)


# protected32


def gdt_entry(boot, state, selector):
    assert selector + 7 <= state.gdt.limit
    return Memory(boot).u64(state.gdt.base + selector)


def test_plan_boot_protected32_segments_are_flat_and_reload_from_the_gdt():
    boot = plan(BootMode.PROTECTED32)
    state = boot.state(0)
    assert state.rip == 1 * MIB
    assert (state.cs.selector, state.ds.selector) == (0x08, 0x10)
    assert state.cs.db
    assert not state.cs.long
    assert state.ds == state.es == state.fs == state.gs == state.ss
    for segment in (state.cs, state.ds):
        assert (segment.base, segment.limit) == (0, 0xFFFF_FFFF)
        assert gdt_entry(boot, state, segment.selector) == segment.descriptor()
    assert gdt_entry(boot, state, 0) == 0


def test_plan_boot_protected32_runs_without_paging_but_with_sse():
    state = plan(BootMode.PROTECTED32).state(0)
    assert state.cr0 & 0x8000_000D == 1  # PE; no PG, TS or EM
    assert state.cr4 & 0x600 == 0x600
    assert (state.cr3, state.efer) == (0, 0)


@pytest.mark.parametrize("mode", [BootMode.PROTECTED32, BootMode.LONG64])
def test_plan_boot_protected_modes_have_no_interrupt_table_so_that_an_exception_is_a_shutdown(mode):
    assert plan(mode).state(0).idt.limit == 0


def test_plan_boot_protected32_stack_is_that_of_a_cdecl_call_with_two_arguments():
    boot = plan(BootMode.PROTECTED32, cpus=2)
    state = boot.state(1)
    back, first, second = struct.unpack("<3I", Memory(boot).read(state.rsp, 12))
    assert (state.rsp + 4) % 16 == 0
    assert (first, second) == (1, boot.info)
    assert Memory(boot).read(back, 4) == bytes.fromhex("fa f4 eb fd")


# long64


def test_plan_boot_long64_mode_bits_and_selectors_are_those_of_ia_32e():
    boot = plan(BootMode.LONG64)
    state = boot.state(0)
    assert state.cr0 & 0x8000_0001 == 0x8000_0001
    assert state.cr0 & 0xC == 0
    assert state.cr4 & 0x620 == 0x620  # PAE, OSFXSR, OSXMMEXCPT
    assert state.efer == 0x500
    assert state.cs.long
    assert not state.cs.db
    for segment in (state.cs, state.ds):
        assert gdt_entry(boot, state, segment.selector) == segment.descriptor()


def test_plan_boot_long64_stack_is_that_of_a_c_function_that_was_called():
    boot = plan(BootMode.LONG64, cpus=2)
    for index in range(2):
        state = boot.state(index)
        assert state.rsp % 16 == 8
        back = Memory(boot).u64(state.rsp)
        assert Memory(boot).read(back, 4) == bytes.fromhex("fa f4 eb fd")


@pytest.mark.parametrize("memory", [2 * MIB, 3 * GIB, 8 * GIB + 4096, 511 * GIB, 600 * GIB])
def test_plan_boot_long64_page_tables_map_low_4_gib_and_all_ram_to_itself(memory):
    boot = plan(BootMode.LONG64, memory=memory)
    walker, cr3 = Memory(boot), boot.state(0).cr3
    mapped = max(4 * GIB, ram_layout(memory)[-1].end)
    edges = {0, 0xFFF, 2 * MIB - 1, 2 * MIB, 512 * GIB - 1, 512 * GIB, mapped - 1}
    for gib in range(-(-mapped // GIB)):
        edges |= {gib * GIB, gib * GIB + 0x1234_5678, (gib + 1) * GIB - 1}
    for address in sorted(edge for edge in edges if edge < mapped):
        assert walker.walk(cr3, address) == address
    assert walker.walk(cr3, mapped + GIB) is None


def test_plan_boot_long64_page_tables_every_large_page_of_the_low_4_gib_is_mapped():
    boot = plan(BootMode.LONG64)
    walker, cr3 = Memory(boot), boot.state(0).cr3
    assert all(walker.walk(cr3, page * 2 * MIB) == page * 2 * MIB for page in range(2048))


@pytest.mark.parametrize("gib", [1, 4, 511, 512, 513, 1024])
def test_identity_tables_any_size_take_what_was_planned(gib):
    assert len(identity_tables(0, gib * GIB)) == tables_size(gib * GIB)


def test_plan_boot_long64_entry_above_4_gib_is_allowed():
    assert plan(BootMode.LONG64, entry=4 * GIB, memory=4 * GIB).state(0).rip == 4 * GIB


# where things go


@st.composite
def situations(draw):
    mode = draw(st.sampled_from(MODES))
    starts = st.integers(0, 0x48).map(lambda unit: unit * 0x1000)
    sizes = st.integers(1, 0x20000)
    occupied = [AddressRange.sized(draw(starts), draw(sizes)) for _ in range(draw(st.integers(0, 5)))]
    return mode, occupied, draw(st.integers(1, 12)), draw(st.sampled_from([256 * KIB, 1 * MIB, 3 * MIB]))


@settings(deadline=None)
@given(situations())
def test_plan_boot_any_image_is_left_alone_or_there_is_no_room(situation):
    mode, occupied, cpus, memory = situation
    try:
        boot = plan(mode, entry=0x100, cpus=cpus, occupied=occupied, memory=memory)
    except ImageError:
        return
    used = extents(boot)
    for number, item in enumerate(used):
        assert item.start >= 0x1000
        assert item.end <= min(memory, DATA_END[mode])
        assert not item.overlaps(AddressRange(0xA0000, 0x100000))
        assert not any(item.overlaps(taken) for taken in occupied)
        assert not any(item.overlaps(other) for other in used[:number])


@pytest.mark.parametrize("mode", MODES)
def test_plan_boot_low_memory_free_is_used_from_0x1000(mode):
    boot = plan(mode)
    assert boot.info == 0x1000
    assert all(item.end <= 640 * KIB for item in extents(boot))


def test_plan_boot_low_memory_taken_moves_behind_the_image():
    boot = plan(BootMode.LONG64, occupied=[AddressRange(0, 2 * MIB)])
    assert all(item.start >= 2 * MIB for item in extents(boot))
    assert boot.info == 2 * MIB


def test_plan_boot_many_vcpus_go_on_above_1_mib():
    boot = plan(BootMode.LONG64, cpus=256)
    assert len(boot.stacks) == 256
    assert boot.stacks[-1].start > 1 * MIB


# refusals


@pytest.mark.parametrize(
    ("mode", "entry", "message"),
    [
        (BootMode.REAL16, 0x10_0000, "entry 0x100000 cannot be reached in real16, which ends at 0x100000"),
        (BootMode.REAL16, 0x10_0000, "enter in protected32 or long64"),
        (BootMode.PROTECTED32, 4 * GIB, "entry 0x100000000 cannot be reached in protected32"),
        (BootMode.LONG64, -1, "entry -0x1 cannot be reached"),
        (BootMode.LONG64, 64 * MIB, "entry 0x4000000 is not in RAM, which is [0x0, 0x4000000)"),
        (BootMode.LONG64, 64 * MIB, "more --memory"),
    ],
)
def test_plan_boot_entry_out_of_reach_is_refused_with_the_next_step(mode, entry, message):
    with pytest.raises(ImageError) as caught:
        plan(mode, entry=entry)
    assert message in str(caught.value)
    assert caught.value.path == "guest.bin"


def test_plan_boot_no_room_names_what_where_and_the_next_step():
    with pytest.raises(ImageError) as caught:
        plan(BootMode.LONG64, memory=1 * MIB, entry=0, occupied=[AddressRange(0, 0x9E000)])
    message = str(caught.value)
    assert "no room for the page tables (0x6000 bytes) in [0x1000, 0x100000000)" in message
    assert "RAM is [0x0, 0x100000)" in message
    assert "the image takes [0x0, 0x9e000)" in message
    assert "use more --memory, fewer --cpus or another --load-address" in message


def test_plan_boot_no_vcpu_is_refused():
    with pytest.raises(UsageError, match="0 vCPUs: a guest needs at least one"):
        plan(BootMode.LONG64, cpus=0)


@pytest.mark.parametrize("index", [-1, 2])
def test_state_of_a_vcpu_that_was_not_planned_is_refused(index):
    with pytest.raises(UsageError, match="the boot was planned for 2"):
        plan(BootMode.LONG64, cpus=2).state(index)


def test_plan_boot_reset_writes_nothing_and_sets_nothing():
    boot = plan(BootMode.RESET, entry=0xFFFF_FFF0, cpus=2)
    assert boot.segments == ()
    assert boot.state(1) is None
