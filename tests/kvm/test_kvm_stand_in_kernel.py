"""What stands in for KVM while interleavings are explored gives the answers that KVM gives."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable

import pytest

from accel.errors import BackendError
from accel.memory.host_memory import address_of
from accel.testing.explore.world import World
from accel_kvm import abi
from accel_kvm.ioctl import ioctl
from accel_kvm.system import KvmSystem

pytestmark = pytest.mark.kvm

PAGE = mmap.PAGESIZE

#: Calls in a row: slot, guest page, pages, page of host memory, whether read-only, and what comes of it.
CALLS = [
    (0, 0, 0, 0, False, errno.EINVAL),  # deleted, and not there
    (0, 16, 2, 0, False, 0),
    (1, 17, 1, 2, False, errno.EEXIST),
    (1, 18, 1, 2, False, 0),
    (0, 16, 1, 0, False, errno.EINVAL),  # another size
    (0, 16, 2, 1, False, errno.EINVAL),  # other memory
    (0, 16, 2, 0, False, 0),  # as it is
    (2, 15, 8, 0, False, errno.EEXIST),
    (0, 16, 0, 0, False, 0),
    (0, 16, 0, 0, False, errno.EINVAL),
    (2, 16, 1, 0, True, 0),
    (3, 16.5, 1, 0, False, errno.EINVAL),  # not aligned
    (3, 17, 0.5, 0, False, errno.EINVAL),
]


def _answers(call: Callable[[abi.KvmUserspaceMemoryRegion], int], base: int) -> list[int]:
    found = []
    for slot, gpa, size, host, readonly, _ in CALLS:
        flags = abi.KVM_MEM_READONLY if readonly else 0
        region = abi.KvmUserspaceMemoryRegion(slot, flags, int(gpa * PAGE), int(size * PAGE), base + host * PAGE)
        found.append(call(region))
    return found


def test_kvm_stand_in_kernel_answers_slot_calls_as_kvm_does() -> None:
    memory = mmap.mmap(-1, 16 * PAGE)
    base = address_of(memory)
    system = KvmSystem()
    fd = system.create_vm()

    def real(region: abi.KvmUserspaceMemoryRegion) -> int:
        try:
            return ioctl(fd, abi.KVM_SET_USER_MEMORY_REGION, region, "KVM_SET_USER_MEMORY_REGION")
        except BackendError as error:
            return error.errno

    # In a world of its own, since it puts itself under the plugin.
    kernel = World((), copied=("accel_kvm",)).load("accel_kvm.scenarios.kernel").Kernel()

    def stand_in(region: abi.KvmUserspaceMemoryRegion) -> int:
        return -kernel._call(1001, abi.KVM_SET_USER_MEMORY_REGION, ctypes.addressof(region))

    try:
        expected = [one[-1] for one in CALLS]
        assert _answers(real, base) == expected
        assert _answers(stand_in, base) == expected
    finally:
        os.close(fd)
        system.close()
