"""Runs the suite on one accelerator in processes of its own, and collects what they tell.

An accelerator is foreign code, often native: it may crash the process, spin for ever or hold the interpreter's lock. So
the tests run in a child. If that dies, the test that ran is a failure that says how, and a new child runs the rest.

Layer: needs pytest installed, and imports nothing of it. `recorder` is the other end.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accel.errors import NoAcceleratorError, StateError, UsageError
from accel.options import nearest
from accel.plugins import find_accelerator, probe
from accel.testing.conformance.report import ConformanceReport, TestResult

_FOLDER = Path(__file__).parent
_TIMED_OUT = "Timeout ("
#: Bytes of what a child said that are kept.
_LAST_WORDS = 8000

#: After so many seconds, and a few times the longest wait, a test hangs in a way that no deadline of its own can end.
HANG_SECONDS = 30.0
#: After so many tests that ended the process or left a thread behind in it, the rest is not tried.
MOST_DEATHS = 25
#: What all others build on runs before them: where it fails, they do too.
_FIRST = ("lifecycle", "exits", "kicks", "memory")

#: Told how many tests are done, how many there are, and which group runs.
Progress = Callable[[int, int, str], None]


def groups() -> dict[str, str]:
    """Return the groups of tests by name, with a line about each."""
    texts = {path.stem.removeprefix("test_"): path.read_text(encoding="utf-8") for path in _FOLDER.glob("test_*.py")}
    lines = {name: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0] for name, text in texts.items()}
    return {name: lines[name] for name in sorted(lines, key=lambda name: (_rank(name), name))}


def _rank(group: str) -> int:
    return _FIRST.index(group) if group in _FIRST else len(_FIRST)


def run(
    accelerator: str, chosen: Sequence[str] = (), *, patience: float = 10.0, progress: Progress | None = None
) -> ConformanceReport:
    """Run the groups that are chosen, or all, on an accelerator.

    Args:
        accelerator: Its name.
        chosen: Names of groups; none for all.
        patience: Longest wait for what a guest or the accelerator is to do, in seconds.
        progress: Called for each test that begins.

    Raises:
        UsageError: There is no such accelerator or group.
        NoAcceleratorError: It cannot be used here.
        StateError: The tests could not be run at all.
    """
    known = groups()
    for name in chosen:
        if name not in known:
            raise UsageError(f"no group '{name}' of tests; {nearest(name, known)}")
    available = probe(find_accelerator(accelerator))
    if not available.ok:
        raise NoAcceleratorError({accelerator: available.reason}, "its conformance can be tested where it can be used")
    return _Session(accelerator, tuple(chosen or known), patience, progress).run()


class _Session:
    def __init__(self, accelerator: str, chosen: Sequence[str], patience: float, progress: Progress | None) -> None:
        self._accelerator = accelerator
        self._files = [str(_FOLDER / f"test_{name}.py") for name in chosen]
        self._patience = patience
        # A test waits for a few things, one after the other.
        self._limit = HANG_SECONDS + 4 * patience
        self._progress = progress
        self._tests: dict[str, dict[str, str]] = {}
        self._results: dict[str, TestResult] = {}

    def run(self) -> ConformanceReport:
        for _ in range(MOST_DEATHS):
            before = len(self._results)
            self._run_child()
            if self._tests and len(self._results) == len(self._tests):
                break
            if len(self._results) == before:
                raise StateError("the tests stopped without a word of which one")
        for name in self._tests.keys() - self._results.keys():
            text = f"was not tried: {MOST_DEATHS} tests before had ended their process, or left a thread behind in it"
            self._results[name] = self._result(name, "failed", text, "")
        results = (self._results[name] for name in self._tests)
        return ConformanceReport.of(self._accelerator, results)

    def _run_child(self) -> None:
        """Run what is left in one child, until that ends."""
        reading, writing = os.pipe()
        with tempfile.TemporaryFile() as words, os.fdopen(reading, encoding="utf-8") as events:
            try:
                child = subprocess.Popen(
                    self._command(writing),
                    stdin=subprocess.DEVNULL,
                    stdout=words,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                    pass_fds=(writing,),
                )
            finally:
                os.close(writing)
            try:
                # Of one that dies while it writes, the last line has no end.
                running = self._listen(json.loads(line) for line in events if line.endswith("\n"))
                code = child.wait()
            finally:
                child.kill()
                child.wait()
            words.seek(max(0, words.seek(0, os.SEEK_END) - _LAST_WORDS))
            said = words.read().decode(errors="replace")
        if running is not None:
            self._results[running] = self._result(running, "failed", _death(code, said, self._limit), said)
        elif not self._tests:
            raise StateError(f"the tests could not be collected:\n{said.strip()}")

    def _listen(self, events: Iterator[dict[str, Any]]) -> str | None:
        """Note what a child tells; return the test that it was in when it fell silent."""
        running: str | None = None
        for event in events:
            match event:
                case {"tests": list(tests)}:
                    self._tests = self._tests or {one["id"]: one for one in tests}
                case {"start": str(name)}:
                    running = name
                    if self._progress is not None:
                        self._progress(len(self._results), len(self._tests), self._tests[name]["group"])
                case {"end": str(name), "outcome": outcome, "text": text, "detail": detail, "seconds": seconds}:
                    self._results[name] = self._result(name, outcome, text, detail, seconds)
                    running = None
        return running

    def _result(self, name: str, outcome: Any, text: str, detail: str, seconds: float = 0.0) -> TestResult:
        about = self._tests[name]
        return TestResult(about["group"], about["name"], about["rule"], outcome, text, detail[-_LAST_WORDS:], seconds)

    def _command(self, descriptor: int) -> list[str]:
        # Not the settings of the folder that people happen to be in.
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-c", os.devnull]
        command += ["--rootdir", str(_FOLDER), "--confcutdir", str(_FOLDER), "--import-mode=importlib"]
        command += ["-p", "no:cacheprovider", "-p", "accel_pytest", "-p", f"{__package__}.recorder"]
        command += ["--accel", self._accelerator, "--accel-timeout", str(self._patience)]
        command += ["--accel-record", str(descriptor), "--accel-limit", str(self._limit)]
        return [*command, *(f"--deselect={name}" for name in self._results), *self._files]


def _environment() -> dict[str, str]:
    """Return the environment of a child: it finds the same modules and plugins, and no plugins of pytest."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    return environment


def _death(code: int, said: str, limit: float) -> str:
    """Return how a child ended that fell silent."""
    if _TIMED_OUT in said:
        return f"did not come back within {limit:g} s, and could only be stopped together with the process"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"crashed the process: {name}"
    return f"ended the process, with exit code {code}"
