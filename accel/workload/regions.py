"""The regions of a running workload: made from the file, and changed as its ``[[change]]`` tables say.

Layer: above the memory core, below `changes`. A `Mount` is a region with the state that changes act on; what a
change asks for is another state, and going there is one transaction.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from attrs import evolve, frozen

from accel.address import PAGE_SIZE, align_down, align_up, format_size
from accel.errors import RegionError
from accel.loaders.load import read_image
from accel.machine import Machine
from accel.memory.backing import Backing
from accel.memory.ram_block import RamBlock, check_host_memory
from accel.memory.region import MemoryRegion, RegionKind
from accel.memory.transaction import Atomic
from accel.workload.schema import MACHINE_RAM, RegionSpec

_FILL_CHUNK = 1 << 20


@frozen
class MountState:
    """How a region shows.

    Attributes:
        at: Where it stands in its parent, or None where it is not in there.
        size: Bytes.
        priority: Its rank among siblings.
        offset: Where in its target an alias begins; 0 for others.
        cut: None shows the region itself; 0 shows it through a window that is no part of its neighbours, so that
            the mapping is another one with the same bytes; n shows it through two that meet at offset n.
    """

    at: int | None
    size: int
    enabled: bool
    readonly: bool
    priority: int
    offset: int
    cut: int | None = None


class Mount:
    """A region in a machine's memory. One thread at a time changes it.

    Args:
        parent: The region that it stands in.

    Attributes:
        name: The region's name.
        region: The region itself, in its parent or behind windows.
        own: Its state as the file describes it.
        state: Its state now.
    """

    def __init__(self, machine: Machine, spec: RegionSpec, region: MemoryRegion, parent: MemoryRegion) -> None:
        self.name = spec.name
        self.region = region
        self.own = MountState(spec.at, region.size, spec.enabled, region.readonly, spec.priority, region.target_offset)
        self.state = evolve(self.own, at=None, enabled=True)
        self._machine = machine
        self._parent = parent
        # What is in the map for it: the region itself, or windows on it.
        self._shown: tuple[MemoryRegion, ...] = ()

    def become(self, new: MountState, atomic: Atomic = "address") -> None:
        """Go to another state, in one transaction.

        Raises:
            RegionError: It cannot be; nothing has changed.
            AccelError: The commit failed; the map before is in force.
        """
        if new.cut is not None and new.cut >= new.size:
            raise RegionError(
                self.name, f"of size {format_size(new.size)} cannot be split at {new.cut:#x}; split it lower"
            )
        old, shown = self.state, self._shown
        # A region that stays where it is keeps its rank among regions of its priority.
        rebuild = new.cut is not None or (new.at, new.cut) != (old.at, old.cut)
        with self._machine.transaction(atomic):
            if rebuild:
                for piece in shown:
                    self._parent.remove(piece)
            elif new.priority != old.priority:
                for piece in shown:
                    piece.set_priority(new.priority)
            if new.size != old.size:
                self.region.resize(new.size)
            if new.enabled != old.enabled:
                self.region.set_enabled(new.enabled)
            if new.readonly != old.readonly:
                self.region.set_readonly(new.readonly)
            if new.offset != old.offset:
                self.region.set_target_offset(new.offset)
            if rebuild:
                shown = self._show(new)
        self.state, self._shown = new, shown

    def half(self) -> int:
        """Return the offset of the page boundary nearest below its middle, where a split cuts by default."""
        return max(PAGE_SIZE, align_down(self.state.size // 2, PAGE_SIZE))

    def _show(self, state: MountState) -> tuple[MemoryRegion, ...]:
        if state.at is None:
            return ()
        pieces = self._pieces(state)
        at = state.at
        for piece in pieces:
            self._parent.add(piece, at, state.priority)
            at += piece.size
        return pieces

    def _pieces(self, state: MountState) -> tuple[MemoryRegion, ...]:
        if state.cut is None:
            return (self.region,)
        edges = [0, state.cut, state.size] if state.cut else [0, state.size]
        return tuple(
            MemoryRegion.alias(f"{self.name}-{start:#x}", self.region, start, end - start, unmergeable=True)
            for start, end in itertools.pairwise(edges)
        )


def mount_regions(machine: Machine, specs: Sequence[RegionSpec]) -> dict[str, Mount]:
    """Make the regions and put them into the machine's memory, all in one transaction.

    Raises:
        RegionError: A region cannot be made as described.
        ImageError: A file with contents cannot be read.
        AddressError: The host has less memory than they ask for.
    """
    _check_host(machine.ram.size, specs)
    regions = {MACHINE_RAM: machine.ram}
    mounts: dict[str, Mount] = {}
    with machine.transaction():
        for spec in specs:
            regions[spec.name] = _make(spec, regions)
            parent = machine.memory.root if spec.parent is None else regions[spec.parent]
            mounts[spec.name] = Mount(machine, spec, regions[spec.name], parent)
            mounts[spec.name].become(mounts[spec.name].own)
    return mounts


def _check_host(ram: int, specs: Sequence[RegionSpec]) -> None:
    wanted = ram + sum(map(_host_size, specs))
    check_host_memory(wanted, f"RAM and regions of {format_size(wanted)} are")


def _host_size(spec: RegionSpec) -> int:
    if spec.kind in ("alias", "container"):
        return 0
    if spec.size is not None or spec.contents is None:
        return spec.max_size or spec.size or 0
    try:
        return max(spec.max_size or 0, spec.contents.stat().st_size)
    except OSError:
        # Reading it, next, says what is wrong.
        return 0


def _make(spec: RegionSpec, regions: dict[str, MemoryRegion]) -> MemoryRegion:
    size, target, block = spec.size or 0, None, None
    contents = b""
    if spec.target is not None:
        target = regions[spec.target]
        size = size or target.size - (spec.offset or 0)
        if size <= 0:
            raise RegionError(
                spec.name, f"offset {spec.offset or 0:#x} is beyond '{spec.target}' of size {target.size:#x}"
            )
    elif spec.kind != "container":
        contents = b"" if spec.contents is None else read_image(os.fspath(spec.contents))
        size = size or align_up(len(contents), PAGE_SIZE)
        if len(contents) > size:
            raise RegionError(spec.name, f"{len(contents):#x} bytes of contents do not fit into size {size:#x}")
        limit = max(size, spec.max_size or 0)
        block = RamBlock(spec.name, size, limit, backing=spec.backing or Backing.anonymous())
    region = MemoryRegion(
        spec.name,
        RegionKind(spec.kind),
        size,
        block=block,
        target=target,
        target_offset=spec.offset or 0,
        readonly=spec.readonly or spec.kind == "rom" or (block is not None and block.backing.readonly),
        nonvolatile=spec.nonvolatile,
        unmergeable=spec.unmergeable,
    )
    _fill(region, contents, spec.fill or 0)
    return region


def _fill(region: MemoryRegion, contents: bytes, fill: int) -> None:
    """Put `contents` into the region's memory, and the byte `fill` behind them; zeros are there already."""
    if contents:
        region.write(0, contents)
    if fill:
        chunk = bytes([fill]) * _FILL_CHUNK
        for at in range(len(contents), region.size, _FILL_CHUNK):
            region.write(at, chunk[: region.size - at])
