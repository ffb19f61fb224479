"""KVM's emulator: accesses that a processor cannot make by itself, each as a generator over the exits that it takes.

Layer: above `accel_mock.vcpu`, below `accel_mock.steps`. It goes through the memslots, page by page, and uses no TLB;
what reaches no memory rings a doorbell, is put into the coalesced ring, or is an exit.

It runs while the vCPU counts as in the guest, where KVM is outside: a flush of TLBs waits until an access is over or
exits. Nothing comes of that. Who flushes has waited for readers of the memslots before, or wants entries and TLBs only.
"""

from __future__ import annotations

import time
from collections.abc import Generator

from accel.address import PAGE_SIZE
from accel.exits import ExitKind
from accel_mock.kvm.running import HANDOVER_SECONDS
from accel_mock.vcpu import MockVcpu

#: Address and size of what an access touches of one page.
Part = tuple[int, int]

_MMIO = int(ExitKind.MMIO)


def parts_of(address: int, size: int) -> list[Part]:
    """Return the part in each page."""
    first = min(size, PAGE_SIZE - address % PAGE_SIZE)
    return [(address, first)] if first == size else [(address, first), (address + first, size - first)]


def read_parts(vcpu: MockVcpu, parts: list[Part]) -> Generator[int, None, int]:
    """Read the parts of an item, each from memory or by an exit; return the item."""
    value = shift = 0
    for address, size in parts:
        data = _read(vcpu, address, size)
        if data is None:
            vcpu.record[0], vcpu.record[2] = address, size
            yield _MMIO
            part = vcpu.record[1] & (1 << 8 * size) - 1
        else:
            part = int.from_bytes(data, "little")
        value |= part << shift
        shift += 8 * size
    return value


def write_parts(vcpu: MockVcpu, parts: list[Part], value: int) -> Generator[int, None, None]:
    """Write the parts of an item, each to memory, to who answers it, or by an exit."""
    for address, size in parts:
        part = value & (1 << 8 * size) - 1
        value >>= 8 * size
        data = part.to_bytes(size, "little")
        if not _write(vcpu, address, data) and not is_answered(vcpu, address, data, is_port=False):
            vcpu.record[0], vcpu.record[1], vcpu.record[2] = address, part, size | 1 << 32
            yield _MMIO


def is_answered(vcpu: MockVcpu, address: int, data: bytes, *, is_port: bool) -> bool:
    """Return whether a write that reaches no memory needs no exit: it rang a doorbell, or is in the ring now."""
    return vcpu.doorbells.ring(address, data, is_port=is_port) or vcpu.ring.push(address, data, is_port=is_port)


def _read(vcpu: MockVcpu, address: int, size: int) -> bytes | None:
    """Return what is there, within one page; None where no memory is."""
    memslots = vcpu.memslots
    while True:
        with memslots.srcu.read():
            slot = memslots.table.find(address)
            if slot is None:
                return None
            if not slot.invalid:
                offset = address - slot.slot.gpa
                return bytes(slot.bytes[offset : offset + size])
        _let_change(vcpu)


def _write(vcpu: MockVcpu, address: int, data: bytes) -> bool:
    """Write within one page; return False where it cannot be written."""
    memslots = vcpu.memslots
    while True:
        with memslots.srcu.read():
            slot = memslots.table.find(address)
            if slot is None or slot.slot.readonly:
                return False
            if not slot.invalid:
                offset = address - slot.slot.gpa
                with vcpu.bus:
                    slot.bytes[offset : offset + len(data)] = data
                # Noted after it is written, or a log that is taken in between would have the page for the last time
                # without these bytes.
                memslots.mmu.mark_dirty(slot, address // PAGE_SIZE, vcpu.dirty_ring)
                vcpu.look_at_ring()
                return True
        _let_change(vcpu)


def _let_change(vcpu: MockVcpu) -> None:
    """Let a slot that is invalid go, in the middle of an operation that cannot begin anew.

    KVM's emulator takes an invalid slot for a hole. That shows what goes a moment too early, and would show a list of
    changes by halves, so here it waits.
    """
    vcpu.running.hear(vcpu)
    time.sleep(HANDOVER_SECONDS)
