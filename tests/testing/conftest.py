"""Processes that run the conformance suite as its users do, with a plugin full of mistakes beside them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Process = Callable[..., "subprocess.CompletedProcess[str]"]

#: The suite on one accelerator takes some 20 seconds, and many times that on a host that is busy with other things.
_LONGEST_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that run such processes, a few each, take as long."""
    for item in items:
        if item.path.parent == Path(__file__).parent and "python" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(_LONGEST_S + 60))


@pytest.fixture(scope="session")
def broken_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `broken_accelerators` as an installed distribution."""
    folder = tmp_path_factory.mktemp("installed")
    for name in ("broken_accelerators.py", "planted_faults.py"):
        shutil.copy(Path(__file__).with_name(name), folder)
    info = folder / "broken_accelerators-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-accelerators\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[accel]\nbroken = broken_accelerators\n")
    return folder


@pytest.fixture(scope="session")
def python(broken_plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Process:
    """Run Python with some arguments in a folder of its own: `python("-m", "accel", "list", cwd=…)`.

    pytest in it finds plugins by itself only with `autoload`, which takes seconds where many are installed.
    """
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(*arguments: str | Path, cwd: Path = elsewhere, autoload: bool = False) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, (str(broken_plugin), os.environ.get("PYTHONPATH", ""))))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        if not autoload:
            environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=cwd,
            env=environment | {"PYTHONPATH": path, "COLUMNS": "120"},
            timeout=_LONGEST_S,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def check(python: Process) -> Process:
    """Run `accelctl conformance`: `check("mock", "-k", "kicks")`."""
    return lambda *arguments, **options: python("-m", "accel", "conformance", *arguments, **options)
