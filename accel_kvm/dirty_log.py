"""The dirty log of a memory slot: which of its pages the guest wrote since somebody asked.

Source: KVM_GET_DIRTY_LOG and KVM_MEM_LOG_DIRTY_PAGES in KVM api.rst. The plain log, which the kernel clears as it
hands it out: no page is forgotten in between, and nothing has to be cleared later.
"""

from __future__ import annotations

import ctypes
import errno

from accel.address import align_up
from accel.errors import BackendError
from accel_kvm import abi
from accel_kvm.ioctl import ioctl

#: The kernel writes whole words, so a bitmap has room for a multiple of these.
_WORD_BITS = 64


def is_offered(vm_fd: int) -> bool:
    """Return whether a new VM, which has no slot yet, knows of dirty logs; asks for the one of a slot that is not."""
    try:
        take_dirty(vm_fd, 0, 0)
    except BackendError:
        return False
    return True


def take_dirty(vm_fd: int, number: int, page_count: int) -> bytearray:
    """Return which pages of a slot were written, one bit each, and have the kernel note them anew (KVM_GET_DIRTY_LOG).

    Args:
        vm_fd: The VM.
        number: The slot's.
        page_count: Its pages.

    Raises:
        BackendError: The call failed. A slot without a log has no written pages and is no failure.
    """
    bitmap = bytearray(align_up(max(page_count, 1), _WORD_BITS) // 8)
    # The export keeps the bytes in place until the call has returned.
    place = ctypes.c_char.from_buffer(bitmap)
    try:
        ioctl(vm_fd, abi.KVM_GET_DIRTY_LOG, abi.KvmDirtyLog(number, 0, ctypes.addressof(place)), "KVM_GET_DIRTY_LOG")
    except BackendError as error:
        if error.errno != errno.ENOENT:
            raise
    return bitmap
