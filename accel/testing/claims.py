"""What an accelerator claims to offer: what the conformance suite holds it to, and what it is skipped for.

Layer: above `plugins`. Nothing stays open.
"""

from __future__ import annotations

import functools

from attrs import frozen

from accel.backend import Capability
from accel.options import Option
from accel.plugins import find_accelerator, open_accelerator, probe


@frozen
class Claims:
    """What one accelerator says of itself.

    Attributes:
        name: The name people select it by.
        executes: As `Accelerator.executes`.
        options: As `Accelerator.options`.
        capabilities: As `VmBackend.capabilities` of a VM without options; of the probe, if no VM can be made.
        max_vcpus: As `VmBackend.max_vcpus`.
        page_size: As `VmBackend.page_size`.
        problem: Why it cannot be used here, or an empty string.
    """

    name: str
    executes: frozenset[str]
    options: tuple[Option, ...]
    capabilities: frozenset[Capability] = frozenset()
    max_vcpus: int = 1
    page_size: int = 4096
    problem: str = ""

    def choices(self, option: str) -> tuple[str, ...]:
        """Return the values that a declared option can have; none if it is not declared or is no choice."""
        return next((one.choices for one in self.options if one.name == option), ())


@functools.cache
def claims_of(name: str) -> Claims:
    """Return what the accelerator `name` claims; probes it, and makes a VM for the moment. Asks once in a process.

    Raises:
        UsageError: There is no such accelerator.
    """
    accelerator = find_accelerator(name)
    executes, options = frozenset(accelerator.executes), tuple(accelerator.options)
    available = probe(accelerator)
    if not available.ok:
        return Claims(name, executes, options, problem=available.reason)
    try:
        with open_accelerator(name) as opened, opened.create_vm() as vm:
            backend = vm.backend
            return Claims(
                name, executes, options, frozenset(backend.capabilities), backend.max_vcpus, backend.page_size
            )
    except Exception:  # noqa: BLE001 - a test of the lifecycle says so; here it means that no more is known
        return Claims(name, executes, options, available.capabilities)
