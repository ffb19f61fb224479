"""set_memory_region: flags and numbers that KVM refuses, slots that move and go under a guest that reads them."""

from __future__ import annotations

import errno

import pytest

import accel
from accel.address import PAGE_SIZE
from accel.errors import BackendError, MemorySlotError
from accel.program import ERRORS, GuestProgram, Load, Loop, Out
from accel_kvm import abi
from accel_kvm import vm as kvm_vm
from accel_kvm.ioctl import ioctl

AT = 0xC000_0000
SIZE = 2 << 20
MMIO = 0xBEEF
TURNS = 10
PORT = 0x80

#: Read the first 8 bytes again and again; each round says how often they were not 0.
READ_ON = GuestProgram((Loop((*[Load(AT, 8, expect=0)] * 50, Out(PORT, ERRORS, 4)), None),))


# no slots


@pytest.mark.kvm
def test_vcpu_of_a_vm_that_never_had_memory_ends_in_an_internal_error(open_vm) -> None:
    assert isinstance(open_vm().create_vcpu(0).run(), accel.InternalError)


@pytest.mark.kvm
def test_vcpu_of_a_vm_whose_memory_is_all_gone_ends_and_does_not_hang(boot) -> None:
    guest = boot("ebfe")
    guest.vm.memory.remove(guest.ram)
    # In protected mode the host may say that it cannot read an instruction, or that the fault itself faulted.
    assert isinstance(guest.vcpu.run(), accel.InternalError | accel.Shutdown)


# what the kernel refuses, by bare calls


def set_slot(guest, slot: int, flags: int = 0, *, version: int = 1, gpa: int = AT, size: int = PAGE_SIZE) -> int:
    """Call KVM_SET_USER_MEMORY_REGION, or its second version; return the errno, 0 for success."""
    kind, request = (
        (abi.KvmUserspaceMemoryRegion, abi.KVM_SET_USER_MEMORY_REGION)
        if version == 1
        else (abi.KvmUserspaceMemoryRegion2, abi.KVM_SET_USER_MEMORY_REGION2)
    )
    try:
        ioctl(guest.vm_fd, request, kind(slot, flags, gpa, size, guest.hva), "set slot")
    except BackendError as error:
        return error.errno or 0
    return 0


@pytest.fixture
def version(request: pytest.FixtureRequest, raw_guest) -> tuple[object, int]:
    """A guest, and a version of the call that its kernel has."""
    guest = raw_guest("halt")
    return guest, request.param


@pytest.mark.kvm
@pytest.mark.parametrize("version", [1, 2], indirect=True)
def test_slot_flag_that_is_unknown_is_einval(version) -> None:
    guest, number = version
    known = abi.KVM_MEM_LOG_DIRTY_PAGES | abi.KVM_MEM_READONLY | (abi.KVM_MEM_GUEST_MEMFD if number == 2 else 0)
    for bit in range(32):
        if not known >> bit & 1:
            assert set_slot(guest, 5, 1 << bit, version=number) == errno.EINVAL, f"bit {bit}"
    for flags in (0, abi.KVM_MEM_LOG_DIRTY_PAGES, abi.KVM_MEM_READONLY):
        assert set_slot(guest, 5, flags, version=number) == 0, f"flags {flags:#x}"
        assert set_slot(guest, 5, size=0) == 0


@pytest.mark.kvm
def test_slot_of_a_guest_memfd_is_einval_in_the_first_version_and_with_a_dirty_log(raw_guest) -> None:
    guest = raw_guest("halt")
    assert set_slot(guest, 5, abi.KVM_MEM_GUEST_MEMFD) == errno.EINVAL
    logged = abi.KVM_MEM_GUEST_MEMFD | abi.KVM_MEM_LOG_DIRTY_PAGES
    assert set_slot(guest, 5, logged, version=2) == errno.EINVAL


@pytest.mark.kvm
def test_slot_numbers_end_where_the_kernel_says(raw_guest) -> None:
    """Every 16th of them filled, and the last; a page each instead of 2 MiB, and always the same one."""
    guest = raw_guest("halt")
    count = ioctl(guest.system_fd, abi.KVM_CHECK_EXTENSION, abi.KVM_CAP_NR_MEMSLOTS, "KVM_CHECK_EXTENSION")
    assert count > 1
    for slot in (*range(1, count - 1, 16), count - 1):
        assert set_slot(guest, slot, gpa=AT + 2 * slot * PAGE_SIZE) == 0
    assert set_slot(guest, count, gpa=AT + 2 * count * PAGE_SIZE) == errno.EINVAL
    assert set_slot(guest, count - 1, gpa=AT, size=0) == 0


def test_slots_that_are_all_taken_refuse_one_more_by_name_until_one_is_free(machine, accelerator, monkeypatch) -> None:
    count = 64
    if accelerator == "kvm":
        # The kernel has more; the accelerator is told of so many.
        ask = kvm_vm.extension
        monkeypatch.setattr(
            kvm_vm, "extension", lambda fd, number: count if number == abi.KVM_CAP_NR_MEMSLOTS else ask(fd, number)
        )
    one = machine(READ_ON, **({"slot_count": count} if accelerator == "mock" else {}))
    regions = [accel.MemoryRegion.ram(f"ram{number}", PAGE_SIZE) for number in range(count)]
    for number, region in enumerate(regions[:-1]):  # the machine's own RAM is one as well
        one.memory.add(region, at=AT + 2 * number * PAGE_SIZE)
    with pytest.raises(MemorySlotError) as caught:
        one.memory.add(regions[-1], at=AT + 2 * count * PAGE_SIZE)
    assert (caught.value.slot, caught.value.gpa) == (count, AT + 2 * count * PAGE_SIZE)
    one.memory.remove(regions[0])
    one.memory.add(regions[-1], at=AT + 2 * count * PAGE_SIZE)


# move


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_slot_moved_under_a_guest_that_reads_it_never_shows_what_it_hid(machine, looped, hold) -> None:
    """The host writes another value to where the guest looks while the slot is a page lower, and the old one back."""
    one = machine(READ_ON, hold=hold, plan="replace")
    region = accel.MemoryRegion.ram("moved", SIZE)
    one.memory.add(region, at=AT)
    with looped(one.vm.vcpus[0], reply=0) as loop:
        for _ in range(TURNS):
            loop.go_round()
            region.move(AT - PAGE_SIZE)
            region.write(0, b"\2")
            loop.go_round()
            region.write(0, b"\0")
            region.move(AT)
        assert loop.go_round() == bytes(4), "2 was seen"
        region.write(0, b"\1")
        assert loop.go_round() > bytes(4), "1 was not seen"
    assert all(access == accel.MmioRead(AT, 8, None) for access in loop.reads)
    if hold == "inhibit":
        assert loop.reads == [], "half of a move was seen"


#: 1: mov (AT), %rax; cmp $2; je bad; cmp $1; je done; test; je 1b; cmp $0xbeef; je 1b; bad: out to 0x61; done: to 0x60
UNTIL_1 = "48a1 000000c0 00000000 4883f802 7412 4883f801 740f 4885c0 74e5 3defbe0000 74de e661 f4 e660 f4"


@pytest.mark.kvm
@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_slot_moved_under_a_guest_that_waits_for_1_shows_0_or_the_device_before_and_never_2(boot, looped, hold) -> None:
    for _ in range(TURNS):
        guest = boot(UNTIL_1, mode="long64", hold=hold, plan="replace")
        region = accel.MemoryRegion.ram("moved", SIZE)
        guest.vm.memory.add(region, at=AT)
        with looped(guest.vcpu, reply=MMIO) as loop:
            region.move(AT - PAGE_SIZE)
            region.write(0, b"\2")
            region.write(0, b"\1")
            region.move(AT)
            assert loop.join() == accel.Halt()
        assert loop.rounds == [b"\1"]
        assert next(one for one in loop.exits if isinstance(one, accel.IoOut)).port == 0x60
        assert all(access == accel.MmioRead(AT, 8, None) for access in loop.reads)
        assert hold == "unsafe" or loop.reads == []


# delete


@pytest.mark.parametrize("hold", ["inhibit", "unsafe"])
def test_slot_deleted_under_a_guest_that_reads_it_shows_the_device_until_it_is_back(machine, looped, hold) -> None:
    one = machine(READ_ON, hold=hold)
    region = accel.MemoryRegion.ram("deleted", SIZE)
    one.memory.add(region, at=AT)
    with looped(one.vm.vcpus[0], reply=MMIO) as loop:
        for _ in range(TURNS):
            before = loop.go_round()
            assert loop.go_round() == before, "RAM reads as 0"
            one.memory.remove(region)
            gone = len(loop.rounds)
            loop.go_round(3)
            # The first round may have begun before; the next is all without the slot.
            assert loop.reads_by[gone + 2] - loop.reads_by[gone + 1] == 50, "each read exits"
            one.memory.add(region, at=AT)
    errors = int.from_bytes(loop.rounds[-1], "little")
    assert 0 <= len(loop.reads) - errors <= 50, "it read the device's value whenever it exited, and only then"
    assert all(access == accel.MmioRead(AT, 8, None) for access in loop.reads)


@pytest.mark.parametrize("accelerator", [pytest.param("kvm", marks=pytest.mark.kvm)])
def test_slot_that_holds_the_code_deleted_under_the_guest_ends_it(machine, looped) -> None:
    one = machine(READ_ON)
    with looped(one.vm.vcpus[0], reply=0) as loop:
        loop.go_round()
        one.memory.remove(one.ram)
        assert isinstance(loop.join(), accel.InternalError | accel.Shutdown)
