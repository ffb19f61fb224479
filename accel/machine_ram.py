"""A machine's RAM, laid out as on a PC, and images put into it and its vCPUs.

Layer: below `machine`, which decides when; the layout is `accel.arch.x86`, the entry state `accel.arch.x86_boot`.
"""

from __future__ import annotations

from accel.address import AddressRange
from accel.arch.x86 import HIGH_RAM_START, ram_layout
from accel.arch.x86_boot import plan_boot
from accel.loaders.checks import check_fits
from accel.loaders.image import Image
from accel.memory.address_space import AddressSpace
from accel.memory.backing import Backing
from accel.memory.region import MemoryRegion
from accel.vm import Vm


class MachineRam:
    """The RAM of one machine.

    Args:
        size: Bytes, a multiple of 4 KiB.
        backing: What host memory it is; anonymous memory where it is None.

    Attributes:
        region: All of it, as one region.
        below_4g: Bytes from address 0 on.
        above_4g: Bytes from 4 GiB on.

    Raises:
        AddressError: As `ram_layout` does, or the host cannot do it.
    """

    def __init__(self, size: int, backing: Backing | None = None) -> None:
        self._layout = ram_layout(size)
        self.below_4g = self._layout[0].size
        self.above_4g = self._layout[1].size if len(self._layout) > 1 else 0
        self.region = MemoryRegion.ram("ram", size, backing=backing)

    def show_in(self, memory: AddressSpace) -> None:
        """Add it to the guest-physical space; in two windows, where some of it lies above 4 GiB."""
        if len(self._layout) == 1:
            memory.add(self.region, 0)
            return
        at = 0
        for window, name in zip(self._layout, ("ram-below-4g", "ram-above-4g"), strict=True):
            memory.add(MemoryRegion.alias(name, self.region, at, window.size), window.start)
            at += window.size

    def place(self, image: Image, vm: Vm, *, irqchip: bool) -> None:
        """Put `image` into the memory of `vm`, and its vCPUs at the entry point.

        Raises:
            ImageError: It does not fit; nothing has changed.
        """
        check_fits(image, self._layout)
        plan = plan_boot(
            entry=image.entry,
            mode=image.mode,
            cpus=len(vm.vcpus),
            occupied=[segment.range for segment in image.segments],
            ram=self._layout,
            name=image.name,
        )
        with vm.transaction():
            for number, rom in enumerate(image.rom):
                region = MemoryRegion.rom(f"{image.loader}-rom{number}", rom.data, rom.size)
                vm.memory.add(region, rom.address, priority=1)
        for segment in image.segments:
            self._write(segment.range, segment.data)
        for address, data in plan.segments:
            self._write(AddressRange.sized(address, len(data)), data)
        # With interrupt controllers the other vCPUs wait for INIT and SIPI, as a PC's do.
        for vcpu in vm.vcpus[:1] if irqchip else vm.vcpus:
            state = plan.state(vcpu.index)
            if state is not None:
                vcpu.write_state(state)

    def _write(self, where: AddressRange, data: bytes | memoryview) -> None:
        """Write `data`, followed by zeros, whatever shows at those addresses now."""
        shift = HIGH_RAM_START - self.below_4g if where.start >= HIGH_RAM_START else 0
        self.region.write(where.start - shift, data)
        self.region.clear(where.start - shift + len(data), where.size - len(data))
