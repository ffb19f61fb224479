"""Scenarios of memory changes that fail: the map before stays in force, and no guest misses any of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from accel.errors import InhibitTimeoutError
from accel.program import Load
from accel.testing.explore.scenario import require, scenario
from accel_kvm.scenarios.kicks import INSTRUMENTED
from accel_kvm.scenarios.scene import DEVICE, HIGH, NEW, NOTHING, OLD, RAM, Scene, device, fails, ram


@scenario("kvm-time-out", instrument=INSTRUMENTED, timeouts=True, tags=("kvm",))
class TimeOut(Scene):
    """A guest waits for a page in the kernel while its slot is replaced: that is done, or nothing after a time-out."""

    options = {"plan": "replace", "inhibit_timeout_ms": 50}

    def __init__(self) -> None:
        super().__init__(Load(RAM))
        self.page = self.kernel.missing[RAM] = threading.Event()
        self.refused = False

    def threads(self) -> dict[str, Callable[[], object]]:
        return {**super().threads(), "pager": self.page.set}

    def change(self) -> None:
        try:
            self.grow()
        except InhibitTimeoutError:
            self.refused = True

    def check(self) -> None:
        super().check()
        require(not self.guest.faults, "the guest met a gap")
        require(self.guest.seen == [OLD], f"the guest read {self.guest.seen}")
        self.require_ram(1 if self.refused else 2)


@scenario("kvm-undo", instrument=INSTRUMENTED, tags=("kvm",))
class Undo(Scene):
    """A change fails at its second slot call: it is taken back, and no guest sees anything of it."""

    def __init__(self) -> None:
        super().__init__(Load(DEVICE), Load(RAM), Load(DEVICE))
        self.kernel.failing = 1

    def change(self) -> None:
        fails(self.grow_beside_device)

    def grow_beside_device(self) -> None:
        """Replace the slot, and add a device, in one transaction."""
        with self.vm.transaction():
            self.vm.memory.add(device(NEW), at=DEVICE)
            self.grow()

    def check(self) -> None:
        super().check()
        require(self.guest.seen == [NOTHING, OLD, NOTHING], f"the guest read {bytes(self.guest.seen).hex(' ')}")
        require(self.guest.faults == [DEVICE, DEVICE], "the guest met the gap")
        self.require_ram(1)


@scenario("kvm-spurious-undo", instrument=INSTRUMENTED, tags=("kvm",))
class SpuriousUndo(Scene):
    """With nobody held, RAM goes for a moment in a change that fails: each fault meanwhile is counted as spurious."""

    options = {"plan": "replace", "hold": "unsafe"}

    def __init__(self) -> None:
        super().__init__(Load(RAM), Load(RAM))
        self.more = ram("more", NEW)
        self.vm.memory.add(self.more, at=HIGH)
        self.kernel.failing = 1

    def change(self) -> None:
        fails(self.remove_both)

    def remove_both(self) -> None:
        """Remove all RAM in one transaction."""
        with self.vm.transaction():
            self.vm.memory.remove(self.ram)
            self.vm.memory.remove(self.more)

    def check(self) -> None:
        super().check()
        count, faults = self.stage.cpus[0].spurious_count, len(self.guest.faults)
        require(count == faults, f"{faults} faults in the gap, {count} counted as spurious")
        require(self.guest.seen == [OLD, OLD], f"the guest read {self.guest.seen}")
        self.require_ram(1)


@scenario("kvm-undo-delete", instrument=INSTRUMENTED, tags=("kvm",))
class UndoDelete(SpuriousUndo):
    """A change fails at its second delete: the first is taken back before a guest can miss it."""

    options = {"plan": "least"}

    def check(self) -> None:
        super().check()
        require(not self.guest.faults, "the guest met the gap")
