"""Scenarios of memory that changes under a running KVM guest: what it may see, and what it may never see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from accel import MemoryRegion
from accel.program import Halt, Load, Out
from accel.testing.explore.scenario import require, scenario
from accel_kvm.scenarios.kicks import INSTRUMENTED
from accel_kvm.scenarios.scene import DEVICE, HIGH, LOW, NEW, NOTHING, OLD, PORT, RAM, Scene, device, ram


@scenario("kvm-replace", instrument=INSTRUMENTED, tags=("kvm",))
class Replace(Scene):
    """A slot is deleted and added back larger under a guest that reads there: it never faults."""

    def __init__(self) -> None:
        super().__init__(Load(RAM), Load(RAM))

    def check(self) -> None:
        super().check()
        require(not self.guest.faults, "the guest met the gap between the old slot and the new one")
        require(self.guest.seen == [OLD, OLD], f"the guest read {self.guest.seen}")
        self.require_ram(2)


@scenario("kvm-replace-unsafe", instrument=INSTRUMENTED, wrong="invariant", tags=("kvm",))
class ReplaceUnsafe(Replace):
    """The same with nobody held: the guest meets the gap."""

    options = {"plan": "replace", "hold": "unsafe"}


@scenario("kvm-spurious", instrument=INSTRUMENTED, tags=("kvm",))
class Spurious(Scene):
    """With nobody held, each fault in the gap is counted as spurious, and the guest reads the RAM all the same."""

    options = {"plan": "replace", "hold": "unsafe"}

    def __init__(self) -> None:
        super().__init__(Load(RAM), Load(RAM))

    def check(self) -> None:
        super().check()
        count, faults = self.stage.cpus[0].spurious_count, len(self.guest.faults)
        require(count == faults, f"{faults} faults in the gap, {count} counted as spurious")
        require(self.guest.seen == [OLD, OLD], f"the guest read {self.guest.seen}")


@scenario("kvm-hot-plug", instrument=INSTRUMENTED, tags=("kvm",))
class HotPlug(Scene):
    """A guest polls two places while RAM comes to one and goes from the other: no fault there counts as spurious."""

    def __init__(self) -> None:
        super().__init__(Load(RAM), Load(HIGH), Load(RAM), Load(HIGH))
        self.more = ram("more", NEW)

    def change(self) -> None:
        self.vm.memory.add(self.more, at=HIGH)
        self.vm.memory.remove(self.ram)

    def check(self) -> None:
        super().check()
        require(not self.stage.cpus[0].spurious_count, "a rightful fault counts as spurious")
        low, high = self.guest.seen[::2], self.guest.seen[1::2]
        require(low in ([OLD, OLD], [OLD, NOTHING], [NOTHING, NOTHING]), f"the guest read {low} where RAM went")
        require(high in ([NOTHING, NOTHING], [NOTHING, NEW], [NEW, NEW]), f"the guest read {high} where RAM came")


class _Map(Scene):
    """Two pieces of RAM come in one transaction, and a device makes place for another."""

    options = {"plan": "least"}
    atomic: Literal["address", "map"] = "map"

    def __init__(self) -> None:
        super().__init__(Load(LOW), Load(HIGH), Load(DEVICE))
        self.device = device(OLD)
        self.vm.memory.add(self.device, at=DEVICE)
        self.comes = [(ram("low", NEW), LOW), (ram("high", NEW), HIGH), (device(NEW), DEVICE)]

    def change(self) -> None:
        with self.vm.transaction(self.atomic):
            self.vm.memory.remove(self.device)
            for region, at in self.comes:
                self.vm.memory.add(region, at=at)

    def check(self) -> None:
        super().check()
        seen = self.guest.seen
        require(seen == sorted(seen, key=lambda one: one == NEW), f"the guest read {bytes(seen).hex(' ')}: half a map")


@scenario("kvm-map", instrument=INSTRUMENTED, tags=("kvm",))
class WholeMap(_Map):
    """RAM at two places and a device come with atomic="map": a guest that reads all three sees none or all."""


@scenario("kvm-map-by-address", instrument=INSTRUMENTED, wrong="invariant", tags=("kvm",))
class MapByAddress(_Map):
    """The same with atomic="address": a guest sees one place new and the next one old, as the promise allows."""

    atomic = "address"


@scenario("kvm-two-changes", instrument=INSTRUMENTED, bound=1, tags=("kvm",))
class TwoChanges(_Map):
    """One thread adds a whole map and another replaces a slot under a guest: each is seen as if it were alone."""

    options = {"plan": "replace"}

    def __init__(self) -> None:
        super().__init__()
        self.guest.ops = (Load(LOW), Load(RAM), Load(DEVICE), Halt())
        del self.comes[1]

    def threads(self) -> dict[str, Callable[[], object]]:
        return {**super().threads(), "grower": self.grow}

    def check(self) -> None:
        self.stage.check()
        seen = self.guest.seen
        require(RAM not in self.guest.faults, "the guest met the gap of the other change")
        require(seen[1] == OLD, f"the guest read {seen[1]:#x} where RAM was all the time")
        require((seen[0], seen[2]) != (NEW, OLD), "the guest saw half a map")
        self.require_ram(2)


@scenario("kvm-handler-edits", instrument=INSTRUMENTED, tags=("kvm",))
class HandlerEdits(Scene):
    """A port's handler replaces a slot while another thread does: nobody waits for ever, and the guest meets no gap."""

    cpus = 1

    def __init__(self) -> None:
        super().__init__(Out(PORT, 1), Load(RAM), cpus=self.cpus)
        port = MemoryRegion.mmio("port", 1, write=lambda offset, value, size: self.grow())
        self.vm.io.add(port, at=PORT)
        self.others = [self.kernel.guest(one.backend, Load(RAM), Halt()) for one in self.vm.vcpus[1:]]

    def change(self) -> None:
        self.ram.set_readonly(True)

    def check(self) -> None:
        super().check()
        for guest in (self.guest, *self.others):
            require(not guest.faults, "a guest met a gap")
            require(guest.seen == [OLD], f"a guest read {guest.seen}")
        self.require_ram(2)


@scenario("kvm-handler-edits-smp", instrument=INSTRUMENTED, bound=1, tags=("kvm",))
class HandlerEditsSmp(HandlerEdits):
    """The same with a second guest that reads the RAM meanwhile."""

    cpus = 2
