"""The devices behind the real port space, and the interrupt line behind real interrupt controllers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from accel import Machine
from accel.blocker import AccelBlocker
from accel.devices import Cmos, DebugConsole, DebugExit, Serial
from accel.devices.builtin import BUILTIN_DEVICES
from accel.locks import BIG_LOCK, Lock
from accel.memory.address_space import AddressSpace
from accel.memory.guest_access import load, store
from accel.memory.region import MemoryRegion
from accel.memory.transaction import Transactions


class Host:
    """A machine without interrupt controllers that notes how its run ends."""

    cpus = 2
    ram_below_4g = 64 << 20
    ram_above_4g = 0

    def __init__(self) -> None:
        self.statuses: list[int] = []

    def request_exit(self, status: int) -> None:
        self.statuses.append(status)

    def irq_line(self, number: int) -> Callable[[bool], None] | None:
        return None


@pytest.fixture
def io() -> AddressSpace:
    big_lock = Lock(BIG_LOCK)
    return AddressSpace("io", Transactions(big_lock, AccelBlocker(big_lock)), MemoryRegion.container("io", 1 << 16))


def test_all_builtin_devices_answer_at_their_ports_side_by_side(io: AddressSpace) -> None:
    host = Host()
    devices = [kind.create({option.name: option.default for option in kind.options}) for kind in BUILTIN_DEVICES]
    for device in devices:
        device.connect(host)
        for port, region in device.io_regions():
            io.add(region, port)
    store(io, 0x3F8, 0x41, 1)
    store(io, 0xE9, 0x42, 1)
    store(io, 0x70, 0x5F, 1)
    store(io, 0xF4, 0x10, 4)
    serial, console = devices[:2]
    assert isinstance(serial, Serial)
    assert isinstance(console, DebugConsole)
    assert serial.console.captured() == b"A"
    assert console.console.captured() == b"B"
    assert (load(io, 0x3FD, 1), load(io, 0xE9, 1), load(io, 0x71, 1), load(io, 0xF4, 2)) == (0x60, 0xE9, 1, 0)
    assert host.statuses == [0x21]
    assert io.unassigned == 0


def test_wide_accesses_across_a_device_end_are_split(io: AddressSpace) -> None:
    console = DebugConsole()
    for port, region in console.io_regions():
        io.add(region, port)
    store(io, 0xE8, 0x434241, 4)
    assert console.console.captured() == b"B"
    assert load(io, 0xE9, 2) == 0xFFE9


_ISR = 0x7C40


def _echo_by_interrupt(fcr: int) -> bytes:
    """Return real-mode code at 0x7c00 that echoes one byte per interrupt, and exits with it when it is '!'."""
    start = bytes.fromhex(
        "31c0 8ed8 8ed0 bc0070"  # ds = ss = 0, sp = 0x7000
        f"c7063000{_ISR.to_bytes(2, 'little').hex()}"  # vector 0x0c, IRQ 4, offset
        "c70632000000"  # and segment
        "b011e620 b008e621 b004e621 b001e621 b0efe621"  # first PIC at vector 8, all masked but IRQ 4
        f"bafa03 b0{fcr:02x} ee"  # FCR
        "baf903 b001 ee"  # IER: receive
        "fb f4 ebfd"  # sti; hlt for ever
    )
    handler = bytes.fromhex(
        "baf803 ec ee"  # one byte from RBR to THR, without a look at IIR or LSR
        "3c21 7502 e6f4"  # if it is '!', out 0xf4
        "b020 e620 cf"  # end of interrupt
    )
    return start.ljust(_ISR - 0x7C00, b"\x90") + handler


@pytest.mark.kvm
@pytest.mark.parametrize("fcr", [0x00, 0xC1], ids=["no-fifo", "fifo-timeouts"])
def test_serial_on_kvm_interrupts_once_for_each_byte(fcr: int) -> None:
    with Machine.create("kvm", memory="1M", irqchip=True) as machine:
        serial = Serial()
        for device in (serial, DebugExit(), Cmos()):
            machine.attach(device)
        machine.load(_echo_by_interrupt(fcr), mode="real16")
        serial.feed(b"early")
        run = machine.start()
        serial.feed(b", late!")
        result = run.wait(timeout=60)
        assert machine.accelerator == "kvm"
    assert serial.console.captured() == b"early, late!"
    assert result.exit_status == ord("!") << 1 | 1
