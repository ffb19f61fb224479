"""What `accel` finds of this plugin: the accelerator ``hvf``, which says why it cannot be used.

It shows what an accelerator of another host and another architecture looks like to the core: arm64 guests,
and memory that is mapped in pages of 16 KiB. Upstream: Apple's Hypervisor.framework
(hv_vm_create, hv_vm_map).
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable

from accel.address import format_size
from accel.backend import Accelerator, Availability, VmBackend, VmConfig
from accel.errors import CapabilityError
from accel.hookspecs import hookimpl

#: Granule of hv_vm_map on Apple silicon.
PAGE_SIZE = 16 << 10


class HvfAccelerator(Accelerator):
    """Hypervisor.framework on Apple silicon; runs nothing yet."""

    name = "hvf"
    summary = "macOS Hypervisor.framework: arm64 guests (stub, does not run guests)"
    executes = frozenset({"arm64"})

    def probe(self) -> Availability:
        """Return that it is unavailable, and the true reason."""
        return Availability(False, _reason(), details={"page_size": format_size(PAGE_SIZE)})

    def create_vm(self, config: VmConfig) -> VmBackend:
        """Refuse. Raises CapabilityError, always."""
        raise CapabilityError(f"hvf creates no VMs: {_reason()}")


def _reason() -> str:
    if sys.platform == "darwin":
        return "this plugin is a stub that does not run guests yet, though the host has Hypervisor.framework"
    return f"Hypervisor.framework exists on macOS only, and this host runs {platform.system()}"


@hookimpl
def accel_register_accelerators(register: Callable[[Accelerator], None]) -> None:
    """Register ``hvf``."""
    register(HvfAccelerator())
