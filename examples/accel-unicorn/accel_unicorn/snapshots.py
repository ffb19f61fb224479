"""Snapshots of a machine on this accelerator: its memory and its vCPUs, to go back to as often as one likes.

For fuzzing and for tests: run to a point once, then try many continuations. Devices are not part of it, since they are
Python objects of whoever attached them. A snapshot belongs to the machine that it was taken of.
"""

from __future__ import annotations

import ctypes
from typing import cast

from attrs import field, frozen

import accel
from accel.address import PAGE_SIZE
from accel.errors import CapabilityError, ClosedError, StateError, UsageError
from accel_unicorn.vcpu import UnicornVcpu
from accel_unicorn.vm import UnicornVm

_ZEROS = bytes(PAGE_SIZE)


@frozen
class Snapshot:
    """What `snapshot` found.

    Attributes:
        size: Bytes of memory that are kept; pages of zeros are not.
    """

    _vm: UnicornVm = field(repr=False)
    _map: tuple[tuple[int, int, int], ...] = field(repr=False)
    _pages: dict[int, bytes] = field(repr=False)
    _vcpus: tuple[bytes, ...] = field(repr=False)

    @property
    def size(self) -> int:
        return len(self._pages) * PAGE_SIZE


def snapshot(machine: accel.Machine) -> Snapshot:
    """Take a snapshot: all RAM and ROM, and each vCPU with all its registers.

    The machine does not run, or is paused: what vCPUs and devices do meanwhile would be in it by halves.

    Raises:
        CapabilityError: The machine is on another accelerator.
        StateError: A vCPU is in the middle of an instruction with another exit to come; run on first.
    """
    vm = _vm_of(machine)
    states = tuple(_call(vcpu, UnicornVcpu.save) for vcpu in machine.vm.vcpus)
    pages: dict[int, bytes] = {}
    with machine.vm.big_lock:
        for address, size, host in vm.slot_map():
            for offset in range(0, size, PAGE_SIZE):
                page = ctypes.string_at(host + offset, PAGE_SIZE)
                if page != _ZEROS:
                    pages[address + offset] = page
        return Snapshot(vm, vm.slot_map(), pages, states)


def restore(machine: accel.Machine, taken: Snapshot) -> None:
    """Go back to a snapshot of this machine, which does not run, or is paused. O(RAM).

    Raises:
        CapabilityError: The machine is on another accelerator.
        UsageError: The snapshot is of another machine.
        StateError: The memory map is not what it was; or as for `snapshot`.
    """
    vm = _vm_of(machine)
    if taken._vm is not vm:
        raise UsageError("the snapshot is of another machine")
    with machine.vm.big_lock:
        if vm.slot_map() != taken._map:
            raise StateError("the memory map has changed since the snapshot; change it back first")
        for address, size, host in taken._map:
            for offset in range(0, size, PAGE_SIZE):
                page = taken._pages.get(address + offset, _ZEROS)
                # Looked at first, so that pages which nobody touched stay unallocated.
                if ctypes.string_at(host + offset, PAGE_SIZE) != page:
                    ctypes.memmove(host + offset, page, PAGE_SIZE)
    for vcpu, state in zip(machine.vm.vcpus, taken._vcpus, strict=True):
        _call(vcpu, lambda backend, state=state: backend.restore(state))


def forget_code(machine: accel.Machine) -> None:
    """Have each vCPU translate its code anew: call it after changing code that a vCPU has executed already.

    Raises:
        CapabilityError: The machine is on another accelerator.
        StateError: As for `snapshot`.
    """
    _vm_of(machine)
    for vcpu in machine.vm.vcpus:
        _call(vcpu, UnicornVcpu.flush_code)


def _vm_of(machine: accel.Machine) -> UnicornVm:
    backend = machine.vm.backend
    if not isinstance(backend, UnicornVm):
        raise CapabilityError(f"snapshots are for machines on unicorn; this one is on {machine.accelerator}")
    return backend


def _call(vcpu: accel.Vcpu, function: object) -> bytes:
    def call() -> bytes:
        vcpu.read_state()  # completes the last exit's instruction, or raises StateError
        with vcpu.vm.big_lock:  # under which a vCPU is closed
            if vcpu.closed:
                raise ClosedError(f"vCPU {vcpu.index} is closed")
            return cast(bytes, function(vcpu.backend))  # type: ignore[operator]

    return vcpu.call(call)
