"""Walking a region tree in tests."""

from __future__ import annotations

from accel.memory.region import MemoryRegion


def every_region(top: MemoryRegion) -> list[MemoryRegion]:
    """Return `top` and all that its children and alias targets lead to, each once, always in the same order."""
    found: dict[int, MemoryRegion] = {}
    pending = [top]
    while pending:
        one = pending.pop()
        if id(one) not in found:
            found[id(one)] = one
            pending += one.children
            if one.target is not None:
                pending.append(one.target)
    return list(found.values())
