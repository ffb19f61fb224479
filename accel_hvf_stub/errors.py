"""From return codes of Hypervisor.framework to exceptions: the one place where that is done.

Layer: above `api`. Exceptions of the core carry an errno, so each code has the one that says most nearly the same; the
code's own name stands in the message.
"""

from __future__ import annotations

import errno

from accel.errors import BackendError, MemorySlotError
from accel.memory.slot_plan import Slot
from accel_hvf_stub.api import HvReturn

_ERRNO = {
    HvReturn.HV_ERROR: errno.EIO,
    HvReturn.HV_BUSY: errno.EBUSY,
    HvReturn.HV_BAD_ARGUMENT: errno.EINVAL,
    HvReturn.HV_ILLEGAL_GUEST_STATE: errno.EPROTO,
    HvReturn.HV_NO_RESOURCES: errno.ENOMEM,
    HvReturn.HV_NO_DEVICE: errno.ENODEV,
    HvReturn.HV_DENIED: errno.EPERM,
    HvReturn.HV_FAULT: errno.EFAULT,
    HvReturn.HV_UNSUPPORTED: errno.ENOTSUP,
}


def describe(code: int) -> str:
    """Return a code's name, and its number where it has none."""
    known = _known(code)
    return f"hv_return_t {code & 0xFFFF_FFFF:#x}" if known is None else known.name


def check(code: int, function: str, detail: str = "") -> None:
    """Raise BackendError if `code`, which `function` returned, says that it failed."""
    if code != HvReturn.HV_SUCCESS:
        raise BackendError(function, _errno_of(code), _text(code, detail))


def slot_error(code: int, function: str, index: int, slot: Slot, flags: int) -> MemorySlotError:
    """Return the error of a call that was about `slot`, the mapping with this index."""
    return MemorySlotError(
        function,
        _errno_of(code),
        slot=index,
        gpa=slot.gpa,
        hva=slot.hva,
        size=slot.size,
        flags=flags,
        advice=_text(code, ""),
    )


def _known(code: int) -> HvReturn | None:
    """Return the code by its name; ctypes may give it as the signed number that it is in C."""
    try:
        return HvReturn(code & 0xFFFF_FFFF)
    except ValueError:
        return None


def _errno_of(code: int) -> int:
    known = _known(code)
    return errno.EIO if known is None else _ERRNO[known]


def _text(code: int, detail: str) -> str:
    advice = "sign the program with the entitlement com.apple.security.hypervisor"
    denied = _known(code) == HvReturn.HV_DENIED
    return "; ".join(part for part in (describe(code), detail, advice if denied else "") if part)
