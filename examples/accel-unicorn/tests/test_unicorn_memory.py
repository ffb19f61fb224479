"""Memory that changes under running guests, and code that changes with it."""

from __future__ import annotations

import pytest

import accel
from accel.address import AddressRange
from accel.errors import CapabilityError, MemorySlotError
from accel.program import GuestProgram, Loop, Store
from accel.result import Outcome
from accel.testing.programs import call, poll, smp_count, touch

REGION = 0x1000_0000
HLT = b"\xf4"


def change_under(bench, program, *, hold: str = "inhibit", plan: str = "replace", cpus: int = 1, updates: int = 150):
    """Grow and shrink the RAM that the guest uses; until enough was changed or, unheld, until it shows."""
    one = bench(program, options={"unicorn": {"plan": plan, "hold": hold}}, cpus=cpus)
    extra = accel.MemoryRegion.ram("extra", "64K", max_size="128K")
    one.machine.memory.add(extra, at=REGION)
    run = one.machine.start()
    for made in range(updates if hold == "inhibit" else 20_000):
        if run.done or (hold == "unsafe" and made >= updates and sum(run.spurious_faults_so_far())):
            break
        extra.resize("128K" if made % 2 == 0 else "64K")
    if not run.done:
        run.stop()
    return run.wait(timeout=60)


@pytest.mark.parametrize("plan", ["least", "replace"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_load_while_memory_changes_never_faults_where_vcpus_are_held(bench, cpus, plan):
    result = change_under(bench, poll(REGION, 0), cpus=cpus, plan=plan)
    assert (result.spurious_faults, result.outcome) == (0, Outcome.STOPPED)


def test_load_while_memory_changes_faults_where_nobody_is_held(bench):
    assert change_under(bench, poll(REGION, 0), hold="unsafe").spurious_faults > 0


@pytest.mark.parametrize(("hold", "outcome"), [("inhibit", Outcome.STOPPED), ("unsafe", Outcome.CRASHED)])
def test_fetch_while_memory_changes_crashes_only_where_nobody_is_held(bench, hold, outcome):
    assert change_under(bench, call(REGION), hold=hold).outcome is outcome


def test_several_vcpus_that_add_atomically_lose_no_count_while_memory_changes(bench):
    one = bench(smp_count(0x30_0000, 20_000), cpus=4)
    extra = accel.MemoryRegion.ram("extra", "64K", max_size="128K")
    one.machine.memory.add(extra, at=REGION)
    run = one.machine.start()
    made = 0
    while not run.done:
        extra.resize("128K" if made % 2 == 0 else "64K")
        made += 1
    assert run.wait(timeout=60).outcome is Outcome.HALTED
    assert int.from_bytes(one.machine.memory.read(0x30_0000, 8), "little") == 80_000


def test_removed_region_is_not_touched_any_more_and_its_memory_can_go(bench):
    one = bench(GuestProgram((Loop((Store(REGION, 1, 4),)),)))
    extra = accel.MemoryRegion.ram("extra", "64K")
    one.machine.memory.add(extra, at=REGION)
    run = one.machine.start()
    one.machine.memory.remove(extra)
    extra.write(0, bytes(4))
    assert not run.done
    run.stop()
    assert extra.read(0, 4) == bytes(4)
    extra.release()


def test_code_of_a_region_that_is_replaced_is_the_new_one_whatever_the_page_tables_say(bench):
    """Code runs at a linear address that is not its physical one; the region behind it is replaced twice."""
    # Page tables of 1 GiB pages: linear 0x40000000 is physical 0x10000000's gigabyte, plus 1 GiB of identity.
    call_it = b"\x48\xb8" + (0x4000_0000 + REGION).to_bytes(8, "little") + b"\xff\xd0\xe6\x42"  # call; out 0x42, al
    one = bench(b"\x0f\x22\xdf" + call_it + call_it + HLT, mode="long64")  # mov cr3, rdi first
    one.machine.memory.write(0x80_0000, (0x80_1000 | 3).to_bytes(8, "little"))
    one.machine.memory.write(0x80_1000, 2 * (0x83).to_bytes(8, "little"))
    import attrs

    one.vcpu.write_state(attrs.evolve(one.vcpu.read_state(), rdi=0x80_0000))
    regions = [accel.MemoryRegion.ram(f"code {number}", "4K") for number in (1, 2)]
    for number, region in enumerate(regions, 1):
        region.write(0, bytes((0xB0, number, 0xC3)))  # mov al, number; ret
    one.machine.memory.add(regions[0], at=REGION)
    found = [one.vcpu.run()]
    with one.machine.transaction():
        one.machine.memory.remove(regions[0])
        one.machine.memory.add(regions[1], at=REGION)
    found += [one.vcpu.run(), one.vcpu.run()]
    assert [each.data for each in found[:2]] == [b"\x01", b"\x02"]
    assert found[2] == accel.Halt()


def test_region_that_goes_where_the_guest_has_no_page_makes_no_page_fault(bench):
    """The engine looks for code of what goes as the guest would; the guest must not get a fault of it."""
    one = bench(b"\xe6\x42\xe6\x42" + HLT, mode="long64")  # out twice
    far = accel.MemoryRegion.ram("far", "4K")
    one.machine.memory.add(far, at=0x20_0000_0000)  # the page tables map 4 GiB
    assert isinstance(one.vcpu.run(), accel.IoOut)
    before = one.vcpu.backend.read_state().cr2
    one.machine.memory.remove(far)
    assert isinstance(one.vcpu.run(), accel.IoOut)
    one.machine.memory.add(far, at=0x20_0000_0000)
    one.machine.memory.remove(far)
    assert one.vcpu.run() == accel.Halt()
    assert one.vcpu.read_state().cr2 == before


def test_step_that_fails_leaves_the_map_as_it_was(bench, monkeypatch):
    one = bench(touch(AddressRange(REGION, REGION + 0x4000), 1), cpus=2)
    ram = accel.MemoryRegion.ram("ram", "64K")
    one.machine.memory.add(ram, at=REGION)
    # The second engine refuses, as it would without memory: the first has to take back what it did.
    from unicorn import UcError
    from unicorn.unicorn_const import UC_ERR_NOMEM

    second = one.machine.vm.vcpus[1].backend.engine
    monkeypatch.setattr(second, "map", lambda *_, **__: (_ for _ in ()).throw(UcError(UC_ERR_NOMEM)))
    with pytest.raises(MemorySlotError, match="0x20000000"):
        one.machine.memory.add(accel.MemoryRegion.ram("more", "64K"), at=0x2000_0000)
    monkeypatch.undo()
    assert one.machine.run(timeout=60).exit_status == 1
    one.machine.memory.add(accel.MemoryRegion.ram("more", "64K"), at=0x2000_0000)


def test_dirty_log_on_unicorn_is_refused_with_the_reason(bench):
    with pytest.raises(CapabilityError, match="unicorn keeps no log"):
        bench().machine.ram.start_log(accel.DirtyClient.VGA)


def test_code_that_the_host_changes_in_place_is_translated_anew_on_request(bench):
    from accel_unicorn import forget_code

    one = bench(b"\xb0\x01\xe6\x42\xeb\xfa", mode="long64")  # mov al, 1; out 0x42, al; jmp back
    assert [one.vcpu.run().data, one.vcpu.run().data] == [b"\x01", b"\x01"]
    one.machine.memory.write(0x10_0001, b"\x02")
    forget_code(one.machine)
    assert one.vcpu.run().data == b"\x02"


def test_code_that_a_vcpu_changes_itself_is_seen_at_once(bench):
    # mov al, 1; out 0x42, al; inc byte [0x100001]; jmp back
    one = bench(b"\xb0\x01\xe6\x42\xfe\x04\x25\x01\x00\x10\x00\xeb\xf3", mode="long64")
    assert [one.vcpu.run().data for _ in range(4)] == [b"\x01", b"\x02", b"\x03", b"\x04"]


def test_memory_where_a_vcpu_is_in_the_middle_of_a_read_is_refused_and_can_be_added_later(bench):
    one = bench(b"\xbb\xfd\x0f\x00\x10\x48\x8b\x03\xe6\x42" + HLT, mode="long64")  # mov rax, [0x10000ffd]
    one.machine.memory.add(accel.MemoryRegion.ram("ram", "4K"), at=REGION)
    found = one.vcpu.run()
    found.reply(0x11_2233_4455)
    more = accel.MemoryRegion.ram("more", "4K")
    with pytest.raises(accel.errors.MemorySlotError, match=r"EBUSY.*in the middle of a read"):
        one.machine.memory.add(more, at=REGION + 0x1000)
    assert isinstance(one.vcpu.run(), accel.IoOut)
    assert one.vcpu.read_state().rax == 0x11_2233_4455 << 24
    one.machine.memory.add(more, at=REGION + 0x1000)
