"""What `benchmarks.worker` does in turns (`benchmarks.turns`): jobs that set something up and have sides by name.

A job is a context manager over its sides; each takes a count and returns costs. What it leaves is checked at its end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from benchmarks import access_jobs, bulk_jobs, commit_jobs, dirty_jobs, footprint_jobs, split_jobs
from benchmarks.resident import peak_kib

Side = Callable[[int], list[float]]

_JOBS: dict[str, Callable[..., AbstractContextManager[Mapping[str, Side]]]] = {
    "commits": commit_jobs.commits,
    "replay": commit_jobs.replay,
    "access": access_jobs.access,
    "bulk": bulk_jobs.bulk,
    "dirty": dirty_jobs.dirty,
    "footprint": footprint_jobs.footprint,
    "split": split_jobs.split,
}


def serve(job: str, *arguments: str) -> None:
    """Set `job` up and do what each line of the input asks for."""
    with _JOBS[job](*arguments) as sides:
        print("{}", flush=True)
        for line in sys.stdin:
            side, count = line.split()
            costs = sides[side](int(count))
            print(json.dumps({"costs": costs, "done": int(count), "peak_kib": peak_kib()}), flush=True)
