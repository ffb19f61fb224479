"""Running accelctl as people do: as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Accelctl = Callable[..., "subprocess.CompletedProcess[bytes]"]

_LONGEST_S = 100


@pytest.fixture
def accelctl(tmp_path: Path) -> Accelctl:
    """Run accelctl in a fresh folder: `accelctl("run", "x.bin", stdin=b"…", env={…})`."""

    def run(
        *arguments: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "accel", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            cwd=cwd or tmp_path,
            env={**os.environ, **(env or {})},
            timeout=_LONGEST_S,
            check=False,
        )

    return run


@pytest.fixture
def accelctl_after(tmp_path: Path) -> Accelctl:
    """Run accelctl after some Python code in the same process, for what cannot be had from outside."""

    def run(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        script = f"import sys\n{code}\nfrom accel.cli import main\nsys.exit(main({[str(one) for one in arguments]!r}))"
        return subprocess.run(
            [sys.executable, "-c", script],
            input=b"",
            capture_output=True,
            cwd=tmp_path,
            timeout=_LONGEST_S,
            check=False,
        )

    return run
