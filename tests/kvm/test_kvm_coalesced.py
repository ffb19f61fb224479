"""The coalesced ring on real KVM: what is queued, when it is full, and what exits at once."""

from __future__ import annotations

import errno

import pytest

import accel
from accel import Halt, IoIn, IoOut
from accel.errors import BackendError
from accel.memory.listener import MemoryListener, Update
from accel_kvm import abi

pytestmark = pytest.mark.kvm

CONSOLE = 0xE9
CAPACITY = abi.KVM_COALESCED_MMIO_MAX - 1  # one entry always stays free
OPCODES = {1: "ee", 2: "66ef", 4: "ef"}  # out %al/%ax/%eax, %dx


def outs(*writes: tuple[int, int, int]) -> str:
    """Return code that writes each `(port, size, value)` and halts."""
    code = ""
    for port, size, value in writes:
        code += f"b8{value.to_bytes(4, 'little').hex()} 66ba{port.to_bytes(2, 'little').hex()} {OPCODES[size]}"
    return code + "f4"


def count_up(count: int) -> str:
    """Return code that writes the bytes 0, 1, 2, … to the console and halts."""
    # mov $count, %ecx; mov $CONSOLE, %dx; 1: out %al, %dx; inc %eax; loop 1b; hlt
    return f"b9{count.to_bytes(4, 'little').hex()} 66bae900 ee 40 e2fc f4"


def bytes_up(count: int) -> bytes:
    return bytes(n & 0xFF for n in range(count))


class Line:
    """Ports whose writes may be queued, and what has arrived there."""

    def __init__(self, vm: accel.Vm, port: int, count: int) -> None:
        self.arrived: list[tuple[int, int, int]] = []
        self.region = accel.MemoryRegion.mmio(f"line@{port:#x}", count, write=self._write, coalesced=True)
        vm.io.add(self.region, at=port)

    def _write(self, offset: int, value: int, size: int) -> None:
        self.arrived.append((offset, size, value))


def pop(vm: accel.Vm) -> list[tuple[int, int, bool, bytes]]:
    """Take the entries out of the ring; one for each write."""
    return [
        (address, size, is_port, data[at : at + size])
        for address, size, is_port, data in vm.backend.ring.pop()
        for at in range(0, len(data), size)
    ]


def test_ring_from_each_start_takes_all_entries_but_one_and_then_exits(boot) -> None:
    guest = boot(count_up(CAPACITY + 1))
    Line(guest.vm, CONSOLE, 1)
    ring = guest.vm.backend.ring
    starts = set()
    for _ in range(CAPACITY + 1):  # each round starts one entry before the last one
        starts.add(ring.indices[0])
        guest.restart()
        assert guest.vcpu.run() == IoOut(CONSOLE, 1, 1, bytes([CAPACITY]))
        assert (ring.indices[1] + 1) % (CAPACITY + 1) == ring.indices[0]
        assert pop(guest.vm) == [(CONSOLE, 1, True, bytes([n])) for n in range(CAPACITY)]
        assert ring.indices[0] == ring.indices[1]
        assert guest.vcpu.run() == Halt()
    assert starts == set(range(CAPACITY + 1))


def test_ring_emptied_at_each_exit_loses_nothing(boot) -> None:
    guest = boot(count_up(2_000))
    line = Line(guest.vm, CONSOLE, 1)
    seen, exits = b"", 0
    while isinstance(access := guest.vcpu.run(), IoOut):
        guest.vm.drain()
        seen += bytes(value for _, _, value in line.arrived) + access.data
        line.arrived.clear()
        exits += 1
    guest.vm.drain()
    seen += bytes(value for _, _, value in line.arrived)
    assert seen == bytes_up(2_000)
    assert exits == 2_000 // (CAPACITY + 1)
    assert guest.vm.coalesced_writes == 2_000 - exits


def test_ring_that_fills_in_the_middle_of_a_string_loses_nothing(boot) -> None:
    # mov $500, %ecx; mov $0x9000, %esi; mov $CONSOLE, %dx; cld; rep outsb; hlt
    guest = boot("b9f4010000 be00900000 66bae900 fc f36e f4")
    guest.ram.write(0x9000, bytes_up(500))
    Line(guest.vm, CONSOLE, 1)
    seen = b""
    while isinstance(access := guest.vcpu.run(), IoOut):
        seen += b"".join(data for *_, data in pop(guest.vm)) + access.data
    seen += b"".join(data for *_, data in pop(guest.vm))
    assert seen == bytes_up(500)


WIDE = ((0x600, 1, 0x11), (0x602, 2, 0x3322), (0x604, 4, 0x77665544), (0x701, 1, 0x88), (0x606, 2, 0xAA99))


def test_ring_keeps_port_size_data_and_order_of_wide_writes_to_several_zones(boot) -> None:
    guest = boot(outs(*WIDE))
    Line(guest.vm, 0x600, 8)
    Line(guest.vm, 0x700, 2)
    assert guest.vcpu.run() == Halt()
    assert pop(guest.vm) == [(port, size, True, value.to_bytes(size, "little")) for port, size, value in WIDE]


def test_ring_drained_delivers_wide_writes_to_their_ports(boot) -> None:
    guest = boot(outs(*WIDE))
    first, second = Line(guest.vm, 0x600, 8), Line(guest.vm, 0x700, 2)
    assert guest.vcpu.run() == Halt()
    guest.vm.drain()
    assert first.arrived == [(port - 0x600, size, value) for port, size, value in WIDE if port < 0x700]
    assert second.arrived == [(1, 1, 0x88)]
    assert guest.vm.coalesced_writes == len(WIDE)


def test_ring_leaves_out_reads_and_what_is_not_wholly_in_a_zone(boot) -> None:
    # in $0xe9, %al, then the writes
    guest = boot("e4e9" + outs((0xE9, 2, 0x2211), (0xE8, 2, 0x4433), (0xE8, 1, 0x55), (0xEA, 1, 0x66)))
    Line(guest.vm, CONSOLE, 1)
    assert [guest.vcpu.run() for _ in range(6)] == [
        IoIn(0xE9, 1, 1, None),
        IoOut(0xE9, 2, 1, b"\x11\x22"),
        IoOut(0xE8, 2, 1, b"\x33\x44"),
        IoOut(0xE8, 1, 1, b"\x55"),
        IoOut(0xEA, 1, 1, b"\x66"),
        Halt(),
    ]
    assert pop(guest.vm) == []


def test_ring_is_shared_by_the_vcpus_in_the_order_of_their_writes(boot) -> None:
    guest = boot(outs((CONSOLE, 1, 0x11)))
    Line(guest.vm, CONSOLE, 1)
    second = guest.vm.create_vcpu(1)
    for vcpu in (guest.vcpu, second, guest.vcpu):
        vcpu.write_state(guest.start)
        assert vcpu.run() == Halt()
    assert pop(guest.vm) == [(CONSOLE, 1, True, b"\x11")] * 3


@pytest.mark.parametrize("how", ["remove", "disable", "cover"])
def test_ports_no_longer_coalesced_exit_at_every_write(boot, how) -> None:
    guest = boot(count_up(3))
    line = Line(guest.vm, CONSOLE, 1)
    assert guest.vcpu.run() == Halt()
    match how:
        case "remove":
            guest.vm.io.remove(line.region)
        case "disable":
            line.region.set_enabled(False)
        case _:
            guest.vm.io.add(accel.MemoryRegion.mmio("plain", 1), at=CONSOLE, priority=1)
    assert [value for _, _, value in line.arrived] == [0, 1, 2], "what was queued arrives before the change"
    guest.restart()
    exits = [guest.vcpu.run() for _ in range(4)]
    assert exits == [*(IoOut(CONSOLE, 1, 1, bytes([n])) for n in range(3)), Halt()]
    assert pop(guest.vm) == []


def test_ports_coalesced_again_are_queued_again(boot) -> None:
    guest = boot(count_up(3))
    line = Line(guest.vm, CONSOLE, 1)
    for enabled in (False, True):
        line.region.set_enabled(enabled)
    assert guest.vcpu.run() == Halt()
    assert len(pop(guest.vm)) == 3


def test_half_of_a_zone_that_is_covered_exits_and_the_rest_is_queued(boot) -> None:
    guest = boot(outs((0x600, 1, 0x11), (0x601, 1, 0x22), (0x602, 1, 0x33)))
    Line(guest.vm, 0x600, 3)
    guest.vm.io.add(accel.MemoryRegion.mmio("plain", 1), at=0x601, priority=1)
    assert guest.vcpu.run() == IoOut(0x601, 1, 1, b"\x22")
    assert guest.vcpu.run() == Halt()
    assert pop(guest.vm) == [(0x600, 1, True, b"\x11"), (0x602, 1, True, b"\x33")]


class Refuser(MemoryListener):
    """Comes after the accelerator, and fails once it is told to."""

    priority = 20
    armed = False

    def prepare(self) -> Update | None:
        return _Refusal() if self.armed else None


class _Refusal(Update):
    def apply(self) -> None:
        raise BackendError("refuser", errno.EPERM)

    def undo(self) -> None:
        """Nothing was done."""


def test_change_that_fails_later_leaves_the_zones_as_they_were(boot) -> None:
    guest = boot(outs((CONSOLE, 1, 0x11), (0x600, 1, 0x22)))
    line, refuser = Line(guest.vm, CONSOLE, 1), Refuser()
    guest.vm.io.add_listener(refuser)
    refuser.armed = True

    def change() -> None:
        with guest.vm.transaction():
            guest.vm.io.remove(line.region)
            Line(guest.vm, 0x600, 1)

    with pytest.raises(BackendError, match="refuser"):
        change()
    assert guest.vcpu.run() == IoOut(0x600, 1, 1, b"\x22")
    assert guest.vcpu.run() == Halt()
    assert pop(guest.vm) == [(CONSOLE, 1, True, b"\x11")]


def test_more_zones_than_the_kernel_takes_are_refused_by_name_and_none_stays(boot) -> None:
    guest = boot(outs((0x1000, 1, 0x11)))

    def change() -> None:
        with guest.vm.transaction():
            for number in range(1_001):
                Line(guest.vm, 0x1000 + 2 * number, 1)

    with pytest.raises(BackendError) as caught:
        change()
    assert caught.value.errno == errno.ENOSPC
    assert "KVM_REGISTER_COALESCED_MMIO failed" in str(caught.value)
    assert "ports [0x17" in str(caught.value)
    assert "of region 'line@0x17" in str(caught.value)
    assert len(guest.vm.io.view) == 0
    assert guest.vcpu.run() == IoOut(0x1000, 1, 1, b"\x11")
