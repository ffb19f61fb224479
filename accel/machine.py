"""Machine: accelerator + memory + devices + vCPU threads; the API for people who embed this library."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self, TypeVar

from accel.address import format_size, parse_size
from accel.arch.x86 import BootMode, ram_layout
from accel.devices.base import Device
from accel.devices.port_handler import PortAccess, PortHandler
from accel.errors import CapabilityError, ClosedError, StateError, UsageError
from accel.loaders.image import Image, LoadOptions
from accel.loaders.load import load_image
from accel.machine_devices import MachineDevices
from accel.machine_ram import MachineRam
from accel.memory.address_space import AddressSpace
from accel.memory.backing import Backing
from accel.memory.ram_block import check_host_memory
from accel.memory.transaction import Atomic
from accel.plugin_calls import MachinePlugins, accelerator_blamed, create_vcpus, create_vm, loaders
from accel.plugins import open_accelerator
from accel.program import GuestProgram
from accel.result import Outcome, RunResult
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
        # Guards both; a leaf. Whoever waits for a run looks again under it at whether that is still the last one.
        self._life = threading.Lock()
        self._run: Run | None = None
        self._closed = False
        self._plugins = MachinePlugins(self)
        self.accelerator = opened.name
        self.cpus = cpus
        self.vm = create_vm(opened, irqchip=irqchip, pit=pit)
        self.memory: AddressSpace = self.vm.memory
        self.io: AddressSpace = self.vm.io
        if cpus > self.vm.backend.max_vcpus:
            raise UsageError(f"{cpus} vCPUs: {opened.name} offers up to {self.vm.backend.max_vcpus} here")
        self._ram = MachineRam(memory, backing)
        self.ram = self._ram.region
        self.ram_below_4g = self._ram.below_4g
        self.ram_above_4g = self._ram.above_4g
        self._devices = MachineDevices(self.vm, self)
        with self.vm.transaction():
            self._ram.show_in(self.memory)
        create_vcpus(self.vm, opened, cpus)

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
            PluginError: A plugin failed that is told of machines; everything is closed again.
        """
        size = parse_size(memory)
        ram_layout(size)
        check_host_memory(size, f"memory {format_size(size)} is")
        if cpus < 1:
            raise UsageError(f"{cpus} vCPUs: a machine needs at least one")
        opened = open_accelerator(accelerators, options=options, executes=executes)
        with ExitStack() as undo:
            undo.callback(opened.close)
            machine = cls(
                opened,
                memory=size,
                cpus=cpus,
                irqchip=irqchip,
                pit=irqchip if pit is None else pit,
                backing=backing,
            )
            undo.callback(machine.close)
            machine._plugins.created()
            undo.pop_all()
        return machine

    # what it is made of

    @property
    def devices(self) -> tuple[Device, ...]:
        """What was attached, in order."""
        return self._devices.attached

    @property
    def address_spaces(self) -> Mapping[str, AddressSpace]:
        """The address spaces by name: ``memory``, ``io``, and those of devices, such as ``dma0.bus``."""
        return {space.name: space for space in self.vm.address_spaces}

    def attach(self, device: Device) -> None:
        """Add a device with all its regions and address spaces, or nothing.

        Where it is part of a transaction that fails later, it is not the machine's, which does not close it either.

        Raises:
            RegionError: A region belongs elsewhere already.
            UsageError: There is an address space of such a name.
            StateError: The device is attached already.
        """
        self._check_open()
        self._devices.attach(device)

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
                with accelerator_blamed(self._opened.accelerator):
                    for vcpu in self.vm.vcpus:
                        vcpu.load_program(image)
                self._devices.reset()
                return
            from accel.loaders.program import program_image

            image = program_image(image)
        elif not isinstance(image, Image):
            options = LoadOptions(load_address, entry, None if mode is None else BootMode(mode))
            image = load_image(image, options, loaders(), loader)
        if image.executes not in executes:
            raise CapabilityError(f"{self.accelerator} cannot execute {image.executes}, which {image.name} is")
        self._ram.place(image, self.vm, irqchip=self._irqchip)
        self._devices.reset()

    # running

    def start(self) -> Run:
        """Start the vCPUs; returns at once.

        Raises:
            StateError: They run already, or this is inside a transaction or a device's handler.
        """
        self._check_open()
        if self.vm.transactions.active:
            raise StateError("start inside a memory transaction could wait for ever; leave the `with` first")
        last = self._run
        if last is not None:
            if not last.done:
                raise StateError("the machine runs already; stop it first")
            if last.in_handler():
                raise StateError("start in a device's handler would wait for itself; start again once `wait` returns")
            last.settle()  # what it came to was told, or nobody asked
        with self._life:
            self._check_open()
            if self._run is not last:
                raise StateError("the machine runs already, since another thread has started it; stop it first")
            run = self._run = Run(self.vm, self._opened.accelerator, self._devices.flush)
        run.start()
        return run

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

    def request_stop(self, outcome: Outcome = Outcome.STOPPED) -> None:
        """End the run and return at once; see `Run.request_stop`. Without a run, nothing happens."""
        if self._run is not None:
            self._run.request_stop(outcome)

    def wait(self, timeout: float | None = None) -> RunResult:
        """Wait for the end of the run; see `Run.wait`. Raises StateError if nothing was started."""
        if self._run is None:
            raise StateError("nothing was started")
        return self._run.wait(timeout)

    def close(self) -> None:
        """Stop, and release everything; may be called twice, and by several threads, of which one does it.

        Raises:
            InhibitTimeoutError: A vCPU did not come out; the VM and its RAM stay under it, and close may be retried.
            StateError: Called inside a transaction, or by a device's handler or output.
            PluginError: A plugin failed when it was told, or the accelerator did; everything else is released, and all
                plugins were told.
        """
        while not self._closed:
            last = self._run
            if last is not None:
                if last.in_handler():
                    raise StateError("close in a device's handler would wait for itself; call stop there")
                last.stop()
                last.settle()  # its error belongs to whoever waits for the run
            with self._life:
                if self._closed or self._run is not last:
                    continue  # another thread was faster: it closes the machine, or has started it again
                self._closed = True
            with ExitStack() as stack:  # all of it happens, whatever raises
                stack.callback(self._let_go)
                stack.callback(self._close_vm)
                stack.callback(self._devices.close)

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

    def _close_vm(self) -> None:
        with accelerator_blamed(self._opened.accelerator):
            self._opened.close()

    def _let_go(self) -> None:
        """Release what goes after the VM; where that could not be closed, let close be retried."""
        if not self.vm.closed:
            self._closed = False
            return
        with ExitStack() as stack:
            stack.callback(self._plugins.closed)
            stack.callback(self.ram.release)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the machine is closed; create another one")
