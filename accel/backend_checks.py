"""What an accelerator hands to the core, checked once where it comes in, so that its author hears what is wrong.

Later it would fail somewhere that looks like a mistake of the core, or not at all. Nothing here is on the path of an
exit. All of them raise `ContractError`; whoever knows the plugin makes a `PluginError` of it. Layer: above `backend`,
below `vm`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from accel.address import PAGE_SIZE
from accel.backend import VcpuBackend, VmBackend
from accel.exits import ExitKind
from accel.memory.listener import MemoryListener

#: Words of the exit record, and bytes of a single port access at least.
_RECORD_WORDS, _IO_BYTES = 3, 4


class ContractError(TypeError):
    """An accelerator did what the texts of `accel.backend` do not allow."""


def check_vm(returned: object) -> None:
    """Check what `create_vm` returned, and its attributes."""
    _check_is(VmBackend, returned, "create_vm")
    vm: Any = returned
    if not isinstance(vm.capabilities, Set) or not all(isinstance(one, str) for one in vm.capabilities):
        raise ContractError(
            f"VmBackend.capabilities is {vm.capabilities!r}; it must be a frozenset of accel.Capability"
        )
    if type(vm.max_vcpus) is not int or vm.max_vcpus < 1:
        raise ContractError(f"VmBackend.max_vcpus is {vm.max_vcpus!r}; it must be a number from 1 on")
    size = vm.page_size
    if type(size) is not int or size < PAGE_SIZE or size & (size - 1):
        raise ContractError(f"VmBackend.page_size is {size!r}; it must be a power of two from {PAGE_SIZE} on")


def check_listener(returned: object, call: str) -> None:
    """Check what `memory_listener` or `io_listener` returned."""
    _check_is(MemoryListener, returned, call)


def check_vcpu(returned: object) -> None:
    """Check what `create_vcpu` returned: it has its record and its port data from the beginning."""
    _check_is(VcpuBackend, returned, "create_vcpu")
    record: Any = getattr(returned, "record", None)
    io_data: Any = getattr(returned, "io_data", None)
    if not _is_view(record, 8) or len(record) < _RECORD_WORDS or record.format[-1] not in "QLN":
        raise ContractError(
            f"VcpuBackend.record is {_view(record)}; it must be a writable memoryview of at least {_RECORD_WORDS} "
            "64-bit words, such as memoryview(array('Q', (0, 0, 0)))"
        )
    if not _is_view(io_data, 1) or len(io_data) < _IO_BYTES or io_data.format[-1] != "B":
        raise ContractError(
            f"VcpuBackend.io_data is {_view(io_data)}; it must be a writable memoryview of at least {_IO_BYTES} "
            "bytes, such as memoryview(bytearray(8))"
        )


def check_report(host: object, figures: object) -> None:
    """Check what `host` and `memory_figures` returned."""
    if not isinstance(host, str) or not host.isprintable():
        raise ContractError(f"VmBackend.host returned {host!r}; it must be a line of text")
    numbers = isinstance(figures, Mapping) and all(
        isinstance(name, str) and isinstance(value, (int, float)) for name, value in figures.items()
    )
    if not numbers:
        raise ContractError(f"VmBackend.memory_figures returned {figures!r}; it must be a dict of numbers by name")


def check_kind(kind: object) -> None:
    """Raise if `kind`, which `run` returned, is no ExitKind."""
    if kind not in tuple(ExitKind):
        raise ContractError(f"VcpuBackend.run returned {kind!r}, which is no accel.exits.ExitKind")


def _check_is(kind: type, returned: object, call: str) -> None:
    if not isinstance(returned, kind):
        what = f"class {returned.__name__}" if isinstance(returned, type) else type(returned).__name__
        raise ContractError(f"{call} returned {what}; it must be a {kind.__name__}")


def _is_view(given: Any, width: int) -> bool:
    return isinstance(given, memoryview) and given.ndim == 1 and given.itemsize == width and not given.readonly


def _view(given: object) -> str:
    if isinstance(given, memoryview):
        kind = "read-only memoryview" if given.readonly else "memoryview"
        return f"a {kind} of {given.nbytes} bytes in format '{given.format}'"
    return "missing" if given is None else f"of class {type(given).__name__}"
