"""Machine: accelerator + memory + devices + vCPU threads; the API for people who embed this library."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self, TypeVar

from accel.address import AddressRange, format_size, parse_size
from accel.arch.x86 import HIGH_RAM_START, BootMode, ram_layout
from accel.arch.x86_boot import plan_boot
from accel.devices.base import Device
from accel.devices.port_handler import PortAccess, PortHandler
from accel.errors import CapabilityError, ClosedError, DeviceError, StateError, UsageError
from accel.loaders.checks import check_fits
from accel.loaders.image import Image, LoadOptions
from accel.loaders.load import load_image
from accel.memory.address_space import AddressSpace
from accel.memory.backing import Backing
from accel.memory.ram_block import check_host_memory
from accel.memory.region import MemoryRegion
from accel.memory.transaction import Atomic
from accel.plugins import open_accelerator, plugin_manager
from accel.program import GuestProgram
from accel.result import RunResult
from accel.run import Run
from accel.vm import OpenAccelerator

H = TypeVar("H", bound=Callable[[PortAccess], object])


class Machine:
    """A virtual machine with RAM, vCPUs and devices; made by `create`, usable as a context manager.

    Attributes:
        accelerator: Name of the accelerator in use.
        vm: The VM below.
        memory: The guest-physical address space.
        io: The port space.
        ram: The machine's RAM, as one region; above 3 GiB it goes on at 4 GiB.
        cpus: Number of vCPUs.
        ram_below_4g: Bytes of RAM from address 0 on.
        ram_above_4g: Bytes of RAM from 4 GiB on.
        devices: What was attached, in order.
    """

    def __init__(
        self,
        opened: OpenAccelerator,
        *,
        memory: int,
        cpus: int,
        irqchip: bool,
        pit: bool,
        backing: Backing | None = None,
    ) -> None:
        self._opened = opened
        self._irqchip = irqchip
        self._run: Run | None = None
        self._closed = False
        self.accelerator = opened.name
        self.cpus = cpus
        self.devices: tuple[Device, ...] = ()
        layout = ram_layout(memory)
        self._layout = layout
        self.ram_below_4g = layout[0].size
        self.ram_above_4g = layout[1].size if len(layout) > 1 else 0
        self.vm = opened.create_vm(irqchip=irqchip, pit=pit)
        self.memory: AddressSpace = self.vm.memory
        self.io: AddressSpace = self.vm.io
        if cpus > self.vm.backend.max_vcpus:
            raise UsageError(f"{cpus} vCPUs: {opened.name} offers up to {self.vm.backend.max_vcpus} here")
        self.ram = MemoryRegion.ram("ram", memory, backing=backing)
        with self.vm.transaction():
            self._place_ram()
        for index in range(cpus):
            self.vm.create_vcpu(index)

    @classmethod
    def create(
        cls,
        accelerators: str | Iterable[str],
        *,
        memory: int | str = "64M",
        cpus: int = 1,
        irqchip: bool = False,
        pit: bool | None = None,
        backing: Backing | None = None,
        options: Mapping[str, Mapping[str, object]] | None = None,
        executes: str | None = None,
    ) -> Machine:
        """Create a machine on the first accelerator in the list that can be used.

        Args:
            accelerators: Names, in order of preference.
            memory: RAM in bytes, a multiple of 4 KiB.
            cpus: Number of vCPUs.
            irqchip: Create interrupt controllers; all vCPUs but the first then wait for INIT and SIPI.
            pit: Create the interval timer; by default if there is an `irqchip`.
            backing: What host memory the RAM is made of; anonymous memory where it is None.
            options: Options by accelerator name.
            executes: What the guest is, ``x86`` or ``program``; accelerators that cannot run it are passed over.

        Raises:
            UsageError: A value that cannot mean anything; nothing has been opened.
            NoAcceleratorError: No accelerator can be used; has the reason for each.
            CapabilityError: The accelerator has no interrupt controller.
            BackendError: A call into it failed; everything is closed again.
        """
        size = parse_size(memory)
        ram_layout(size)
        check_host_memory(size, f"memory {format_size(size)} is")
        if cpus < 1:
            raise UsageError(f"{cpus} vCPUs: a machine needs at least one")
        opened = open_accelerator(accelerators, options=options, executes=executes)
        try:
            machine = cls(
                opened,
                memory=size,
                cpus=cpus,
                irqchip=irqchip,
                pit=irqchip if pit is None else pit,
                backing=backing,
            )
            machine._tell_plugins()
        except BaseException:
            opened.close()
            raise
        return machine

    # what it is made of

    def attach(self, device: Device) -> None:
        """Add a device with all its regions, or nothing.

        Raises:
            RegionError: A region belongs elsewhere already.
        """
        self._check_open()
        device.connect(self)
        with self.vm.transaction():
            for port, region in device.io_regions():
                self.io.add(region, port)
            for address, region in device.memory_regions():
                self.memory.add(region, address)
        self.devices = (*self.devices, device)

    def port(self, number: int, count: int = 1) -> Callable[[H], H]:
        """Return a decorator that makes a function handle `count` ports from `number` on; see `PortAccess`."""

        def decorate(handler: H) -> H:
            self.attach(PortHandler(number, count, handler))
            return handler

        return decorate

    def transaction(self, atomic: Atomic = "address") -> AbstractContextManager[None]:
        """Return the context of a memory transaction; see `Transactions.transaction`."""
        return self.vm.transaction(atomic)

    def load(
        self,
        image: str | os.PathLike[str] | bytes | Image | GuestProgram,
        *,
        load_address: int | None = None,
        entry: int | None = None,
        mode: BootMode | str | None = None,
        loader: str | None = None,
    ) -> None:
        """Put an image into memory, the vCPUs at its entry point and the devices into their power-on state.

        The machine must not be running.

        Args:
            image: A path, the image's bytes, a loaded `Image`, or a guest program.
            load_address: Where a flat image goes.
            entry: The entry point, in place of the image's own.
            mode: The CPU mode at the entry, in place of the image's own.
            loader: The loader to use, in place of the one that recognises the image.

        Raises:
            ImageError: It cannot be loaded; nothing has changed.
            CapabilityError: The accelerator cannot execute it.
            StateError: The machine is running.
        """
        self._check_open()
        if self._run is not None and not self._run.done:
            raise StateError("an image cannot be loaded while the machine runs; stop it first")
        executes = self._opened.accelerator.executes
        if isinstance(image, GuestProgram):
            if "program" in executes:
                for vcpu in self.vm.vcpus:
                    vcpu.load_program(image)
                self._reset_devices()
                return
            from accel.loaders.program import program_image

            image = program_image(image)
        elif not isinstance(image, Image):
            options = LoadOptions(load_address, entry, None if mode is None else BootMode(mode))
            image = load_image(image, options, plugin_manager().loaders().values(), loader)
        if image.executes not in executes:
            raise CapabilityError(f"{self.accelerator} cannot execute {image.executes}, which {image.name} is")
        self._place(image)
        self._reset_devices()

    # running

    def start(self) -> Run:
        """Start the vCPUs; returns at once.

        Raises:
            StateError: They run already, or this is inside a transaction.
        """
        self._check_open()
        if self.vm.transactions.active:
            raise StateError("start inside a memory transaction could wait for ever; leave the `with` first")
        if self._run is not None and not self._run.done:
            raise StateError("the machine runs already; stop it first")
        if self._run is not None:
            self._run.settle()  # what it came to was told, or nobody asked
        self._run = Run(self.vm, self.accelerator, self._flush)
        self._run.start()
        return self._run

    def run(self, timeout: float | None = None) -> RunResult:
        """Start and wait; see `Run.wait`."""
        return self.start().wait(timeout)

    def pause(self) -> None:
        """Hold the vCPUs outside of the guest; see `Run.pause`. Without a run, nothing happens."""
        if self._run is not None:
            self._run.pause()

    def resume(self) -> None:
        """Let paused vCPUs go on."""
        if self._run is not None:
            self._run.resume()

    def stop(self) -> None:
        """End the run; see `Run.stop`. Without a run, nothing happens."""
        if self._run is not None:
            self._run.stop()

    def wait(self, timeout: float | None = None) -> RunResult:
        """Wait for the end of the run; see `Run.wait`. Raises StateError if nothing was started."""
        if self._run is None:
            raise StateError("nothing was started")
        return self._run.wait(timeout)

    def close(self) -> None:
        """Stop, and release everything; may be called twice.

        Raises:
            InhibitTimeoutError: A vCPU did not come out; nothing is released under it, and close may be retried.
            StateError: Called inside a transaction or by a device handler.
        """
        if self._closed:
            return
        if self._run is not None:
            if self._run.on_vcpu_thread():
                raise StateError("close on a vCPU's own thread would wait for itself; call stop there")
            self._run.stop()
            self._run.settle()  # its error belongs to whoever waits for the run
        self._closed = True
        with ExitStack() as stack:  # all of it happens, whatever raises
            stack.callback(plugin_manager().hook.accel_machine_closed, machine=self)
            stack.callback(self.ram.release)
            stack.callback(self._opened.close)
            for device in self.devices:
                stack.callback(device.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # what devices see (`accel.devices.base.DeviceHost`)

    def request_exit(self, status: int) -> None:
        """End the run with the guest's exit status; returns at once."""
        if self._run is not None:
            self._run.request_exit(status)

    def irq_line(self, number: int) -> Callable[[bool], None] | None:
        """Return a function that sets an interrupt line's level, from any thread; None without irqchip."""
        if not self._irqchip:
            return None
        return lambda level: self.vm.set_irq(number, level)

    # details

    def _place_ram(self) -> None:
        if len(self._layout) == 1:
            self.memory.add(self.ram, 0)
            return
        at = 0
        for window, name in zip(self._layout, ("ram-below-4g", "ram-above-4g"), strict=True):
            self.memory.add(MemoryRegion.alias(name, self.ram, at, window.size), window.start)
            at += window.size

    def _place(self, image: Image) -> None:
        check_fits(image, self._layout)
        plan = plan_boot(
            entry=image.entry,
            mode=image.mode,
            cpus=self.cpus,
            occupied=[segment.range for segment in image.segments],
            ram=self._layout,
            name=image.name,
        )
        with self.vm.transaction():
            for number, rom in enumerate(image.rom):
                region = MemoryRegion.rom(f"{image.loader}-rom{number}", rom.data, rom.size)
                self.memory.add(region, rom.address, priority=1)
        for segment in image.segments:
            self._write_ram(segment.range, segment.data)
        for address, data in plan.segments:
            self._write_ram(AddressRange.sized(address, len(data)), data)
        # With interrupt controllers the other vCPUs wait for INIT and SIPI, as a PC's do.
        for vcpu in self.vm.vcpus[:1] if self._irqchip else self.vm.vcpus:
            state = plan.state(vcpu.index)
            if state is not None:
                vcpu.write_state(state)

    def _write_ram(self, where: AddressRange, data: bytes | memoryview) -> None:
        """Write `data` into RAM, followed by zeros, whatever shows at those addresses now."""
        shift = HIGH_RAM_START - self.ram_below_4g if where.start >= HIGH_RAM_START else 0
        self.ram.write(where.start - shift, data)
        self.ram.clear(where.start - shift + len(data), where.size - len(data))

    def _reset_devices(self) -> None:
        with self.vm.big_lock:
            for device in self.devices:
                device.reset()

    def _flush(self, wait: float) -> None:
        for device in self.devices:
            try:
                device.flush(wait)
            except Exception as error:
                raise DeviceError(device.name, "handing on its output", None, None, error) from error

    def _tell_plugins(self) -> None:
        hook = plugin_manager().hook
        for listeners in hook.accel_memory_listeners(machine=self):
            for listener in listeners:
                self.memory.add_listener(listener)
        hook.accel_machine_created(machine=self)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the machine is closed; create another one")
