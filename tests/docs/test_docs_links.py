"""Links between pages lead somewhere, every page can be reached, and paths that pages name exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_REPOSITORY_PATH = re.compile(r"(accel(_kvm|_mock|_hvf_stub)?|docs|tests|examples|benchmarks)/[\w./-]*[\w/]")


def test_docs_relative_links_and_anchors_exist(page, pages):
    problems = []
    for line, target in page.links():
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.path.parent / path).resolve() if path else page.path
        if not found.exists() or not found.is_relative_to(ROOT):
            problems.append(f"line {line}: {target} does not exist")
        elif anchor and anchor not in pages[found.relative_to(ROOT).as_posix()].anchors():
            problems.append(f"line {line}: {target} has no such heading")
    assert not problems, f"{page.name}:\n" + "\n".join(problems)


def test_docs_paths_in_code_spans_exist(page):
    problems = []
    for line, span in page.code_spans():
        if _REPOSITORY_PATH.fullmatch(span) and not (ROOT / span).exists():
            problems.append(f"line {line}: {span}")
    assert not problems, f"{page.name} names what is not there:\n" + "\n".join(problems)


def test_docs_every_page_is_reached_from_the_readme(pages):
    reached, pending = set(), ["README.md"]
    while pending:
        name = pending.pop()
        if name in reached or name not in pages:
            continue
        reached.add(name)
        for _, target in pages[name].links():
            path = (pages[name].path.parent / target.partition("#")[0]).resolve()
            if path.is_relative_to(ROOT):
                pending.append(path.relative_to(ROOT).as_posix())
    assert not set(pages) - reached


def test_docs_map_lists_every_page_of_docs(pages):
    index = pages["docs/index.md"]
    listed = {(index.path.parent / target.partition("#")[0]).resolve() for _, target in index.links()}
    wanted = {page.path for name, page in pages.items() if name.startswith("docs/")} - {index.path}
    assert sorted(path.name for path in wanted - listed) == []


def test_docs_pages_that_the_code_names_exist():
    problems = []
    for folder in ("accel", "accel_kvm", "accel_mock", "accel_hvf_stub"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name in re.findall(r"docs/[\w./-]+\.md", path.read_text(encoding="utf-8")):
                if not (ROOT / name).exists():
                    problems.append(f"{path.relative_to(ROOT)}: {name}")
    assert not problems


def test_docs_pages_have_one_title_at_the_top(page):
    titles = [line for _, line in page.prose if line.startswith("# ")]
    assert len(titles) == 1
    assert page.text.startswith(titles[0])


def test_docs_anchors_are_made_from_headings_as_viewers_do(tmp_path, pages):
    assert "what-is-kept-per-gate" not in pages["README.md"].anchors()
    kind = type(pages["README.md"])
    page = kind(tmp_path, prose=[(1, "# A `Vm`, and more"), (2, "## Same"), (3, "## Same"), (4, "### [In](b.md) it")])
    assert page.anchors() == {"a-vm-and-more", "same", "same-1", "in-it"}
