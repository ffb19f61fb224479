"""Every exception that `accel` raises, in one hierarchy.

::

    AccelError
    ├── UsageError (ValueError)               a call, option or flag that cannot mean anything
    │   ├── AddressError                      a range or size that is malformed or out of bounds
    │   ├── OptionError                       an option: unknown, of the wrong type, out of range
    │   ├── WorkloadError                     a workload file: file, field, value, next step
    │   ├── ProgramError                      a guest program: operation, field, value
    │   ├── ImageError                        a guest image that cannot be loaded
    │   └── RegionError                       an edit of the region tree that is refused
    ├── StateError (RuntimeError)             the right call at the wrong time
    │   ├── ClosedError                       use after close
    │   └── LockError                         a lock that is not held, or taken out of order
    ├── NoAcceleratorError (LookupError)      none in the list can do it, with each one's reason
    ├── PluginError (ImportError)             a plugin that did not load or broke the contract
    ├── CapabilityError (NotImplementedError) the accelerator does not offer what was asked for
    ├── BackendError (OSError)                a call into the accelerator failed, with its errno
    │   └── MemorySlotError                   a slot update: slot, GPA, HVA, size, flags
    ├── ListenerError                         a memory listener raised something of its own
    ├── InhibitTimeoutError (TimeoutError)    vCPUs that did not come out of their ioctls
    ├── UserFaultError                        a page under a user-fault handler that did not come
    ├── MapLostError                          an undo failed: the guest's memory map is not known
    ├── DeviceError                           a device handler raised while it served the guest
    └── GuestCrashError                       the guest ended in a way that it cannot go on from

Each carries its data as attributes, prints addresses in hex, and says the next step where there is one.
"""

from __future__ import annotations

import errno as _errno
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence


class AccelError(Exception):
    """Base of all errors of this project.

    Attributes:
        listener: Name of the memory listener that refused a change or failed in it, or None.
        step: What it was doing, such as ``region_add``, ``prepare`` or ``apply``.
        origin: Whose listener or hook it was that nobody called for by name, and how to do without; or None.
    """

    listener: str | None = None
    step: str | None = None
    origin: str | None = None

    def __str__(self) -> str:
        return self._with_origin(super().__str__())

    def _with_origin(self, text: str) -> str:
        where = [] if self.listener is None else [f"memory listener '{self.listener}', {self.step}"]
        where += [] if self.origin is None else [self.origin]
        return f"{text} ({'; '.join(where)})" if where else text


class UsageError(AccelError, ValueError):
    """A call, option or flag that cannot mean anything."""


class AddressError(UsageError):
    """An address range or size that is malformed, unaligned or out of bounds."""


class OptionError(UsageError):
    """An option that is unknown, of the wrong type or out of range.

    Attributes:
        where: What the option belongs to, such as ``accelerator.kvm``.
        option: The option's name.
        value: What was given.
        problem: What is wrong with it.
    """

    def __init__(self, where: str, option: str, value: object, problem: str) -> None:
        super().__init__(f"{where}.{option} = {_quoted(value)}: {problem}")
        self.where = where
        self.option = option
        self.value = value
        self.problem = problem


class WorkloadError(UsageError):
    """A workload file that cannot be used.

    Attributes:
        path: The file.
        field: The field as it is written in TOML, such as ``machine.cpus``; empty for the whole file.
        value: What stands there, or None.
        problem: What is wrong with it.
    """

    def __init__(self, path: str, field: str, value: object, problem: str) -> None:
        shown = f"{path}: {field}" if field else path
        if value is not None:
            shown += f" = {_quoted(value)}"
        super().__init__(f"{shown}: {problem}")
        self.path = path
        self.field = field
        self.value = value
        self.problem = problem


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def _quoted(value: object) -> str:
    """Return `value` as its author wrote it, cut to about a line, whatever a file or a flag may hold."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        # CPython refuses to write integers of more than some thousand digits in decimal.
        return "a huge number"


def _shown(value: object) -> str:
    """Return `value` as `_quoted` does, but integers in hex."""
    return hex(value) if type(value) is int and 9 < abs(value) < 1 << 128 else _quoted(value)


class ProgramError(UsageError):
    """A guest program that cannot mean anything.

    Attributes:
        where: The operation, such as ``program[3].body[0]``.
        field: The operation's field, or empty for the whole operation.
        value: What stands there, or None.
        problem: What is wrong with it.
    """

    def __init__(self, where: str, field: str, value: object, problem: str) -> None:
        shown = f"{where}.{field}" if field else where
        if value is not None:
            shown += f" = {_shown(value)}"
        super().__init__(f"{shown}: {problem}")
        self.where = where
        self.field = field
        self.value = value
        self.problem = problem


class ImageError(UsageError):
    """A guest image that cannot be loaded.

    Attributes:
        path: The image file, or the name it was given.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class RegionError(UsageError):
    """An edit of the region tree that is refused; nothing has changed.

    Attributes:
        region: The region's name.
    """

    def __init__(self, region: str, problem: str) -> None:
        super().__init__(f"memory region '{region}': {problem}")
        self.region = region


class StateError(AccelError, RuntimeError):
    """The right call at the wrong time."""


class ClosedError(StateError):
    """Something is used after it was closed."""


class LockError(StateError):
    """A lock is not held where it must be, or is taken out of order.

    Attributes:
        report: Who holds what, where it was taken, and the order seen elsewhere, in many lines; a traceback shows it
            too. Empty if a lock is only missing.
    """

    def __init__(self, problem: str, report: str = "") -> None:
        super().__init__(problem)
        self.report = report
        if report:
            self.add_note(report)


class NoAcceleratorError(AccelError, LookupError):
    """No accelerator in the list can do what is asked.

    Attributes:
        reasons: For each accelerator that was tried, in order, why it was passed over.
    """

    def __init__(self, reasons: Mapping[str, str], advice: str = "") -> None:
        lines = [f"  {name}: {reason}" for name, reason in reasons.items()]
        message = "no accelerator can run this:\n" + "\n".join(lines)
        super().__init__(message + (f"\n{advice}" if advice else ""))
        self.reasons = dict(reasons)


class PluginError(AccelError, ImportError):
    """A plugin that did not load or breaks the plugin contract.

    Attributes:
        plugin: The entry point's name.
        distribution: The distribution that brought it, or ``"?"``.
    """

    def __init__(self, plugin: str, distribution: str, problem: str) -> None:
        super().__init__(f"plugin '{plugin}' (from {distribution}): {problem}")
        self.plugin = plugin
        self.distribution = distribution


class CapabilityError(AccelError, NotImplementedError):
    """The accelerator does not offer what was asked for."""


class BackendError(AccelError, OSError):
    """A call into the accelerator failed.

    Attributes:
        operation: The call, such as ``KVM_CREATE_VCPU``.
        errno: The error number.
    """

    def __init__(self, operation: str, errno: int, detail: str = "") -> None:
        name = _errno.errorcode.get(errno, str(errno))
        text = f"{operation} failed: {name} ({os.strerror(errno)})" + (f"; {detail}" if detail else "")
        super().__init__(errno, text)
        self.operation = operation
        self._text = text

    def __str__(self) -> str:
        return self._with_origin(self._text)


class MemorySlotError(BackendError):
    """A slot update failed; the map before is in force.

    Attributes:
        slot: Slot number.
        gpa: Guest-physical address of the slot.
        hva: Host-virtual address behind it.
        size: Bytes; 0 deletes the slot.
        flags: The accelerator's own flags.
        errno: The error number.
    """

    def __init__(
        self, operation: str, errno: int, *, slot: int, gpa: int, hva: int, size: int, flags: int, advice: str = ""
    ) -> None:
        detail = f"slot {slot}, GPA {gpa:#x}, HVA {hva:#x}, size {size:#x}, flags {flags:#x}"
        super().__init__(operation, errno, f"{detail}; {advice}" if advice else detail)
        self.slot = slot
        self.gpa = gpa
        self.hva = hva
        self.size = size
        self.flags = flags


class InhibitTimeoutError(AccelError, TimeoutError):
    """vCPUs or VM ioctls did not come out in time; everyone goes on and nothing has changed.

    Attributes:
        inside: For each that is still inside: who, in which call, for how many seconds.
    """

    def __init__(self, timeout: float, inside: Sequence[tuple[str, str, float]]) -> None:
        who = ", ".join(f"{name} in {operation} for {seconds:.3f} s" for name, operation, seconds in inside)
        super().__init__(f"not quiet after {timeout:g} s: {who or 'nobody is inside any more'}")
        self.timeout = timeout
        self.inside = tuple(inside)


class UserFaultError(AccelError):
    """A page that a user-fault handler should have served did not come; it is still missing.

    Attributes:
        region: The region's name.
        offset: Of the page in the region.
    """

    def __init__(self, region: str, offset: int, problem: str) -> None:
        super().__init__(f"page {offset:#x} of '{region}' {problem}")
        self.region = region
        self.offset = offset


class ListenerError(AccelError):
    """A memory listener raised something of its own, which is the cause; the change that it refused is taken back.

    Attributes:
        listener: Its name.
        step: The callback that raised, ``prepare`` or ``apply``.
    """

    def __init__(self, listener: str, step: str, cause: BaseException) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.listener = listener
        self.step = step


class MapLostError(AccelError):
    """A failed update could not be undone: which memory the guest sees is no longer known.

    The VM's vCPUs never run again.

    Attributes:
        problem: What could not be undone.
        slots: A line for each slot that is believed to be present.
    """

    def __init__(self, problem: str, slots: Iterable[str] = ()) -> None:
        self.problem = problem
        self.slots = tuple(slots)
        present = "; ".join(self.slots) or "none"
        super().__init__(f"{problem}; slots present: {present}")


class DeviceError(AccelError):
    """A device raised while it served the guest or handed on its output; the cause is its own exception.

    Attributes:
        device: The region's name, or the device's where no access is concerned.
        address: Port or guest-physical address, or None.
        vcpu: Index of the vCPU, or None where no vCPU was waiting for it.
    """

    def __init__(self, device: str, access: str, address: int | None, vcpu: int | None, cause: BaseException) -> None:
        place = access if address is None else f"{access} {address:#x}"
        who = "" if vcpu is None else f" for vCPU {vcpu}"
        super().__init__(f"device '{device}' raised {type(cause).__name__} at {place}{who}: {cause}")
        self.device = device
        self.address = address
        self.vcpu = vcpu


class GuestCrashError(AccelError):
    """The guest ended in a way that it cannot go on from (triple fault, internal error, failed entry).

    Attributes:
        vcpu: Index of the vCPU.
        reason: ``shutdown``, ``internal-error`` or ``fail-entry``.
    """

    def __init__(self, vcpu: int, reason: str, detail: str) -> None:
        super().__init__(f"vCPU {vcpu}: {reason}: {detail}")
        self.vcpu = vcpu
        self.reason = reason
