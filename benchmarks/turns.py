"""Processes that stay and take turns: for what takes longer to set up than to measure.

The parent writes a line ``SIDE COUNT`` and the process does that COUNT times and answers with one line of JSON:
``costs``, one number for each repetition that was timed by itself, or one mean for all of them; ``done``, how often it
was done; and ``peak_kib``. It says ``{}`` once it is ready, and ends when it is asked nothing more.
`benchmarks.worker` is such a process, and so is ``baseline/slots.c``.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from statistics import median
from types import TracebackType
from typing import Any

from benchmarks.processes import ROOT, BenchmarkError, environment
from benchmarks.samples import Sample, percentile

_TIMEOUT = 120


class TurnProcess(AbstractContextManager["TurnProcess"]):
    """One of them; a context manager that waits for its end, which says whether all of its work was right.

    Args:
        command: What to run.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._name = " ".join(command)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment(),
            cwd=ROOT,
        )

    def wait_ready(self) -> None:
        """Wait until it is set up. Raises BenchmarkError."""
        self._answer()

    def turn(self, side: str, count: int) -> dict[str, Any]:
        """Let it do `side` `count` times, and return what it says. Raises BenchmarkError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{side} {count}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("ended") from None
        return self._answer()

    def close(self) -> None:
        """Let it check its work and end. Raises BenchmarkError."""
        try:
            self._process.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise self._failed(f"did not end within {_TIMEOUT} s") from None
        if self._process.returncode:
            raise self._failed("failed")
        self._errors.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _TIMEOUT)[0]:
            raise self._failed(f"did not answer within {_TIMEOUT} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._failed("ended")
        data: dict[str, Any] = json.loads(line)
        return data

    def _failed(self, how: str) -> BenchmarkError:
        self._process.kill()
        self._process.communicate()
        self._errors.seek(0)
        return BenchmarkError(f"{self._name} {how}:\n{self._errors.read()}")


def python_job(*arguments: str) -> list[str]:
    """Return the command of a job of `benchmarks.worker` that takes turns."""
    return [sys.executable, "-m", "benchmarks.worker", "turns", *arguments]


def start(stack: ExitStack, commands: Mapping[str, Sequence[str]]) -> dict[str, TurnProcess]:
    """Start all `commands` at once, and return them by name when all are ready, so that no set-up disturbs a turn."""
    started: dict[str, TurnProcess] = {}
    for name, command in commands.items():
        started[name] = stack.enter_context(TurnProcess(command))
    for process in started.values():
        process.wait_ready()
    return started


class TurnSide:
    """One side of a comparison: `side` of `process`, `count` times a turn; its cost is the middle of a turn.

    Args:
        process: Who does it.
        side: What.
        count: How often in a turn.
        factor: From the process's unit, mostly seconds, to the comparison's unit.

    Attributes:
        costs: Of every repetition that was timed by itself, in the comparison's unit.
    """

    def __init__(self, process: TurnProcess, side: str, count: int, factor: float = 1e6) -> None:
        self.costs: list[float] = []
        self._process = process
        self._side = side
        self._count = count
        self._factor = factor

    def __call__(self) -> Sample:
        """Take a turn."""
        data = self._process.turn(self._side, self._count)
        costs = [cost * self._factor for cost in data["costs"]]
        self.costs += costs
        return Sample(median(costs), int(data["peak_kib"]), {"done": int(data["done"])})

    def percentile(self, percent: float) -> float:
        """Return the cost that `percent` of the repetitions do not exceed."""
        return percentile(self.costs, percent)
