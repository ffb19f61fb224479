"""Drives worlds (`memory_world`) with a seed: `memory_drive.py SEED STEPS`.

Exits with 0, or with 3 and a complaint; what it prints ends with the package that it drove. The mutants are run by it.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter

from attrs import evolve
from memory_oracle import UNIT
from memory_replay import Complaint, require
from memory_steps import MIXES
from memory_world import World

import accel
from accel.address import AddressRange
from accel.memory.flat_view import MemoryRegionSection
from accel.memory.region import MemoryRegion
from accel.memory.splice import merged


def drive(seed: int, steps: int) -> Counter[str]:
    """Make `steps` edits at random, in worlds of 200 steps each; return the counts of all."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    while counts["steps"] < steps:
        mix = MIXES[chance.randrange(len(MIXES))]
        world = World(tight=chance.random() < 0.3)
        try:
            for _ in range(200):
                world.step(chance.choice(mix), chance.randrange(256), chance.randrange(256), chance.randrange(256))
            world.close()
        finally:
            world.abandon()
        counts += world.counts
    return counts


def check_merging() -> None:
    """Complain unless neighbours that differ in nothing but their log mask stay apart, and equal ones are joined.

    In a commit a region has one log mask everywhere, so that only a direct question tells.
    """
    ram = MemoryRegion.ram("ram", 2 * UNIT)
    halves = [MemoryRegionSection(AddressRange(at, at + UNIT), ram, at) for at in (0, UNIT)]
    require(len(list(merged(halves))) == 1, "equal neighbours stay apart")
    logged = [halves[0], evolve(halves[1], log_mask=1)]
    require(list(merged(logged)) == logged, "neighbours with different log masks are joined")


if __name__ == "__main__":
    os.environ["ACCEL_LOCKDEP"] = "1"
    try:
        check_merging()
        print(dict(drive(int(sys.argv[1]), int(sys.argv[2]))), accel.__file__)
    except Complaint as complaint:
        print(f"complaint: {complaint}", accel.__file__)
        sys.exit(3)
