"""Snapshots: back to a point, as often as one likes."""

from __future__ import annotations

import pytest
from accel_unicorn import restore, snapshot

import accel


def test_snapshot_brings_back_memory_registers_and_floating_point(bench):
    # fld1; fadd st, st; then: inc qword [0x200000]; inc rax; fadd st, st; out 0x42, al; jmp to "then"
    code = b"\xd9\xe8\xd8\xc0\x48\xff\x04\x25\x00\x00\x20\x00\x48\xff\xc0\xd8\xc0\xe6\x42\xeb\xef"
    one = bench(code, mode="long64")

    def go_on(turns: int) -> tuple[list[bytes], bytes, int]:
        data = [one.vcpu.run().data for _ in range(turns)]
        one.vcpu.read_state()
        from unicorn import x86_const as x86

        return data, one.machine.memory.read(0x20_0000, 8), one.vcpu.backend.engine.read(x86.UC_X86_REG_ST0)

    go_on(3)
    taken = snapshot(one.machine)
    first = go_on(5)
    assert first[0] == [bytes((n,)) for n in (4, 5, 6, 7, 8)]
    for _ in range(3):
        restore(one.machine, taken)
        assert go_on(5) == first
    restore(one.machine, taken)
    assert go_on(1)[0] == [b"\x04"]


def test_snapshot_of_a_paused_machine_with_two_vcpus_runs_to_the_same_end(bench):
    one = bench("smp.elf", cpus=2)
    taken = snapshot(one.machine)
    for _ in range(2):
        assert one.machine.run(timeout=60).exit_status == 1
        restore(one.machine, taken)
    assert one.printed == 2 * "2 vCPUs counted to 20000\n"


def test_snapshot_brings_back_code_that_was_changed_since(bench):
    one = bench(b"\xb0\x01\xe6\x42\xfe\x04\x25\x01\x00\x10\x00\xeb\xf3", mode="long64")
    taken = snapshot(one.machine)
    first = [one.vcpu.run().data for _ in range(3)]
    restore(one.machine, taken)
    assert [one.vcpu.run().data for _ in range(3)] == first == [b"\x01", b"\x02", b"\x03"]


def test_snapshot_of_another_machine_or_map_is_refused(bench):
    one, other = bench(b"\xf4", mode="long64"), bench(b"\xf4", mode="long64")
    taken = snapshot(one.machine)
    with pytest.raises(accel.errors.UsageError, match="another machine"):
        restore(other.machine, taken)
    one.machine.memory.add(accel.MemoryRegion.ram("more", "4K"), at=0x1000_0000)
    with pytest.raises(accel.errors.StateError, match="map has changed"):
        restore(one.machine, taken)


def test_snapshot_on_another_accelerator_is_refused():
    with (
        accel.Machine.create("mock", memory="1M") as machine,
        pytest.raises(accel.errors.CapabilityError, match="on mock"),
    ):
        snapshot(machine)


def test_snapshot_leaves_pages_of_zeros_out(bench):
    one = bench(b"\xf4", mode="long64", memory="64M")
    assert 0 < snapshot(one.machine).size < 1 << 20


def test_vcpu_that_is_closed_while_a_snapshot_is_taken_is_not_looked_at(bench, monkeypatch):
    one = bench(b"\xe6\x42\xf4", mode="long64")
    vcpu, read_state = one.vcpu, one.vcpu.read_state

    def read_and_close() -> None:
        read_state()
        vcpu.close()

    monkeypatch.setattr(vcpu, "read_state", read_and_close)
    with pytest.raises(accel.errors.ClosedError, match="vCPU 0 is closed"):
        snapshot(one.machine)
