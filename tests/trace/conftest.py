"""Reading a trace: its lines as plain data, and the map that they say is in force, rebuilt from them alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

# `trace_replay` lies beside this file.
sys.path.append(str(Path(__file__).parent))

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a trace; each is one JSON object."""
    text = path.read_text(encoding="ascii")
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Switch the trace on; the file that it goes to."""
    path = tmp_path / "trace.jsonl"
    monkeypatch.setenv("ACCEL_TRACE", str(path))
    return path
