"""Memory that guests of the mock read directly and cannot write: ROM devices, read-only files, RAM made so."""

from __future__ import annotations

import os

import pytest

from accel.address import PAGE_SIZE
from accel.errors import RegionError
from accel.exits import MmioRead, MmioWrite
from accel.memory.backing import Backing
from accel.memory.mmio import MmioOps
from accel.memory.region import MemoryRegion
from accel.program import RETURN_BYTE, Add, Fetch, Load, Store

BASE = 0x20_0000
CODE = bytes([RETURN_BYTE]) * PAGE_SIZE


class Flash:
    """A ROM device, and the calls it got."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.region = MemoryRegion.rom_device("flash", CODE, ops=MmioOps(self._read, self._write))

    def _read(self, offset: int, size: int) -> int:
        self.calls.append((offset, size))
        return 0x5A

    def _write(self, offset: int, value: int, size: int) -> None:
        self.calls.append((offset, value, size))


def test_mock_rom_device_is_read_directly_and_its_writes_exit_to_the_callbacks(boot) -> None:
    guest, flash = boot(), Flash()
    guest.vm.memory.add(flash.region, at=BASE)
    assert guest.run(Load(BASE + 4, 1, expect=RETURN_BYTE), Fetch(BASE), Load(BASE, 8)) == []
    assert guest.run(Store(BASE + 8, 0x2211, 2), Add(BASE, 1, 1)) == [
        MmioWrite(BASE + 8, 2, 0x2211),
        MmioWrite(BASE, 1, RETURN_BYTE + 1),
    ]
    assert flash.calls == [(8, 0x2211, 2), (0, RETURN_BYTE + 1, 1)]
    assert flash.region.read(0, PAGE_SIZE) == CODE


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_mock_rom_device_out_of_its_memory_mode_exits_for_reads_too_until_it_is_back(boot, plan) -> None:
    guest, flash = boot(plan=plan), Flash()
    guest.vm.memory.add(flash.region, at=BASE)
    for _ in range(2):
        flash.region.set_romd(False)
        assert guest.memslots.table.slots == ()
        exits = guest.run(Load(BASE, 1, expect=0x5A), Store(BASE, 1, 1))
        assert [type(one) for one in exits] == [MmioRead, MmioWrite]
        flash.region.set_romd(True)
        assert guest.run(Load(BASE, 1, expect=RETURN_BYTE)) == []
    assert flash.calls == [(0, 1), (0, 1, 1)] * 2


def test_mock_rom_of_a_read_only_file_is_read_directly_and_its_writes_exit(boot, tmp_path) -> None:
    path = tmp_path / "image"
    path.write_bytes(CODE)
    os.chmod(path, 0o444)
    guest = boot()
    region = MemoryRegion.ram("image", PAGE_SIZE, backing=Backing.file(path, readonly=True))
    guest.vm.memory.add(region, at=BASE)
    assert guest.run(Load(BASE, 1, expect=RETURN_BYTE), Fetch(BASE + 1)) == []
    assert guest.run(Store(BASE, 0, 4), Add(BASE + 4, 1, 4)) == [
        MmioWrite(BASE, 4, 0),
        MmioWrite(BASE + 4, 4, int.from_bytes(CODE[:4], "little") + 1),
    ]
    with pytest.raises(RegionError, match="read-only file"):
        region.set_readonly(False)
    assert len(guest.run(Store(BASE, 0, 1))) == 1
    assert path.read_bytes() == CODE


@pytest.mark.parametrize("plan", ["least", "replace"])
def test_mock_rom_that_was_ram_and_is_again_keeps_its_contents(boot, plan) -> None:
    guest = boot(plan=plan)
    region = MemoryRegion.ram("ram", PAGE_SIZE)
    guest.vm.memory.add(region, at=BASE)
    for value in (0x22, 0x33):
        region.set_readonly(True)
        assert guest.run(Store(BASE, value, 1)) == [MmioWrite(BASE, 1, value)]
        region.set_readonly(False)
        assert guest.run(Store(BASE, value, 1)) == []
        assert region.read(0, 1) == bytes([value])
    assert guest.vm.blocker.stats.inhibits == 4


def test_mock_rom_window_keeps_writes_out_of_ram_that_is_writable_elsewhere(boot) -> None:
    guest = boot()
    region = MemoryRegion.ram("ram", PAGE_SIZE)
    with guest.vm.transaction():
        guest.vm.memory.add(region, at=BASE)
        guest.vm.memory.add(MemoryRegion.alias("window", region, readonly=True), at=2 * BASE)
    exits = guest.run(Store(2 * BASE, 0x22, 1), Store(BASE, 0x33, 1), Load(2 * BASE, 1, expect=0x33))
    assert exits == [MmioWrite(2 * BASE, 1, 0x22)]
    assert region.read(0, 1) == b"\x33"
