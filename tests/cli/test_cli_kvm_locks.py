"""accelctl kvm-locks, a command of a plugin: the kernel's table, and scenarios that are there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable

from accel.testing.explore.catalogue import all_scenarios
from accel_mock.kvm.lock_table import LOCKS, ORDERS

Accelctl = Callable[..., subprocess.CompletedProcess[bytes]]


def rows(lines: list[str]) -> list[list[str]]:
    return [re.split(r" {3,}", line.strip()) for line in lines]


def test_kvm_locks_prints_a_line_for_each_lock_and_each_order(accelctl: Accelctl) -> None:
    done = accelctl("kvm-locks")
    assert (done.returncode, done.stderr) == (0, b"")
    locks, orders, how = done.stdout.decode().split("\n\n")
    assert rows(locks.splitlines()) == [
        ["lock", "type", "arch", "protects", "comment"],
        *(
            [text for text in (it.name, it.type, one.arch, it.protects, it.comment) if text]
            for one in LOCKS
            for it in (one.lock_class,)
        ),
    ]
    assert rows(orders.splitlines()) == [
        ["order", "arch", "broken by"],
        *([one.name, one.arch, one.broken_by] for one in ORDERS),
    ]
    assert "accelctl explore" in how


def test_kvm_locks_json_names_scenarios_that_there_are(accelctl: Accelctl) -> None:
    data = json.loads(accelctl("kvm-locks", "--json").stdout)
    assert list(data) == ["format", "locks", "orders"]
    assert [list(one) for one in data["locks"]] == [["name", "type", "protects", "comment", "arch", "described"]] * len(
        LOCKS
    )
    assert [one["name"] for one in data["locks"]] == [one.name for one in LOCKS]
    known, _ = all_scenarios()
    for shown, one in zip(data["orders"], ORDERS, strict=True):
        assert list(shown) == ["outer", "rule", "inner", "arch", "kept_by", "broken_by"]
        assert (shown["outer"], shown["rule"], shown["inner"]) == (one.outer.name, one.rule.value, one.inner.name)
        assert not known[shown["kept_by"]].wrong
        assert known[shown["broken_by"]].wrong


def test_kvm_locks_is_listed_and_goes_with_its_plugin(accelctl: Accelctl) -> None:
    assert b"kvm-locks" in accelctl("--help").stdout
    assert b"kvm-locks" not in accelctl("-p", "no:mock", "--help").stdout
    done = accelctl("-p", "no:mock", "kvm-locks")
    assert done.returncode == 2
    assert b"No such command 'kvm-locks'" in done.stderr


def test_kvm_locks_refuses_arguments(accelctl: Accelctl) -> None:
    done = accelctl("kvm-locks", "kvm_lock")
    assert done.returncode == 2
    assert b"kvm_lock" in done.stderr
    assert b"Traceback" not in done.stderr


def test_kvm_locks_being_listed_imports_neither_the_model_nor_what_prints() -> None:
    program = (
        "import sys; from accel.cli.app import run; run(['--help']); "
        "print([name for name in sys.modules if name.startswith(('accel_mock.kvm', 'rich'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
