"""accelctl explore: lists scenarios, finds what is wrong and says so, repeats a schedule; bad input is one line."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable

Accelctl = Callable[..., subprocess.CompletedProcess[bytes]]

WRONG, RIGHT = "mock/srcu-wrong-no-synchronize", "mock/srcu"


def test_explore_lists_scenarios_of_the_core_and_of_plugins(accelctl: Accelctl) -> None:
    done = accelctl("explore")
    assert (done.returncode, done.stderr) == (0, b"")
    names = {line.split()[0] for line in done.stdout.decode().splitlines() if line.strip()}
    assert {"inhibit", "kvm-replace", RIGHT, WRONG} <= names


def test_explore_wildcards_choose_and_json_says_what_each_is(accelctl: Accelctl) -> None:
    listed = json.loads(accelctl("explore", "--list", "--json", "mock/srcu*").stdout)["scenarios"]
    assert {one["name"]: one["wrong"] for one in listed}[RIGHT] is None
    assert {one["name"]: one["wrong"] for one in listed}[WRONG] == "invariant"
    assert all(one["name"].startswith("mock/srcu") and one["summary"] for one in listed)


def test_explore_of_one_that_holds_says_that_all_was_explored(accelctl: Accelctl) -> None:
    done = accelctl("explore", RIGHT)
    assert done.returncode == 0
    assert re.search(rf"^{RIGHT}: holds\n  \d+ schedules up to 2 preemptions, all of them", done.stdout.decode())


def test_explore_finds_the_mistake_and_repeats_it(accelctl: Accelctl) -> None:
    done = accelctl("explore", WRONG)
    text = done.stdout.decode()
    assert done.returncode == 0
    assert text.startswith(f"{WRONG}: found, as it should be\n")
    outcome = re.search(r"=>  (invariant: .*)", text)
    schedule = re.search(r"--replay '(.*)'", text)
    assert outcome is not None
    assert schedule is not None
    again = accelctl("explore", WRONG, "--replay", schedule[1])
    assert again.returncode == 0
    assert outcome[0] in again.stdout.decode()
    picture = accelctl("explore", WRONG, "--replay", schedule[1], "--picture").stdout.decode()
    assert picture.startswith("+--")
    assert picture.endswith(outcome[1] + "\n")
    steps = json.loads(accelctl("explore", WRONG, "--replay", schedule[1], "--json").stdout)
    assert (steps["scenario"], steps["outcome"]) == (WRONG, outcome[1])
    assert len(steps["steps"]) > 3


def test_explore_with_too_small_a_bound_does_not_find_it_and_fails(accelctl: Accelctl) -> None:
    done = accelctl("explore", WRONG, "--bound", "0", "--json")
    assert done.returncode == 1
    (explored,) = json.loads(done.stdout)["explored"]
    assert (explored["as_expected"], explored["violation"], explored["exhaustive"]) == (False, None, True)


def test_explore_gives_up_where_it_is_told_to(accelctl: Accelctl) -> None:
    (explored,) = json.loads(accelctl("explore", RIGHT, "--most", "3", "--json").stdout)["explored"]
    assert explored["schedules"] + explored["cut_off"] == 3
    assert not explored["exhaustive"]


def test_explore_at_random_repeats_with_its_seed(accelctl: Accelctl) -> None:
    found = [accelctl("explore", WRONG, "--random", "7", "--executions", "300").stdout for _ in range(2)]
    assert found[0] == found[1]
    assert b"at random" in found[0]


def test_explore_of_nothing_known_names_what_is_close(accelctl: Accelctl) -> None:
    done = accelctl("explore", "mock/scru")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"there is no scenario 'mock/scru'; close to it: mock/srcu" in done.stderr


def test_explore_refuses_what_is_no_schedule_or_none_of_this_scenario(accelctl: Accelctl) -> None:
    done = accelctl("explore", RIGHT, "--replay", "A@1 nonsense")
    assert done.returncode == 2
    assert b"'nonsense' is no part of one" in done.stderr
    done = accelctl("explore", RIGHT, "--replay", "Z@1")
    assert done.returncode == 2
    assert b"that task cannot go on there" in done.stderr
    done = accelctl("explore", "mock/srcu*", "--replay", "A.")
    assert done.returncode == 2
    assert b"--replay repeats a schedule of one scenario" in done.stderr
