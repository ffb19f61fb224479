"""The devices of a machine: attaching them with all that they bring, and their life.

Layer: below `machine`, above `vm`. What a device is, `accel.devices.base` says.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from accel.devices.base import Device, DeviceHost
from accel.errors import DeviceError, StateError
from accel.memory.address_space import AddressSpace
from accel.vm import Vm


class MachineDevices:
    """The devices of one machine.

    Args:
        vm: Where their regions and address spaces go.
        host: What the devices are connected to.

    Attributes:
        attached: The devices in the order in which they were attached; replaced in transactions.
    """

    def __init__(self, vm: Vm, host: DeviceHost) -> None:
        self.attached: tuple[Device, ...] = ()
        self._vm = vm
        self._host = host
        # The address spaces of devices; replaced in transactions.
        self._spaces: tuple[AddressSpace, ...] = ()
        # How many of the devices were closed, the first ones.
        self._closed = 0

    def attach(self, device: Device) -> None:
        """Add a device with all its regions and address spaces, or nothing.

        Inside a transaction it is taken back with that, unclosed; its spaces show nothing before the end.

        Raises:
            RegionError: A region belongs elsewhere already.
            UsageError: An address space of the name exists.
            StateError: The device is attached already.
        """
        if any(one is device for one in self.attached):
            raise StateError(f"device '{device.name}' is attached already")
        device.connect(self._host)
        vm = self._vm
        with vm.transaction():
            for port, region in device.io_regions():
                vm.io.add(region, port)
            for address, region in device.memory_regions():
                vm.memory.add(region, address)
            spaces = {}
            for name, root in device.address_spaces():
                spaces[name] = vm.create_address_space(f"{device.name}.{name}", root)
            if spaces:
                device.connect_spaces(spaces)
            vm.transactions.journal(partial(self._set, self.attached, self._spaces))
            self._set((*self.attached, device), (*self._spaces, *spaces.values()))

    def reset(self) -> None:
        """Put all devices into their power-on state; takes the big lock."""
        with self._vm.big_lock:
            for device in self.attached:
                device.reset()

    def flush(self, wait: float) -> None:
        """Let all devices hand on what they buffer, each waiting up to `wait` seconds.

        Raises:
            DeviceError: One of them could not, the first if several; the others have.
        """
        failed: DeviceError | None = None
        for device in self.attached:
            try:
                device.flush(wait)
            except Exception as error:  # noqa: BLE001 - a device may raise anything
                if failed is None:
                    failed = DeviceError(device.name, "handing on its output", None, None, error)
                    failed.__cause__ = error
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Close all devices, the latest first, and then their spaces; all of it happens, whatever raises.

        Called again, it closes what it did not before.
        """
        with ExitStack() as stack:
            for space in self._spaces:
                stack.callback(space.close)
            for device in self.attached[self._closed :]:
                stack.callback(device.close)
            self._closed = len(self.attached)

    def _set(self, attached: tuple[Device, ...], spaces: tuple[AddressSpace, ...]) -> None:
        self.attached = attached
        self._spaces = spaces
