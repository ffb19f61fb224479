"""What `accel` finds of this plugin: the accelerator ``hvf``, which says why it cannot be used.

It shows what an accelerator of another host and another architecture looks like to the core: arm64 guests, and memory
that is mapped in pages of 16 KiB. All of it is there but for the calls into macOS and for vCPUs that run, so
``accelctl run --accel hvf --dry-run`` tells which calls a workload's memory would make. Upstream: Apple's
Hypervisor.framework.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from accel.address import format_size
from accel.backend import MEMORY_OPTIONS, Accelerator, Availability, VmBackend, VmConfig
from accel.hookspecs import hookimpl
from accel_hvf_stub.limits import PAGE_SIZE

if TYPE_CHECKING:
    from accel_hvf_stub.api import HvfApi


def _open_framework() -> HvfApi:
    from accel_hvf_stub.framework import open_framework

    return open_framework()


class HvfAccelerator(Accelerator):
    """Hypervisor.framework on Apple silicon; runs nothing yet.

    Args:
        open_api: Returns what calls the framework, or raises CapabilityError with the reason.
    """

    name = "hvf"
    summary = "macOS Hypervisor.framework: arm64 guests (stub, does not run guests)"
    executes = frozenset({"arm64"})
    options = MEMORY_OPTIONS
    dry_run = True

    def __init__(self, open_api: Callable[[], HvfApi] = _open_framework) -> None:
        self._open_api = open_api

    def probe(self) -> Availability:
        """Return that it is unavailable, and the true reason: vCPUs do not run, whoever calls the framework."""
        from accel_hvf_stub.framework import missing

        return Availability(False, missing(), details={"page_size": format_size(PAGE_SIZE)})

    def create_vm(self, config: VmConfig) -> VmBackend:
        """Create a VM that maps memory, and whose vCPUs do not run.

        Raises:
            CapabilityError: Nothing here calls the framework.
        """
        api = self._open_api()
        from accel_hvf_stub.vm import HvfVm

        return HvfVm(api, config)

    def create_dry_vm(self, config: VmConfig) -> VmBackend:
        """Create a VM whose calls are noted and checked, and not made; on every host."""
        from accel_hvf_stub.vm import DryHvfVm

        return DryHvfVm(config)


@hookimpl
def accel_register_accelerators(register: Callable[[Accelerator], None]) -> None:
    """Register ``hvf``."""
    register(HvfAccelerator())
