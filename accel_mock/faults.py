"""Faults on demand: calls of the mock that fail with a chosen errno; vCPUs that come out late, never or with an error.

A fault is written the same way everywhere, as a text: ``create@2=ENOMEM`` is the second slot that is created,
``slot@3+=ENOSPC`` every slot call from the third on, ``vcpu0@1=stuck`` the first entry of vCPU 0. `parse_fault` makes a
value of it, and `str` the text again. `Faults` counts the calls of one VM and says which of them fail.

Layer: below the mock's VM, slots and vCPUs, which ask it; it knows none of them.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

from attrs import frozen

from accel.errors import BackendError
from accel.options import nearest
from accel_mock.limits import MAX_VCPUS

#: Calls that change slots; ``slot`` stands for any of them, counted together.
SLOT_CALLS = ("create", "delete", "move", "toggle", "list")
#: All calls that can fail.
CALLS = ("slot", *SLOT_CALLS, "take-dirty", "reset-rings", "coalesce", "create-vcpu", "kick-all")

_TEXT = re.compile(r"([a-z-]+?)(\d*)(?:@(\d+)(\+?))?=(\S+)")
_LATE = re.compile(r"late:(\d+)(us|ms|s|ops)")
#: Microseconds.
_UNITS = {"us": 1, "ms": 1000, "s": 1_000_000}
_HOW = "write it like create@2=ENOMEM, vcpu0@1=stuck or vcpu0@1=late:5ms"


@frozen
class CallFails:
    """A call that fails without having done anything.

    Attributes:
        call: One of `CALLS`.
        errno: What it fails with.
        at: Which, counted from 1 over the life of the VM.
        onward: Whether all from then on fail.
    """

    call: str
    errno: int
    at: int = 1
    onward: bool = False

    def __str__(self) -> str:
        return f"{self.call}{_when(self)}={errno.errorcode[self.errno]}"


@frozen
class EntryFails:
    """A vCPU whose entry into the guest fails: the guest executes nothing.

    Attributes:
        vcpu: Which; None is each of them, counted by itself.
        errno: What it fails with.
        at: Which entry, counted from 1.
        onward: Whether all from then on fail.
    """

    vcpu: int | None
    errno: int
    at: int = 1
    onward: bool = False

    def __str__(self) -> str:
        return f"vcpu{_number(self)}{_when(self)}={errno.errorcode[self.errno]}"


@frozen
class ComesOutLate:
    """A vCPU that goes on in the guest after a kick, up to its next exit, and does not come out with that either.

    Attributes:
        vcpu: Which; None is each of them, counted by itself.
        seconds: For how long, from the kick on; None together with `operations` None is for ever.
        operations: For how many operations of the guest; waiting at an exit counts as operations.
        at: In which entry, counted from 1.
        onward: Whether in all from then on.
    """

    vcpu: int | None
    seconds: float | None = None
    operations: int | None = None
    at: int = 1
    onward: bool = False

    def __str__(self) -> str:
        effect = "stuck"
        if self.operations is not None:
            effect = f"late:{self.operations}ops"
        elif self.seconds is not None:
            effect = f"late:{round(self.seconds * 1e6)}us"
        return f"vcpu{_number(self)}{_when(self)}={effect}"


Fault: TypeAlias = CallFails | EntryFails | ComesOutLate
VcpuFault: TypeAlias = EntryFails | ComesOutLate


def _when(fault: Fault) -> str:
    return f"@{fault.at}{'+' if fault.onward else ''}"


def _number(fault: VcpuFault) -> str:
    return "" if fault.vcpu is None else str(fault.vcpu)


def parse_fault(given: object) -> Fault:
    """Return the fault that a text means, or a fault as it is.

    >>> parse_fault("vcpu1@3=EIO")
    EntryFails(vcpu=1, errno=5, at=3, onward=False)

    Raises:
        ValueError: It means none; the message says how to write it.
    """
    if isinstance(given, CallFails | EntryFails | ComesOutLate):
        return given
    found = _TEXT.fullmatch(given) if isinstance(given, str) and len(given) < 100 else None
    if found is None:
        raise ValueError(f"is no fault; {_HOW}")
    call, number, at, plus, effect = found.groups()
    when = int(at or 1)
    if when < 1:
        raise ValueError("calls and entries are counted from 1; write @1 for the first")
    if call == "vcpu":
        return _vcpu_fault(int(number) if number else None, effect, when, bool(plus))
    if number or call not in CALLS:
        raise ValueError(f"there is no call '{call}{number}' of the mock; {nearest(call, (*CALLS, 'vcpu'))}")
    return CallFails(call, _errno(effect), when, bool(plus))


def _vcpu_fault(vcpu: int | None, effect: str, at: int, onward: bool) -> VcpuFault:
    if vcpu is not None and vcpu >= MAX_VCPUS:
        raise ValueError(f"vCPUs have numbers from 0 to {MAX_VCPUS - 1}")
    if effect == "stuck":
        return ComesOutLate(vcpu, at=at, onward=onward)
    late = _LATE.fullmatch(effect)
    if late is not None:
        number, unit = int(late[1]), late[2]
        if unit == "ops":
            return ComesOutLate(vcpu, operations=number, at=at, onward=onward)
        return ComesOutLate(vcpu, seconds=number * _UNITS[unit] / 1e6, at=at, onward=onward)
    if not effect.startswith("E"):
        raise ValueError(
            f"'{effect}' is nothing a vCPU does; write stuck, late:5ms, late:200ops or an errno such as EIO"
        )
    return EntryFails(vcpu, _errno(effect), at, onward)


def _errno(name: str) -> int:
    number = getattr(errno, name, None) if name.startswith("E") else None
    if not isinstance(number, int):
        raise ValueError(f"'{name}' is no errno; {nearest(name, errno.errorcode.values())}")
    return number


class Faults:
    """The faults of one VM, and a count of its calls. Given as the option ``faults``, a test can look at it later.

    Args:
        faults: Faults, as values or as texts.

    Attributes:
        calls: How often each call of `CALLS` was made, those that failed too. Guarded by a leaf lock.
        met: The faults that have shown, oldest first; one that goes on is there once.

    Raises:
        ValueError: A text means no fault.
    """

    def __init__(self, *faults: Fault | str) -> None:
        found = [parse_fault(one) for one in faults]
        self.calls: Counter[str] = Counter()
        self.met: list[Fault] = []
        self._lock = threading.Lock()
        self._calls = [one for one in found if isinstance(one, CallFails)]
        self._vcpus = [one for one in found if not isinstance(one, CallFails)]
        self._over = False

    def clear(self) -> None:
        """Let nothing fail any more, and let stuck vCPUs come out; any thread."""
        self._over = True

    def errno_of(self, call: str) -> int:
        """Count a call; return the errno that it is to fail with, or 0."""
        with self._lock:
            self.calls[call] += 1
            if call in SLOT_CALLS:
                self.calls["slot"] += 1
            for fault in self._calls:
                concerned = fault.call == call or (fault.call == "slot" and call in SLOT_CALLS)
                if concerned and self._shows(fault, self.calls[fault.call]):
                    return fault.errno
        return 0

    def of_vcpu(self, index: int) -> VcpuFaults | None:
        """Return what a vCPU asks at each entry; None if it has no fault."""
        mine = [one for one in self._vcpus if one.vcpu is None or one.vcpu == index]
        return VcpuFaults(self, index, mine) if mine else None

    def _shows(self, fault: Fault, count: int) -> bool:
        """Return whether a fault shows at its `count`-th time, and note it; under the lock."""
        if self._over or not (count == fault.at or (fault.onward and count > fault.at)):
            return False
        if fault not in self.met:
            self.met.append(fault)
        return True


class VcpuFaults:
    """The faults of one vCPU. Owned by its thread.

    Args:
        faults: Whose they are.
        index: The vCPU's.
        mine: What can happen to it.
    """

    def __init__(self, faults: Faults, index: int, mine: Iterable[VcpuFault]) -> None:
        self._faults = faults
        self._index = index
        self._mine = tuple(mine)
        self._entries = 0

    def enter(self) -> Lateness | None:
        """Count an entry; return how it comes out late, if it does.

        Raises:
            BackendError: The entry is to fail.
        """
        self._entries += 1
        faults = self._faults
        with faults._lock:
            for fault in self._mine:
                if faults._shows(fault, self._entries):
                    if isinstance(fault, EntryFails):
                        raise BackendError("mock vCPU entry", fault.errno, f"vCPU {self._index}, entry {self._entries}")
                    return Lateness(faults, fault)
        return None


class Lateness:
    """How long a vCPU stays after a kick that it has just seen."""

    def __init__(self, faults: Faults, fault: ComesOutLate) -> None:
        self._faults = faults
        self._left = fault.operations
        self._seconds = fault.seconds
        self._until: float | None = None

    def is_over(self) -> bool:
        """Return whether the vCPU comes out now; asked before each operation from the kick on."""
        if self._faults._over:
            return True
        if self._left is not None:
            self._left -= 1
            return self._left < 0
        if self._seconds is None:
            return False
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._seconds
        return now >= self._until
