"""The mock as a plugin: what it registers, offers and refuses."""

import subprocess
import sys

import pytest

from accel.backend import Accelerator, Capability
from accel.errors import CapabilityError, NoAcceleratorError, OptionError
from accel.machine import Machine
from accel.plugins import open_accelerator
from accel.vm import OpenAccelerator
from accel_mock.plugin import MockAccelerator, accel_register_accelerators


def test_mock_plugin_registers_an_accelerator_that_is_always_there() -> None:
    found: list[Accelerator] = []
    accel_register_accelerators(found.append)
    assert [(one.name, one.executes) for one in found] == [("mock", {"program"})]
    available = found[0].probe()
    assert available.ok
    assert available.capabilities == {
        Capability.READONLY_MEMORY,
        Capability.DIRTY_LOG,
        Capability.DIRTY_RING,
        Capability.COALESCED_PIO,
        Capability.COALESCED_MMIO,
        Capability.IOEVENTFD,
        Capability.KICK_ALL_VCPUS,
        Capability.REGION_LIST,
    }


def test_mock_plugin_is_found_by_its_entry_point() -> None:
    with open_accelerator("mock", executes="program") as opened:
        assert isinstance(opened.accelerator, MockAccelerator)


def test_mock_plugin_is_passed_over_for_x86_images() -> None:
    with pytest.raises(NoAcceleratorError, match="executes program, and this needs x86"):
        open_accelerator("mock", executes="x86")
    with Machine.create("mock", memory="1M") as machine, pytest.raises(CapabilityError, match="x86"):
        machine.load(b"\xf4")


@pytest.mark.parametrize("config", [{"irqchip": True}, {"irqchip": True, "pit": True}])
def test_mock_plugin_refuses_what_it_does_not_model(config: dict[str, bool]) -> None:
    with OpenAccelerator(MockAccelerator()) as opened, pytest.raises(CapabilityError, match="no interrupt"):
        opened.create_vm(**config)


@pytest.mark.parametrize(
    "options", [{"slot_latency_us": -1}, {"slot_count": 0}, {"plan": "none"}, {"slots": 1}, {"zap": "half"}]
)
def test_mock_plugin_refuses_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        OpenAccelerator(MockAccelerator(), options)


def test_mock_plugin_import_is_cheap() -> None:
    """It loads neither its own VM nor ctypes."""
    code = "import sys, accel_mock.plugin; print(sorted({'ctypes', 'accel_mock.vm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
