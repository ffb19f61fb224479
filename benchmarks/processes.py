"""Starting what is measured: baselines in C, compiled first, and workers of our own, each in a fresh process.

A fresh process for each sample, so that no side inherits another's memory, and so that lock validation is off
whatever the caller's environment says.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

ROOT = Path(__file__).resolve().parent.parent
_SOURCES = Path(__file__).resolve().parent / "baseline"
_TIMEOUT = 300


class BenchmarkError(Exception):
    """A benchmark could not run, or its sides do not agree; the message says which and why."""


@frozen
class Baselines:
    """The programs in ``baseline/``, compiled into `folder` when first used."""

    folder: Path
    compiler: str

    @classmethod
    def find_compiler(cls, folder: Path) -> Baselines:
        """Use the C compiler that ``CC`` names, or else ``gcc`` or ``cc``. Raises BenchmarkError without one."""
        for name in (os.environ.get("CC", ""), "gcc", "cc"):
            path = shutil.which(name) if name else None
            if path is not None:
                return cls(folder, path)
        raise BenchmarkError("no C compiler for the baselines: install gcc, or set CC")

    @property
    def version(self) -> str:
        """The first line that the compiler says of itself, and the level that it optimises at."""
        text = subprocess.run([self.compiler, "--version"], capture_output=True, text=True, check=True).stdout
        return f"{text.splitlines()[0]} -O2"

    def program(self, name: str) -> Path:
        """Return the compiled program `name`. Raises BenchmarkError."""
        target = self.folder / name
        if not target.exists():
            source = _SOURCES / f"{name}.c"
            command = [self.compiler, "-O2", "-Wall", "-pthread", "-o", str(target), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchmarkError(f"{source.name} does not compile:\n{done.stderr}")
        return target


def environment() -> dict[str, str]:
    """Return the environment for what is measured: this source tree first, and no lock validation."""
    result = dict(os.environ)
    result.pop("ACCEL_LOCKDEP", None)
    result["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [result.get("PYTHONPATH")])])
    return result


def run_json(command: Sequence[str]) -> dict[str, Any]:
    """Run a command that prints one line of JSON, and return it. Raises BenchmarkError."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment(), timeout=_TIMEOUT, cwd=ROOT
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{' '.join(command)} did not end within {_TIMEOUT} s") from error
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{done.stderr or done.stdout}")
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def run_worker(*arguments: str) -> dict[str, Any]:
    """Run a job of `benchmarks.worker` in a fresh Python, and return what it prints. Raises BenchmarkError."""
    return run_json([sys.executable, "-m", "benchmarks.worker", *arguments])
