"""What scenarios of changing memory are set up with: a VM on the stand-in kernel, RAM that can grow, and a guest.

Whatever a guest reads is a byte that tells where it came from: `OLD` from what was there before, `NEW` from what the
change brings, `NOTHING` where nothing is.
"""

from __future__ import annotations

from collections.abc import Callable

from accel import MemoryRegion
from accel.errors import MemorySlotError
from accel.program import Halt, Op
from accel.testing.explore.scenario import require
from accel.testing.scenarios.stage import Stage
from accel_kvm.plugin import KvmAccelerator
from accel_kvm.scenarios.kernel import Kernel

PAGE = 0x1000
RAM, LOW, HIGH, DEVICE = 0x1_0000, 0x2_0000, 0x3_0000, 0x4_0000
PORT = 0x80
OLD, NEW, NOTHING = 0x5A, 0xA5, 0xFF


class Scene:
    """A VM with a page of RAM that can grow, and what its first vCPU does.

    Attributes:
        kernel: Below it.
        stage: The VM and its vCPU threads.
        ram: The RAM, at `RAM`.
        guest: The first vCPU's guest.
    """

    options: dict[str, object] = {"plan": "replace"}

    def __init__(self, *ops: Op, cpus: int = 1) -> None:
        self.kernel = Kernel()
        self.stage = Stage(KvmAccelerator(), cpus, **self.options)
        self.vm = self.stage.vm
        self.ram = ram("ram", OLD)
        self.vm.memory.add(self.ram, at=RAM)
        self.guest = self.kernel.guest(self.vm.vcpus[0].backend, *ops, Halt())

    def threads(self) -> dict[str, Callable[[], object]]:
        return {**self.stage.threads(), "changer": self.change}

    def grow(self) -> None:
        """Replace the RAM's slot by one of twice the size."""
        self.ram.resize(2 * PAGE)

    def change(self) -> None:
        self.grow()

    def check(self) -> None:
        self.stage.check()

    def require_ram(self, pages: int) -> None:
        """Require that tree, view and slots show so many pages of the RAM."""
        require(self.ram.size == pages * PAGE, f"the region has {self.ram.size:#x} bytes")
        sizes = [one.range.size for one in self.vm.memory.view if one.region is self.ram]
        require(sizes == [self.ram.size], f"the view shows {sizes}")
        slots = [one.size for one in self.kernel.slots if one.gpa == RAM]
        require(slots == [self.ram.size], f"the slots have {slots}")


def fails(change: Callable[[], None]) -> None:
    """Make a change that must fail at a slot call."""
    try:
        change()
    except MemorySlotError:
        return
    require(False, "the change did not fail")


def ram(name: str, byte: int) -> MemoryRegion:
    """Return a page of RAM that begins with `byte` and can become two."""
    region = MemoryRegion.ram(name, PAGE, 2 * PAGE)
    region.write(0, bytes([byte]))
    return region


def device(byte: int) -> MemoryRegion:
    """Return a device that reads as `byte`."""
    return MemoryRegion.mmio("device", PAGE, read=lambda offset, size: byte)
