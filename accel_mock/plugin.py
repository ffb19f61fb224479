"""What `accel` finds of this plugin: the accelerator ``mock``. Importing it is cheap and opens nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from accel.backend import DIRTY_RING_OPTION, MEMORY_OPTIONS, Accelerator, Availability, VmBackend, VmConfig
from accel.hookspecs import hookimpl
from accel.options import Option
from accel_mock.limits import CAPABILITIES, SLOT_COUNT, ZAPS

if TYPE_CHECKING:
    import click


def _fault(given: object) -> object:
    from accel_mock.faults import parse_fault

    return parse_fault(given)


def _is_faults(value: object) -> bool:
    from accel_mock.faults import Faults

    return isinstance(value, Faults)


class MockAccelerator(Accelerator):
    """A model of a slot-like accelerator that interprets guest programs."""

    name = "mock"
    summary = "in-process model of an accelerator: runs guest programs anywhere, no hardware needed"
    executes = frozenset({"program"})
    takes_turns = True
    options = (
        *MEMORY_OPTIONS,
        DIRTY_RING_OPTION,
        Option(
            "slot_latency_us",
            "int",
            0,
            "time that each slot call takes beyond its work, while vCPUs run on: widens the gaps of a change",
            minimum=0,
            maximum=1_000_000,
        ),
        Option("slot_count", "int", SLOT_COUNT, "greatest number of slots", minimum=1, maximum=SLOT_COUNT),
        Option(
            "zap",
            "choice",
            ZAPS[0],
            "how the shadow page table forgets a slot that goes: all of it at once by a generation, all entry by entry "
            "with or without giving way to page faults, or the slot's own entries",
            choices=ZAPS,
        ),
        Option(
            "faults",
            "list",
            "none",
            "calls that fail and vCPUs that come out late, such as create@2=ENOMEM or vcpu0@1=stuck",
            item=_fault,
            whole=_is_faults,
        ),
    )

    def probe(self) -> Availability:
        """Return that it is available, which it always is."""
        return Availability(True, capabilities=CAPABILITIES, details={"host": "this process"})

    def create_vm(self, config: VmConfig) -> VmBackend:
        """Create a VM."""
        from accel_mock.vm import MockVm

        return MockVm(config)


@hookimpl
def accel_register_accelerators(register: Callable[[Accelerator], None]) -> None:
    """Register ``mock``."""
    register(MockAccelerator())


@hookimpl
def accel_register_scenarios(register: Callable[[str], None]) -> None:
    """Register the scenarios of this plugin's own code."""
    register("accel_mock.scenarios")


@hookimpl
def accel_register_commands(cli: click.Group) -> None:
    """Add ``accelctl kvm-locks``."""
    from accel_mock.locks_command import command

    cli.add_command(command)
