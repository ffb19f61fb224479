"""The page about traces describes each event with its fields, as they are."""

from __future__ import annotations

import re
from pathlib import Path

import accel

from .test_trace_events import COMMON, SCHEMA

PAGE = Path(accel.__file__).parent.parent / "docs" / "how-to" / "trace-memory.md"


def test_trace_page_has_each_event_with_its_fields() -> None:
    text = PAGE.read_text(encoding="utf-8")
    common, events = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = [[re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:3]] for line in events.splitlines()[2:]]
    assert {event[0]: fields for event, fields in rows} == {event: list(fields) for event, fields in SCHEMA.items()}
    assert [re.findall(r"`(\w+)`", line)[0] for line in common.splitlines()[2:]] == COMMON
