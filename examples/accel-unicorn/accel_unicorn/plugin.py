"""What `accel` finds of this plugin: the accelerator ``unicorn``. Importing it does not import Unicorn."""

from __future__ import annotations

from collections.abc import Callable

from accel.backend import MEMORY_OPTIONS, Accelerator, Availability, VmBackend, VmConfig
from accel.errors import AccelError
from accel.hookspecs import hookimpl


class UnicornAccelerator(Accelerator):
    """The Unicorn engine: x86 in software, without any help of the host."""

    name = "unicorn"
    summary = "Unicorn engine: x86 guests in software, where there is no /dev/kvm"
    executes = frozenset({"x86"})
    priority = 10
    options = MEMORY_OPTIONS

    def probe(self) -> Availability:
        """Import Unicorn and look at how it keeps its registers."""
        from accel_unicorn.switch import routines, why_not

        reason = why_not()
        if reason:
            return Availability(False, reason)
        try:
            from accel_unicorn.engine import version
            from accel_unicorn.layout import layout
            from accel_unicorn.vm import CAPABILITIES

            routines()
            layout()
        except ImportError as error:
            return Availability(False, f"Unicorn cannot be imported ({error}); pip install 'unicorn>=2.1,<2.2'")
        except (AccelError, OSError) as error:
            return Availability(False, str(error))
        return Availability(True, capabilities=CAPABILITIES, details={"version": version()})

    def create_vm(self, config: VmConfig) -> VmBackend:
        """Create a VM in this process."""
        from accel_unicorn.vm import UnicornVm

        return UnicornVm(config)


@hookimpl
def accel_register_accelerators(register: Callable[[Accelerator], None]) -> None:
    """Register ``unicorn``."""
    register(UnicornAccelerator())
