"""Sides that run a measuring guest, in C and through `Machine.run`; their unit is microseconds per write.

Every sample is checked: the guest's own count, the exits and the bytes that reached the sink must be what was asked
for, and be in the sink.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench import Bench, require_equal
from benchmarks.guests import CONSOLE_PORT, MEMORY, MMIO_ADDRESS, SERIAL_PORT
from benchmarks.processes import run_worker
from benchmarks.samples import Sample

_PORTS = {"serial": SERIAL_PORT, "console": CONSOLE_PORT, "mmio": 0}


def run_in_c(bench: Bench, image: Path, count: int, device: str, mode: str = "exits") -> Sample:
    """Run `image` in the C baseline. `mode` is ``exits``, ``coalesced``, or ``silent`` for a guest without writes."""
    sink = bench.scratch / "sink-c"
    memory = MMIO_ADDRESS if device == "mmio" else MEMORY
    arguments = [str(image), str(count), hex(_PORTS[device]), str(memory), str(sink)]
    data = bench.run_baseline("guest", *arguments, *(["coalesced"] if mode == "coalesced" else []))
    return _checked(f"{image.name} in C, {mode}", data, count, sink, mode)


def run_here(bench: Bench, image: Path, count: int, device: str, mode: str = "exits") -> Sample:
    """Run `image` through `Machine.run`, in a fresh process."""
    sink = bench.scratch / "sink-here"
    data = run_worker("guest", device, str(image), str(count), str(sink))
    return _checked(f"{image.name} through Machine.run, {mode}", data, count, sink, mode)


def _checked(what: str, data: dict[str, float], count: int, sink: Path, mode: str) -> Sample:
    written = 0 if mode == "silent" else count
    counts = {
        "guest_count": int(data["guest_count"]),
        "exits": int(data["exits"]),
        "delivered": int(data["delivered"]),
        "in_sink": sink.read_bytes().count(b"."),
    }
    require_equal(what, count, {"guest_count": counts["guest_count"]})
    require_equal(what, written, {name: counts[name] for name in ("delivered", "in_sink")})
    if mode == "exits":
        require_equal(what, count, {"exits": counts["exits"]})
    return Sample(data["seconds"] / count * 1e6, int(data["peak_kib"]), counts)
