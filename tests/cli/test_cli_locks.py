"""accelctl locks: the order and the table, from the classes themselves."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable

from accel.lock_classes import LOCK_CLASSES

Accelctl = Callable[..., subprocess.CompletedProcess[bytes]]


def test_locks_prints_the_order_and_a_line_for_each_lock(accelctl: Accelctl) -> None:
    done = accelctl("locks")
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, done.stderr) == (0, b"")
    assert lines[0] == "order, outermost first: " + " → ".join(one.name for one in LOCK_CLASSES)
    rows = [re.split(r" {3,}", line.strip()) for line in lines[2:]]
    assert rows[0] == ["lock", "rank", "type", "protects", "comment"]
    assert rows[1 : 1 + len(LOCK_CLASSES)] == [
        [one.name, str(one.rank), one.type, one.protects, one.comment] for one in LOCK_CLASSES
    ]
    assert lines[-1].startswith("Locks without a class")


def test_locks_json_has_every_class_in_order(accelctl: Accelctl) -> None:
    data = json.loads(accelctl("locks", "--json").stdout)
    assert list(data) == ["format", "order", "locks", "plain_locks"]
    assert data["order"] == [one["name"] for one in data["locks"]] == [one.name for one in LOCK_CLASSES]
    for shown, one in zip(data["locks"], LOCK_CLASSES, strict=True):
        assert shown == {field: getattr(one, field) for field in shown}
        assert list(shown) == ["name", "rank", "type", "protects", "comment", "nests"]


def test_locks_refuses_arguments(accelctl: Accelctl) -> None:
    done = accelctl("locks", "big_lock")
    assert done.returncode == 2
    assert b"big_lock" in done.stderr
    assert b"Traceback" not in done.stderr
