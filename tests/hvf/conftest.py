"""A VM of Hypervisor.framework whose calls go to a recorder, as whoever has a Mac makes one with real calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from attrs import Factory, define

from accel.vm import OpenAccelerator, Vm
from accel_hvf_stub.api import HvMemory
from accel_hvf_stub.plugin import HvfAccelerator
from accel_hvf_stub.recorder import HvfRecorder

PAGE = 16 << 10
RWX = HvMemory.READ | HvMemory.WRITE | HvMemory.EXEC
R_X = HvMemory.READ | HvMemory.EXEC


class FailingRecorder(HvfRecorder):
    """A recorder whose memory calls can be made to fail, as macOS may for reasons of its own.

    Attributes:
        fail_at: Which memory call from now on fails, counted from 0; None for none. Then all work again.
        code: What it returns.
        made: Memory calls since `fail_at` was set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fail_at: int | None = None
        self.code = 0xFAE94005
        self.made = 0

    def _fails(self) -> bool:
        self.made += 1
        return self.made - 1 == self.fail_at

    def hv_vm_map(self, addr: int, ipa: int, size: int, flags: int) -> int:
        return self.code if self._fails() else super().hv_vm_map(addr, ipa, size, flags)

    def hv_vm_unmap(self, ipa: int, size: int) -> int:
        return self.code if self._fails() else super().hv_vm_unmap(ipa, size)

    def hv_vm_protect(self, ipa: int, size: int, flags: int) -> int:
        return self.code if self._fails() else super().hv_vm_protect(ipa, size, flags)


@define(eq=False)
class Rig:
    """A VM and the recorder below it."""

    vm: Vm
    recorder: FailingRecorder
    functions: tuple[str, ...] = Factory(lambda: ("hv_vm_map", "hv_vm_unmap", "hv_vm_protect"))

    def calls(self) -> list[tuple[object, ...]]:
        """Return the memory calls since the last time: function, address, size, and flags if it has some."""
        found: list[tuple[object, ...]] = []
        for call in self.recorder.take():
            assert call.code == 0, call
            if call.function in self.functions:
                values = call.arguments
                found.append((call.function, *(values[key] for key in ("ipa", "size", "flags") if key in values)))
        return found


@pytest.fixture
def open_rig() -> Iterator[Callable[..., Rig]]:
    """Make VMs, each with a recorder of its own, with the options that are given; they are closed in the end."""
    opened: list[OpenAccelerator] = []

    def make(**options: object) -> Rig:
        recorder = FailingRecorder()
        opened.append(OpenAccelerator(HvfAccelerator(lambda: recorder), options))
        return Rig(opened[-1].create_vm(), recorder)

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def rig(open_rig: Callable[..., Rig]) -> Rig:
    """A VM with default options."""
    return open_rig()


@pytest.fixture
def recorder_type() -> type[FailingRecorder]:
    """What makes recorders, for tests that need many."""
    return FailingRecorder
