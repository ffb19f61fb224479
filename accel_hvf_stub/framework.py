"""Where Hypervisor.framework itself comes in: `open_framework`, which has nothing to offer yet.

Layer: above `api`. `docs/how-to/bring-up-hvf.md` says how to write what is missing here: a class with the methods of
`HvfApi`, each of which calls the C function of its name.
"""

from __future__ import annotations

import platform
import sys

from accel.errors import CapabilityError
from accel_hvf_stub.api import HvfApi


def open_framework() -> HvfApi:
    """Return what calls Hypervisor.framework on this host.

    Raises:
        CapabilityError: There is nothing that does; says why.
    """
    raise CapabilityError(missing())


def missing() -> str:
    """Return why guests cannot run here."""
    if sys.platform == "darwin":
        return "this plugin is a stub that does not run guests yet, though the host has Hypervisor.framework"
    return f"Hypervisor.framework exists on macOS only, and this host runs {platform.system()}"
