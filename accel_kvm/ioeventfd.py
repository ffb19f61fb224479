"""Doorbells: guest writes that ring an eventfd inside the kernel, without leaving the guest.

Source: KVM_IOEVENTFD in KVM api.rst.
"""

from __future__ import annotations

import errno

from attrs import field, frozen

from accel.errors import BackendError
from accel.memory.ioeventfd import IoEventFd
from accel_kvm import abi
from accel_kvm.ioctl import ioctl

_NO_EVENTFD = "its fd is no open eventfd any more; keep it open until the doorbell is removed"
_ADVICE = {
    errno.EEXIST: "another doorbell would ring for some of the same writes; KVM takes one for each",
    errno.EBADF: _NO_EVENTFD,
    errno.EINVAL: _NO_EVENTFD,
    errno.ENOENT: "its fd is another eventfd by now; keep it open until the doorbell is removed",
}


@frozen
class Doorbell:
    """One doorbell of a space.

    Attributes:
        eventfd: With the address in the space for an offset.
        is_port: Whether that space is the ports.
        region: Name of its region, for messages.
    """

    eventfd: IoEventFd
    is_port: bool
    region: str = field(eq=False)

    def set(self, vm_fd: int, on: bool) -> None:
        """Have KVM ring it, or leave the guest for such writes again (KVM_IOEVENTFD). Raises BackendError."""
        one = self.eventfd
        flags = abi.KVM_IOEVENTFD_FLAG_PIO if self.is_port else 0
        if one.match is not None:
            flags |= abi.KVM_IOEVENTFD_FLAG_DATAMATCH
        if not on:
            flags |= abi.KVM_IOEVENTFD_FLAG_DEASSIGN
        call = abi.KvmIoeventfd(one.match or 0, one.offset, one.size, one.fd, flags)
        try:
            ioctl(vm_fd, abi.KVM_IOEVENTFD, call, "KVM_IOEVENTFD")
        except BackendError as error:
            number = error.errno or errno.EIO
            advice = _ADVICE.get(number, "")
            raise BackendError("KVM_IOEVENTFD", number, f"{self}{advice and '; '}{advice}") from error

    def __str__(self) -> str:
        one = self.eventfd
        writes = f"{one.size} bytes" if one.size else "any size"
        value = "" if one.match is None else f", value {one.match:#x}"
        place = "port" if self.is_port else "address"
        return f"doorbell at {place} {one.offset:#x} ({writes}{value}, fd {one.fd}) of region '{self.region}'"
