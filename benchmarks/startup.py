"""The wall time of ``accelctl``, beside a Python that does nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bench import Bench, Comparison, Goal
from benchmarks.processes import ROOT
from benchmarks.samples import Sample

NAME = "startup"
SUMMARY = "wall time of accelctl, beside `python -c pass`"
_HELP_GOAL, _HELLO_GOAL = 0.25, 0.4


def measure(bench: Bench) -> Sequence[Comparison]:
    """Measure ``accelctl --help`` and ``accelctl run`` of a guest that says hello."""
    hello = ROOT / "examples" / "guests" / "hello.bin"
    sides = bench.alternate(
        {
            "python -c pass": lambda: _launch(bench, "-c", "pass"),
            "--help": lambda: _launch(bench, *_accelctl("--help")),
            "run": lambda: _launch(bench, *_accelctl("run", str(hello))),
        },
        turns=1,
    )
    peer = sides["python -c pass"]
    return [
        Comparison(
            f"accelctl {text}", "s", sides[name], peer, goals=[Goal(f"accelctl {text}, s", limit, sides[name].median)]
        )
        for name, text, limit in (("--help", "--help", _HELP_GOAL), ("run", "run hello.bin", _HELLO_GOAL))
    ]


def _accelctl(*arguments: str) -> tuple[str, ...]:
    """Return Python's arguments for ``accelctl``: the installed script where there is one, as people start it."""
    script = Path(sys.executable).with_name("accelctl")
    return (str(script) if script.exists() else "-m", *([] if script.exists() else ["accel"]), *arguments)


def _launch(bench: Bench, *arguments: str) -> Sample:
    data = bench.run_baseline("launch", sys.executable, *arguments)
    return Sample(data["seconds"], int(data["peak_kib"]))
