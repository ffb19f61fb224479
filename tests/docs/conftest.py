"""The documentation as data: its pages, their code blocks, links and tables.

What a code block is for stands in its language and in an HTML comment right before it:

==================================  ========================================================================
``python``                          run; the blocks of a page share one namespace and one fresh folder
``console``                         each line ``$ accelctl …``, ``$ python -m accel… …`` or ``$ python FILE.py``
                                    is run and must exit with 0; lines below it, if there are any, are what it
                                    prints; ``$ export …`` and ``$ unset …`` hold for what follows
``<!-- output -->``                 the block is what the block of Python before it prints
``<!-- file: NAME -->``             the block is written to NAME in the folder, and not run
``<!-- exit code: N -->``           the last command of the block exits with N
``<!-- edit: NAME -->``             the block is written into NAME, which the page has begun; see `edit_page`
``<!-- not run: REASON -->``        the block is not run
``<!-- …, numbers vary -->``        a number other than 0 in what is printed stands for any other than 0, and one
                                    with a decimal point, which is measured, for any
==================================  ========================================================================

In what is printed, ``...`` stands for anything. A page that asks for the accelerator kvm, and no other beside it, needs
KVM. ``<!-- needs: PATH -->`` anywhere on a page says that it is only run where there is such a file.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attrs import Factory, define, frozen

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)(`{3,})([\w-]*)\s*$")
_COMMENT = re.compile(r"^ *<!-- *(.*?) *-->$")
_LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_CODE_SPAN = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)")
_HEADING = re.compile(r"^#{1,6} +(.*?) *#*$")


@frozen
class Block:
    """A fenced code block.

    Attributes:
        line: The number of its first line of text.
        comment: What the HTML comment right before it says, or an empty string.
    """

    line: int
    language: str
    comment: str
    text: str

    @property
    def skipped(self) -> bool:
        """Whether a comment says that it is not run."""
        return self.comment.startswith("not run")

    @property
    def file(self) -> str:
        """The file that it is written to, or an empty string."""
        return self.comment.removeprefix("file:").strip() if self.comment.startswith("file:") else ""

    @property
    def edited(self) -> str:
        """The file that it is written into, or an empty string."""
        return self.comment.removeprefix("edit:").strip() if self.comment.startswith("edit:") else ""

    @property
    def is_output(self) -> bool:
        """Whether it is what the block before it prints."""
        return self.comment.split(",")[0] == "output"

    @property
    def numbers_vary(self) -> bool:
        """Whether numbers in what is printed may differ."""
        return "numbers vary" in self.comment

    @property
    def exit_code(self) -> int:
        """What its last command exits with."""
        found = re.search(r"exit code: (\d+)", self.comment)
        return int(found[1]) if found else 0


@define(eq=False)
class Page:
    """One Markdown file.

    Attributes:
        path: Where it is.
        prose: Its lines outside of code blocks, by number.
    """

    path: Path
    blocks: list[Block] = Factory(list)
    prose: list[tuple[int, str]] = Factory(list)

    @property
    def name(self) -> str:
        """Its path from the root of the project."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text(encoding="utf-8")

    @property
    def is_run(self) -> bool:
        """Whether something on it is run."""
        return any(block.language in ("python", "console") and not block.skipped for block in self.blocks)

    @property
    def needs_kvm(self) -> bool:
        """Whether what is run on it asks for KVM, or runs a guest where the default is KVM."""
        code = (block.text for block in self.blocks if block.language in ("python", "console") and not block.skipped)
        # Workload files that say which accelerators they are for.
        decided = [re.escape(block.file) for block in self.blocks if "accelerators = [" in block.text and block.file]
        other = "|".join(("mock", "--dry-run", *decided))
        asks = re.compile(
            rf"\(\s*[\"']kvm[\"']|^\$ accelctl run (?!.*(?:{other}))|^\$ accelctl .*--accel kvm\b", re.MULTILINE
        )
        return any(asks.search(text) for text in code)

    @property
    def needs(self) -> list[str]:
        """Files of the system that it needs."""
        return re.findall(r"^<!-- needs: (\S+) -->$", self.text, re.MULTILINE)

    def links(self) -> list[tuple[int, str]]:
        """Return `(line, target)` of each link."""
        return [(number, found[1]) for number, line in self.prose for found in _LINK.finditer(_no_code(line))]

    def code_spans(self) -> list[tuple[int, str]]:
        """Return `(line, text)` of each piece of inline code."""
        return [(number, found[2].strip()) for number, line in self.prose for found in _CODE_SPAN.finditer(line)]

    def anchors(self) -> set[str]:
        """Return the anchors of its headings, as the usual viewers make them."""
        seen: dict[str, int] = {}
        anchors = set()
        for _, line in self.prose:
            found = _HEADING.match(line)
            if found is None:
                continue
            shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", found[1]).replace("`", "")
            slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
            count = seen.get(slug, 0)
            seen[slug] = count + 1
            anchors.add(f"{slug}-{count}" if count else slug)
        return anchors

    def section(self, heading: str) -> str:
        """Return the text under a heading, up to the next one of its level or a higher one."""
        found = re.search(rf"^(#+) {re.escape(heading)}$", self.text, re.MULTILINE)
        assert found, f"{self.name} has no heading '{heading}'"
        rest = self.text[found.end() :]
        following = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
        return rest[: following.start()] if following else rest


def _no_code(line: str) -> str:
    return _CODE_SPAN.sub(lambda found: " " * len(found[0]), line)


def read_page(path: Path) -> Page:
    """Take a Markdown file apart."""
    page = Page(path)
    comment = ""
    open_fence: tuple[str, str, str, int] | None = None
    body: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if open_fence is not None:
            indent, ticks, language, start = open_fence
            if line.strip() == ticks:
                text = "".join(f"{one.removeprefix(indent)}\n" for one in body)
                page.blocks.append(Block(start, language, comment, text))
                open_fence, comment = None, ""
            else:
                body.append(line)
            continue
        fence = _FENCE.match(line)
        if fence:
            open_fence, body = (fence[1], fence[2], fence[3], number + 1), []
            continue
        found = _COMMENT.match(line)
        comment = found[1] if found else ""
        page.prose.append((number, line))
    assert open_fence is None, f"{path}: the code block at line {open_fence} does not end"
    return page


def all_pages() -> list[Page]:
    """Return every page that people read, as they are now."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    paths += sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "examples").rglob("*.md"))
    return [read_page(path) for path in paths]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests with a `page` each page, and tests with a `run_page` each page of which something is run."""
    pages = all_pages()
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", pages, ids=[page.name for page in pages])
    if "run_page" in metafunc.fixturenames:
        shown = [page for page in pages if page.is_run]
        metafunc.parametrize("run_page", [pytest.param(page, marks=_marks(page), id=page.name) for page in shown])


def _marks(page: Page) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.needs(*page.needs)] if page.needs else []
    return [*marks, pytest.mark.kvm] if page.needs_kvm else marks


@pytest.fixture
def pages() -> dict[str, Page]:
    """Every page by its path from the root."""
    return {page.name: page for page in all_pages()}


@pytest.fixture
def reference(pages: dict[str, Page]) -> dict[str, Page]:
    """The pages of docs/reference by their names without ending."""
    return {page.path.stem: page for name, page in pages.items() if name.startswith("docs/reference/")}
