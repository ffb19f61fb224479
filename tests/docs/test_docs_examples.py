"""Every example in the documentation runs, and prints what the page says; `conftest` has the conventions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_OURS = re.compile(r"(accelctl|python -m accel|python \w+\.py|export|unset)\b")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NOT_ZERO = r"(?!0+(?:\.0+)?(?![\d.]))\d+(?:[.,]\d+)*"


def steps_of(page: Any) -> list[dict[str, Any]]:
    """Return what to run on a page, in order, each with what it is expected to print and to exit with."""
    steps: list[dict[str, Any]] = []
    for block in page.blocks:
        common = {"page": page.name, "line": block.line, "expected": None, "vary": block.numbers_vary, "code": 0}
        if block.skipped:
            continue
        if block.file:
            steps.append(common | {"kind": "file", "name": block.file, "text": block.text})
        elif block.edited:
            steps.append(common | {"kind": "edit", "name": block.edited, "text": block.text})
        elif block.is_output:
            assert [one["kind"] for one in steps[-1:]] == ["python"], (
                f"{page.name}:{block.line}: no Python stands before it"
            )
            steps[-1] |= {"expected": block.text, "vary": block.numbers_vary}
        elif block.language == "python":
            steps.append(common | {"kind": "python", "text": block.text})
        elif block.language == "console":
            commands = [common | {"kind": "command"} | one for one in commands_of(block.text)]
            if commands:
                commands[-1]["code"] = block.exit_code
            steps += [one for one in commands if _OURS.match(one["text"])]
    return steps


def commands_of(text: str) -> list[dict[str, Any]]:
    """Return the commands of a console block, continued lines joined, with what stands below each."""
    commands: list[dict[str, Any]] = []
    continues = False
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append({"text": line[2:], "expected": None})
        elif continues:
            commands[-1]["text"] = commands[-1]["text"][:-1] + line.removeprefix(">").strip()
        elif commands:
            commands[-1]["expected"] = (commands[-1]["expected"] or "") + line + "\n"
        continues = commands[-1]["text"].endswith("\\") if commands and commands[-1]["expected"] is None else False
    return commands


def matches(expected: str, found: str, *, vary: bool) -> bool:
    """Return whether `found` is what a page shows, apart from space at the ends of lines."""
    shown, real = ("\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (expected, found))
    pattern = ""
    for piece in re.split(r"(\.\.\.)", shown):
        if piece == "...":
            pattern += ".*?"
        elif vary:
            at = 0
            for number in _NUMBER.finditer(piece):
                pattern += _loose(piece[at : number.start()])
                if "." in number[0]:
                    pattern += _NUMBER.pattern  # measured, and on a fast host it may be rounded down to zero
                else:
                    pattern += _NOT_ZERO if number[0].strip("0,") else re.escape(number[0])
                at = number.end()
            pattern += _loose(piece[at:])
        else:
            pattern += re.escape(piece)
    return re.fullmatch(pattern, real, re.DOTALL) is not None


def _loose(text: str) -> str:
    """Return a pattern for `text` in which columns may be wider or narrower, as numbers are."""
    return re.sub(r"(\\ )+", " +", re.escape(text))


@pytest.mark.timeout(400)  # only what hangs takes so long
def test_docs_page_runs_and_prints_what_it_shows(run_page, tmp_path):
    steps = steps_of(run_page)
    folder = tmp_path / "folder"
    folder.mkdir()
    # A copy, so that no example can change what others read.
    shutil.copytree(ROOT / "examples", folder / "examples")
    steps_path, results_path = tmp_path / "steps.json", tmp_path / "results.json"
    steps_path.write_text(json.dumps(steps), encoding="utf-8")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    done = subprocess.run(
        [sys.executable, "-W", "error", Path(__file__).with_name("run_page.py"), steps_path, results_path],
        check=False,
        cwd=folder,
        # No bytecode: of a file that is changed twice in a second, Python might take the old one.
        env=os.environ | {"PATH": path, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{run_page.name} does not run:\n{done.stderr}"
    results = json.loads(results_path.read_text(encoding="utf-8"))
    problems = []
    for step, result in zip(steps, results, strict=True):
        if step["kind"] in ("file", "edit"):
            continue
        where = f"{run_page.name}:{step['line']}: {step['text'].splitlines()[0]}"
        if result["code"] != step["code"]:
            problems.append(f"{where}\nexits with {result['code']}:\n{result['output']}")
        elif step["expected"] is not None and not matches(step["expected"], result["output"], vary=step["vary"]):
            problems.append(f"{where}\nprints\n{result['output']}\nwhich is not\n{step['expected']}")
    assert not problems, "\n".join(problems)


def test_docs_blocks_that_are_not_run_say_why(page):
    for block in page.blocks:
        if block.comment.startswith("not run"):
            reason = block.comment.removeprefix("not run").lstrip(": ")
            assert len(reason.split()) >= 3, f"{page.name}:{block.line}: say why it is not run"


def test_docs_comments_before_blocks_are_ones_that_mean_something(page):
    known = re.compile(
        r"|output(, numbers vary)?|numbers vary|(file|edit): \S+|(numbers vary, )?exit code: \d+|not run: .+"
    )
    for block in page.blocks:
        assert known.fullmatch(block.comment), f"{page.name}:{block.line}: what is '{block.comment}'?"


def test_docs_blocks_have_a_language(page):
    for block in page.blocks:
        assert block.language or page.name.startswith("examples/"), f"{page.name}:{block.line} has no language"


@pytest.mark.parametrize(
    ("expected", "found", "vary", "same"),
    [
        ("a\nb\n", "a  \nb", False, True),
        ("a\n...\nd\n", "a\nb\nc\nd\n", False, True),
        ("a ... d\n", "a b d\n", False, True),
        ("a\n", "a\nb\n", False, False),
        ("7 faults", "8 faults", False, False),
        ("7 faults", "8,123 faults", True, True),
        ("7 faults", "0 faults", True, False),
        ("7 faults", "0.0 faults", True, False),
        ("0.5 s", "0.75 s", True, True),
        ("0.001 s", "0.000 s", True, True),
        ("0.1 s", "-1 s", True, False),
        ("0 faults", "0 faults", True, True),
        ("0 faults", "8 faults", True, False),
        ("10.5 s", "9 s", True, True),
        ("seven", "eight", True, False),
        ("held   1,500  0", "held  99   0", True, True),
        ("held   7", "held  7", False, False),
    ],
)
def test_docs_matching_takes_what_is_shown_and_nothing_else(expected, found, vary, same):
    assert matches(expected, found, vary=vary) is same


def test_docs_commands_of_a_console_block_are_told_from_what_they_print():
    text = "$ make demo\n$ accelctl run a \\\n    --json\none\n\ntwo\n$ accelctl list  # all\n"
    assert commands_of(text) == [
        {"text": "make demo", "expected": None},
        {"text": "accelctl run a --json", "expected": "one\n\ntwo\n"},
        {"text": "accelctl list  # all", "expected": None},
    ]
