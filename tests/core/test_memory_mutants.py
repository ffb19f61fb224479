"""That the checks of `memory_drive` notice when a rule of rendering, damage, splicing or telling is broken.

Each mutant is the shipped source with one rule broken by a replacement of text, in a copy of the package that a process
of its own imports. The copy without a change passes the same check.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import frozen

import accel

#: A host with more to do than cores takes ten times as long as a quiet one.
PATIENCE = 300
pytestmark = pytest.mark.timeout(2 * PATIENCE)

MEMORY = Path(accel.__file__).parent / "memory"
DRIVER = Path(__file__).with_name("memory_drive.py")
SEED = 7
STEPS = 6000


@frozen
class Mutant:
    """One broken rule: in `file`, `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = [
    # rendering
    Mutant(
        "ties to the earliest added", "children.py", "-child.priority, -child.serial", "-child.priority, child.serial"
    ),
    Mutant("lowest priority wins", "children.py", "-child.priority, -child.serial", "child.priority, -child.serial"),
    Mutant("sign of an alias's offset", "render.py", "base - region.target_offset", "base + region.target_offset"),
    Mutant(
        "a child is not clipped to its parent",
        "render.py",
        "self.paint(child, base + child.offset, start, end, flags, depth + 1)",
        "self.paint(child, base + child.offset, 0, 1 << 64, flags, depth + 1)",
    ),
    Mutant(
        "an alias is not clipped to its size",
        "render.py",
        "self.paint(region.target, base - region.target_offset, start, end, flags, depth + 1)",
        "self.paint(region.target, base - region.target_offset, 0, 1 << 64, flags, depth + 1)",
    ),
    Mutant("read-only is not inherited", "render.py", "flags[0] or region.readonly", "region.readonly"),
    Mutant("non-volatile is not inherited", "render.py", "flags[1] or region.nonvolatile", "region.nonvolatile"),
    Mutant("a hidden region shows", "render.py", "not region.enabled or start >= end", "start >= end"),
    Mutant(
        "a region with children shows nothing of its own",
        "render.py",
        "if region.kind is not RegionKind.CONTAINER:",
        "if region.kind is not RegionKind.CONTAINER and not region.children:",
    ),
    Mutant("covered in part counts as covered", "render.py", "range.end >= end", "range.end >= start + 1"),
    Mutant("all memory is logged, but not here", "render.py", "region.log_mask | self._log_mask", "region.log_mask"),
    # joining
    Mutant(
        "what must stay apart is joined",
        "splice.py",
        "        and not last.unmergeable\n        and not section.unmergeable\n",
        "",
    ),
    Mutant("joined whatever the log mask", "splice.py", "        and last.log_mask == section.log_mask\n", ""),
    Mutant(
        "joined whatever the offset", "splice.py", "        and last.offset + last.range.size == section.offset\n", ""
    ),
    Mutant("joined whether volatile or not", "splice.py", "        and last.nonvolatile == section.nonvolatile\n", ""),
    # damage
    Mutant(
        "a move damages the new place only",
        "region_tree.py",
        "            self._damage()\n            self._change(offset=at)\n",
        "            self._change(offset=at)\n",
    ),
    Mutant(
        "showing a region damages nothing",
        "region_tree.py",
        "            self._change(enabled=enabled)\n            self._damage()\n",
        "            self._change(enabled=enabled)\n",
    ),
    Mutant(
        "growth damages nothing",
        "region_tree.py",
        "self._damage(min(old, size), max(old, size))",
        "self._damage(size, old)",
    ),
    Mutant("damage stops at aliases", "damage.py", "for alias in region.aliases()]", "for alias in ()]"),
    Mutant(
        "damage goes through aliases the wrong way",
        "damage.py",
        "(alias, -alias.target_offset)",
        "(alias, alias.target_offset)",
    ),
    Mutant("damage of all forgets what a root was", "damage.py", "[(0, ADDRESS_SPACE_SIZE)]", "[(0, root.size)]"),
    Mutant(
        "an undone savepoint forgets the damage before it",
        "transaction.py",
        "                if not self._journal:\n                    self._damage.clear()\n",
        "                self._damage.clear()\n",
    ),
    # splicing
    Mutant(
        "the neighbour below is not joined again",
        "splice.py",
        "first = view.index(start - 1) if start else 0\n        last",
        "first = view.index(start)\n        last",
    ),
    Mutant("the neighbour above is not joined again", "splice.py", "view.first_from(end + 1)", "view.first_from(end)"),
    Mutant(
        "what must stay apart is cut at a window's border",
        "splice.py",
        "_joined(_widened(view, start, end) for start, end in damage)",
        "_joined(damage)",
    ),
    Mutant("other ioeventfds are no difference", "splice.py", " or old.eventfds != new.eventfds", ""),
    Mutant("another log mask is no difference", "splice.py", "old.log_mask != new.log_mask or ", ""),
    # telling
    Mutant(
        "deletes go downward",
        "record.py",
        "for section in change.delta.removed:",
        "for section in reversed(change.delta.removed):",
    ),
    Mutant(
        "deletes go from low priority to high",
        "record.py",
        "falling(change.listeners), change.listeners\n",
        "change.listeners, change.listeners\n",
    ),
    Mutant(
        "region_nop for what came",
        "record.py",
        '                call(listener, "region_add", listener.region_add, section)\n            continue\n',
        '                call(listener, "region_add", listener.region_add, section)\n',
    ),
    Mutant(
        "log_stop before log_start",
        "record.py",
        "if new & ~old:\n        for listener in listeners:",
        "if old & ~new:\n        for listener in falling(listeners):\n            "
        'call(listener, "log_stop", listener.log_stop, section, old, new)\n'
        "    if new & ~old:\n        for listener in listeners:",
    ),
    Mutant(
        "log_start before region_nop",
        "record.py",
        """        for listener in staying:
            call(listener, "region_nop", listener.region_nop, section)
        old = before.get(id(section))
        if old is not None:
            _record_log(change.listeners, section, old.log_mask, section.log_mask)
""",
        """        old = before.get(id(section))
        if old is not None:
            _record_log(change.listeners, section, old.log_mask, section.log_mask)
        for listener in staying:
            call(listener, "region_nop", listener.region_nop, section)
""",
    ),
    Mutant(
        "an ioeventfd that reaches over its section's end rings",
        "flat_view.py",
        "+ (one.size or 1) <= self.range.end",
        "< self.range.end",
    ),
    # ownership
    Mutant("what stands around a target is nobody's", "region_tree.py", "is not owner, upward=True)", "is not owner)"),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package."""
    top = tmp_path_factory.mktemp("mutants")
    shutil.copytree(MEMORY.parent, top / "accel", ignore=shutil.ignore_patterns("__pycache__"))
    return top


def _run(top: Path) -> tuple[int, str]:
    """Drive the package in `top`; return the exit status and what was printed."""
    environment = {**os.environ, "PYTHONPATH": str(top), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(DRIVER), str(SEED), str(STEPS)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert str(top) in done.stdout, f"drove another copy, or did not run:\n{done.stdout}{done.stderr}"
    return done.returncode, done.stdout


def test_memory_check_passes_the_package_as_it_is(copy: Path) -> None:
    status, printed = _run(copy)
    assert status == 0, printed


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_memory_check_catches_mutant(mutant: Mutant, copy: Path) -> None:
    path = copy / "accel" / "memory" / mutant.file
    source = path.read_text()
    assert source.count(mutant.old) == 1, f"{mutant.file} does not say {mutant.old!r} once any more: adapt the mutant"
    try:
        path.write_text(source.replace(mutant.old, mutant.new))
        status, printed = _run(copy)
    finally:
        path.write_text(source)
    assert status == 3, printed
    assert printed.startswith("complaint: ")
