"""What the comparison of the mock with real KVM covered, for the summary."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

#: Lines that tests of this folder have for the summary.
REPORT = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[REPORT]:
        terminalreporter.write_line(line)


@pytest.fixture
def report(pytestconfig: pytest.Config) -> list[str]:
    """Take lines for the summary."""
    return pytestconfig.stash[REPORT]
