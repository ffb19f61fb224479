"""Random trees of regions, and what each address of one shows, asked one address at a time.

The oracle works on the plan that a tree is built from, not on the tree: who shows at an address is the first answer of
the siblings in order of priority, the latest added first among equals, and holes fall through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from attrs import define, field
from hypothesis import strategies as st

from accel.memory.flat_view import FlatView
from accel.memory.region import MemoryRegion, RegionKind

SPAN = 48


class Answer(NamedTuple):
    """What shows at one address; `path` tells places apart that look the same."""

    region: MemoryRegion
    offset: int
    readonly: bool
    nonvolatile: bool
    unmergeable: bool
    path: tuple[object, ...]


@define(eq=False)
class Plan:
    """A region to be made, and what it takes to ask it for one address."""

    kind: RegionKind
    size: int
    readonly: bool
    nonvolatile: bool
    unmergeable: bool
    enabled: bool
    children: list[tuple[int, int, Plan]]  # (offset, priority, child), in the order they are added
    target: Plan | None = None
    target_offset: int = 0
    region: MemoryRegion = field(init=False)

    def build(self) -> MemoryRegion:
        """Make the region and all below it."""
        region = self._make()
        if self.readonly:
            region.set_readonly(True)
        region.set_nonvolatile(self.nonvolatile)
        region.set_enabled(self.enabled)
        region.unmergeable = self.unmergeable
        for offset, priority, child in self.children:
            region.add(child.build(), offset, priority)
        self.region = region
        return region

    def _make(self) -> MemoryRegion:
        name = self.kind.value
        if self.kind is RegionKind.ALIAS:
            assert self.target is not None
            target = self.target.region if hasattr(self.target, "region") else self.target.build()
            return MemoryRegion.alias(name, target, self.target_offset, self.size)
        if self.kind is RegionKind.RAM:
            return MemoryRegion.ram(name, self.size)
        if self.kind is RegionKind.ROM:
            return MemoryRegion.rom(name, b"", self.size)
        if self.kind is RegionKind.ROM_DEVICE:
            return MemoryRegion.rom_device(name, b"", self.size)
        if self.kind is RegionKind.MMIO:
            return MemoryRegion.mmio(name, self.size)
        return MemoryRegion.container(name, self.size)

    def ask(self, at: int, path: tuple[object, ...] = ()) -> Answer | None:
        """Return what shows at `at`, or None for a hole."""
        if not self.enabled or not 0 <= at < self.size:
            return None
        path = (*path, id(self))
        answer = None
        if self.kind is RegionKind.ALIAS:
            assert self.target is not None
            answer = self.target.ask(at + self.target_offset, path)
        else:
            latest_first = list(enumerate(self.children))[::-1]
            for number, (offset, _, child) in sorted(latest_first, key=lambda one: -one[1][1]):
                answer = child.ask(at - offset, (*path, number))
                if answer is not None:
                    break
            else:
                if self.kind is not RegionKind.CONTAINER:
                    answer = Answer(self.region, at, False, False, False, path)
        return answer and answer._replace(
            readonly=answer.readonly or self.readonly or self.kind is RegionKind.ROM,
            nonvolatile=answer.nonvolatile or self.nonvolatile,
            unmergeable=answer.unmergeable or self.unmergeable,
        )


_SELDOM = st.sampled_from([False] * 4 + [True])
_ENABLED = st.sampled_from([True] * 5 + [False])


def _leaf(kind: RegionKind) -> st.SearchStrategy[Plan]:
    return st.builds(
        Plan, st.just(kind), st.integers(1, 20), st.booleans(), _SELDOM, _SELDOM, _ENABLED, st.builds(list)
    )


_LEAVES = st.one_of(*map(_leaf, (RegionKind.RAM, RegionKind.ROM, RegionKind.ROM_DEVICE, RegionKind.MMIO)))


def _parents(inner: st.SearchStrategy[Plan]) -> st.SearchStrategy[Plan]:
    children = st.lists(st.tuples(st.integers(0, 24), st.integers(-2, 2), inner), max_size=4)
    kinds = st.sampled_from([RegionKind.CONTAINER] * 3 + [RegionKind.RAM, RegionKind.MMIO])
    return st.builds(Plan, kinds, st.integers(1, SPAN), _SELDOM, _SELDOM, _SELDOM, _ENABLED, children)


_PLANS = st.recursive(_LEAVES, _parents, max_leaves=8)


@st.composite
def trees(draw: Callable) -> Plan:
    """A root over `SPAN` addresses with children, some of them aliases of parts of others."""
    root = draw(st.lists(st.tuples(st.integers(0, SPAN - 1), st.integers(-2, 2), _PLANS), min_size=1, max_size=5))
    pool: list[Plan] = []
    pending = [child for _, _, child in root]
    while pending:
        one = pending.pop()
        pool.append(one)
        pending.extend(child for _, _, child in one.children)
    for _ in range(draw(st.integers(0, 3))):
        target = draw(st.sampled_from(pool))
        alias = Plan(
            RegionKind.ALIAS,
            draw(st.integers(1, 24)),
            draw(st.booleans()),
            draw(_SELDOM),
            draw(st.sampled_from([False, False, True])),
            draw(_ENABLED),
            [],
            target,
            draw(st.integers(0, 24)),
        )
        pool.append(alias)
        root.append((draw(st.integers(0, SPAN - 1)), draw(st.integers(-2, 2)), alias))
    return Plan(RegionKind.CONTAINER, SPAN, False, False, False, True, root)


def answers(plan: Plan) -> list[Answer | None]:
    """Return what each address shows."""
    return [plan.ask(at) for at in range(SPAN)]


def _continue_each_other(one: Answer | None, other: Answer | None) -> bool:
    """Return whether two answers for neighbouring addresses belong into one section."""
    if one is None or other is None:
        return False
    same = one.region is other.region and one.offset + 1 == other.offset and one[2:4] == other[2:4]
    # What must stay apart still is one piece with itself.
    apart = one.unmergeable or other.unmergeable
    return same and (not apart or (one.path == other.path and one.unmergeable and other.unmergeable))


def expected(found: list[Answer | None]) -> list[tuple]:
    """Return (start, end, region, offset, readonly, nonvolatile, unmergeable) of the sections that answers mean."""
    sections: list[list] = []
    for at, answer in enumerate(found):
        if answer is None:
            continue
        if at and sections and sections[-1][1] == at and _continue_each_other(found[at - 1], answer):
            sections[-1][1] = at + 1
        else:
            sections.append([at, at + 1, *answer[:5]])
    return [tuple(one) for one in sections]


def shown(view: FlatView) -> list[tuple]:
    """Return the same of a view."""
    return [
        (one.range.start, one.range.end, one.region, one.offset, one.readonly, one.nonvolatile, one.unmergeable)
        for one in view
    ]
