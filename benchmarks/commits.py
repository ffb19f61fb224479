"""A memory commit by the number of regions around it: edits of one region, beside rendering the tree and beside C.

Every map and listener has a process of its own, and all of them take turns. Each checks in the end that its view is
what rendering the whole tree gives, and that its listener made the same of what it was told.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from attrs import frozen

from benchmarks.bench import Bench, Comparison, Goal
from benchmarks.samples import Side, ratio
from benchmarks.turns import TurnProcess, TurnSide, python_job, start

NAME = "commits"
SUMMARY = "a commit that edits one region of many"
#: In each turn; an even number, as each edit is taken back.
_COMMITS = 40
_TURNS = 2
_SIZES = (100, 1_000, 10_000)
_TIMES_GOAL, _MS_GOAL = 3.0, 1.0
_LISTENERS = {"none": "no listener", "slots": "recorded slots", "kvm": "KVM"}
#: Maps other than plain RAM, and edits other than growing and shrinking; each with the recorded slots.
_KINDS = {"aliases": "half of it aliased", "mixed": "MMIO and overlap"}
_EDITS = {
    "remove": "remove or add",
    "move": "move",
    "enable": "disable or enable",
    "readonly": "read-only or writable",
}


@frozen
class _Case:
    """One edit in one map with one listener, at some sizes."""

    text: str
    kind: str
    listener: str
    edit: str
    sizes: Sequence[int]

    def process(self, size: int) -> str:
        return f"{self.kind} {size} {self.listener}"

    def side(self, size: int) -> str:
        return f"{self.edit} {self.process(size)}"


def measure(bench: Bench) -> Sequence[Comparison]:
    """Measure commits with each listener and map, all regions in one commit, and the replay."""
    listeners = [name for name in _LISTENERS if name != "kvm" or os.access("/dev/kvm", os.R_OK | os.W_OK)]
    if "kvm" not in listeners:
        bench.skip("commits on KVM: /dev/kvm cannot be opened")
    sizes = tuple(dict.fromkeys(map(bench.map_size, _SIZES)))
    ends = (sizes[0], sizes[-1])
    cases = [_Case(f"resize, {_LISTENERS[name]}", "ram", name, "resize", sizes) for name in listeners]
    cases += [_Case(f"resize, {text}", kind, "slots", "resize", sizes) for kind, text in _KINDS.items()]
    cases += [_Case(text, "ram", "slots", edit, ends) for edit, text in _EDITS.items()]
    with ExitStack() as stack:
        commands = {
            case.process(size): python_job("commits", case.kind, str(size), case.listener)
            for case in cases
            for size in case.sizes
        }
        if "kvm" in listeners:
            commands["C"] = [str(bench.baselines.program("slots")), "turns", str(ends[1])]
        commands["replay"] = python_job("replay", str(ends[1]))
        processes = start(stack, commands)
        found = _commits(bench, cases, processes)
        return [*found, _resize_all(bench, ends, processes), _replay(bench, ends[1], processes["replay"])]


def _commits(bench: Bench, cases: Sequence[_Case], processes: Mapping[str, TurnProcess]) -> list[Comparison]:
    count = 2 * bench.scaled(_COMMITS // 2)
    commits = {
        case.side(size): TurnSide(processes[case.process(size)], case.edit, count)
        for case in cases
        for size in case.sizes
    }
    # The same tree renders alike whoever listens.
    peers = {
        f"render {case.kind} {size}": TurnSide(processes[f"{case.kind} {size} slots"], "render", 1)
        for case in cases
        for size in case.sizes
    }
    if "C" in processes:
        peers["C"] = TurnSide(processes["C"], "pairs", count)
    sides = bench.alternate({**commits, **peers}, _TURNS)
    found = []
    for case in cases:
        for size in case.sizes:
            notes = {"p99": f"{commits[case.side(size)].percentile(99):.0f} µs"}
            found.append(_of_size(case, size, sides, notes))
        if case.listener == "kvm":
            many = case.sizes[-1]
            found.append(
                _comparison(
                    f"{case.text}: 1 of {many:,}", sides[case.side(many)], sides["C"], "C: add or delete a slot"
                )
            )
    return found


def _of_size(case: _Case, size: int, sides: Mapping[str, Side], notes: dict[str, str]) -> Comparison:
    side, few = sides[case.side(size)], case.sizes[0]
    goals = []
    if size == case.sizes[-1]:
        times = ratio(side, sides[case.side(few)])
        notes[f"times 1 of {few}"] = f"{times:.2f}"
        goals = [
            Goal(f"{case.text}: 1 of {size:,}, times 1 of {few}", _TIMES_GOAL, times),
            # A busy host only adds to a time.
            Goal(f"{case.text}: 1 of {size:,}, ms in the least round", _MS_GOAL, min(side.values) / 1000),
        ]
    peer = sides[f"render {case.kind} {size}"]
    return _comparison(f"{case.text}: 1 of {size:,}", side, peer, "render(root)", goals, notes)


def _resize_all(bench: Bench, ends: tuple[int, int], processes: Mapping[str, TurnProcess]) -> Comparison:
    few, many = ends
    sides = bench.alternate(
        {str(size): TurnSide(processes[f"ram {size} none"], "resize-all", 1) for size in ends}, turns=1
    )
    name = f"resize all {many:,} in one commit, for each"
    return _comparison(name, sides[str(many)], sides[str(few)], f"all {few} in one")


def _replay(bench: Bench, size: int, process: TurnProcess) -> Comparison:
    sides = bench.alternate({side: TurnSide(process, side, 1) for side in ("replay", "loop")}, _TURNS)
    notes = {"in all": f"{sides['replay'].median * size / 1000:.1f} ms"}
    name = f"registration: replay of {size:,}, for each"
    return _comparison(name, sides["replay"], sides["loop"], "a loop that calls region_add", notes=notes)


def _comparison(
    name: str, side: Side, peer: Side, text: str, goals: Sequence[Goal] = (), notes: Mapping[str, str] | None = None
) -> Comparison:
    return Comparison(name, "µs", Side("accel", side.samples), Side(text, peer.samples), goals, notes or {})
