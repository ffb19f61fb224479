"""The hooks page has each hook: its signature as in the source, all that is to be known of it, and an example.

That the examples print what they show is `test_docs_examples`.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from accel import hookspecs

HOOKS = {name: one for name, one in vars(hookspecs).items() if name.startswith("accel_")}
#: What is said of each, in this order.
LABELS = ["When", "Thread", "Locks", "How often", "If it raises", "Order"]
LAST = "When a plugin fails"


@pytest.fixture
def hooks_page(pages: dict[str, Any]) -> Any:
    return pages["docs/reference/hooks.md"]


def test_hooks_page_has_a_section_for_each_hook_in_the_order_of_the_source(hooks_page: Any) -> None:
    assert re.findall(r"^## (.+)$", hooks_page.text, re.MULTILINE) == [*HOOKS, LAST]


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_page_gives_the_signature_as_in_the_source(hooks_page: Any, name: str) -> None:
    wanted = f"`{name}{inspect.signature(HOOKS[name])}`".replace("'", "")
    assert hooks_page.section(name).split("\n\n")[1] == wanted


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_page_begins_with_what_the_docstring_says(hooks_page: Any, name: str) -> None:
    first = (inspect.getdoc(HOOKS[name]) or "").splitlines()[0]
    told = " ".join(hooks_page.section(name).split("\n\n")[2].split())
    assert told.startswith(first.rstrip("."))


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_page_says_when_where_how_often_and_what_a_failure_does(hooks_page: Any, name: str) -> None:
    assert re.findall(r"^- \*\*(.+):\*\* \S", hooks_page.section(name), re.MULTILINE) == LABELS


@pytest.mark.parametrize("name", [*HOOKS, LAST])
def test_hooks_page_shows_an_example_that_implements_the_hook_and_is_run(hooks_page: Any, name: str) -> None:
    section = hooks_page.section(name)
    first = hooks_page.text[: hooks_page.text.index(section)].count("\n") + 1
    blocks = [block for block in hooks_page.blocks if first <= block.line < first + section.count("\n")]
    implements = f"@accel.hookimpl\n{{}}def {name if name in HOOKS else 'accel_memory_listeners'}("
    assert any(implements.format(indent) in block.text for block in blocks for indent in ("", "    "))
    assert not [block for block in blocks if block.skipped]
    shows = [
        block for block in blocks if block.is_output or (block.language == "console" and "\n" in block.text.strip())
    ]
    assert shows, "what the example prints is shown, and so compared"
