"""The page 'From Unicorn': what it says of the Unicorn engine is run on it, and its table leaves nothing out.

`test_docs_examples` runs the page's other half on KVM, without Unicorn. Here the scripts for Unicorn run on it and
print what the page shows below the script for this library; that one runs on the accelerator ``unicorn`` as well.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUNNER = Path(__file__).with_name("run_page.py")
FOR_UNICORN = "not run: needs Unicorn, with which a test runs it"


@pytest.fixture
def blocks(pages: dict[str, Any]) -> list[Any]:
    """The page's blocks in order."""
    return pages["docs/how-to/from-unicorn.md"].blocks


def printed(scripts: list[tuple[int, str]], folder: Path) -> list[str]:
    """Run scripts, each with the line where it stands, one after the other in one process; return what each prints."""
    steps = [{"kind": "python", "page": "from-unicorn.md", "line": line, "text": text} for line, text in scripts]
    (folder / "steps.json").write_text(json.dumps(steps), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", RUNNER, "steps.json", "results.json"],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return [result["output"].strip() for result in results]


def without_numbers(text: str) -> str:
    return re.sub(r"\d+\.\d+", "N", text)


def test_from_unicorn_scripts_for_unicorn_print_what_the_page_shows(blocks, tmp_path):
    pytest.importorskip("unicorn")
    pairs = [(block, blocks[at + 2]) for at, block in enumerate(blocks) if block.comment == FOR_UNICORN]
    assert len(pairs) >= 3
    assert all(output.is_output for _, output in pairs)
    found = printed([(block.line, block.text) for block, _ in pairs], tmp_path)
    assert found == [output.text.strip() for _, output in pairs]


def test_from_unicorn_scripts_for_kvm_print_the_same_on_the_accelerator_unicorn(blocks, tmp_path):
    pytest.importorskip("accel_unicorn")
    scripts, expected = [], []
    for at, block in enumerate(blocks):
        # Dirty logs are what the page says this accelerator lacks.
        if block.language != "python" or block.skipped or "start_log" in block.text:
            continue
        assert '("kvm"' in block.text
        scripts.append((block.line, block.text.replace('("kvm"', '("unicorn"')))
        assert blocks[at + 1].is_output
        expected.append(without_numbers(blocks[at + 1].text.strip()))
    assert [without_numbers(one) for one in printed(scripts, tmp_path)] == expected


def test_from_unicorn_tables_name_every_method_and_hook_of_unicorn(pages):
    unicorn = pytest.importorskip("unicorn")
    from unicorn import unicorn_const
    from unicorn.unicorn_py3.arch.intel import UcIntel

    methods = {name for name, one in inspect.getmembers(UcIntel) if not name.startswith("_") and callable(one)}
    hooks = {name for name in vars(unicorn_const) if name.startswith("UC_HOOK_")}
    assert "mem_map" in methods
    assert "UC_HOOK_CODE" in hooks
    named = set(re.findall(r"\w+", pages["docs/how-to/from-unicorn.md"].section("What maps to what")))
    assert not (methods | hooks) - named - {"Arg"}, f"missing for Unicorn {unicorn.__version__}"
