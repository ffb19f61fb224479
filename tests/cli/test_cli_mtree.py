"""accelctl mtree as people run it: text, JSON, errors, and that it needs no accelerator."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel.workload.parse import parse_file
from accel.workload.session import Session

Accelctl = Callable[..., subprocess.CompletedProcess[bytes]]

HEAD = 'format = 1\nmachine = {accelerators = ["mock"], memory = "5G"}\nimage = {program = []}\n'
PC = (
    HEAD
    + """
device = [{type = "debug-exit"}, {type = "serial"}]
region = [
  {name = "vga", at = 0xa_0000, size = "128K", priority = 1},
  {name = "bios", kind = "rom", at = 0xc_0000, size = "256K", priority = 1},
  {name = "shadow", kind = "alias", target = "ram", offset = 0xe_0000, at = 0xe_0000, size = "64K", priority = 2, \
readonly = true},
  {name = "later", at = 0xb_0000, size = "128K", priority = 1},
  {name = "off", at = 0xd_0000, size = "4K", priority = 9, enabled = false},
  {name = "store", size = "16K"},
  {name = "window", kind = "alias", target = "store", at = 0xfe00_0000},
]
"""
)

TREE = """\
address-space: memory
  0000000000000000-ffffffffffffffff (prio 0, container): memory
    0000000000000000-00000000bfffffff (prio 0, ram): alias ram-below-4g @ram 0000000000000000-00000000bfffffff
    00000000000a0000-00000000000bffff (prio 1, ram): vga
    00000000000b0000-00000000000cffff (prio 1, ram): later
    00000000000c0000-00000000000fffff (prio 1, rom): bios
    00000000000d0000-00000000000d0fff (prio 9, ram): off [disabled]
    00000000000e0000-00000000000effff (prio 2, rom): alias shadow @ram 00000000000e0000-00000000000effff
    00000000fe000000-00000000fe003fff (prio 0, ram): alias window @store 0000000000000000-0000000000003fff
    0000000100000000-000000017fffffff (prio 0, ram): alias ram-above-4g @ram 00000000c0000000-000000013fffffff

address-space: io
  0000000000000000-000000000000ffff (prio 0, container): io
    00000000000000f4-00000000000000f7 (prio 0, mmio): debug-exit@0xf4
    00000000000003f8-00000000000003ff (prio 0, mmio): serial@0x3f8

memory-region: ram
  0000000000000000-000000013fffffff (prio 0, ram): ram

memory-region: store
  0000000000000000-0000000000003fff (prio 0, ram): store
"""

FLAT = """\
FlatView #0
 AS "memory", root: memory
 Root memory region: memory
  0000000000000000-000000000009ffff (prio 0, ram): ram
  00000000000a0000-00000000000affff (prio 1, ram): vga
  00000000000b0000-00000000000cffff (prio 1, ram): later
  00000000000d0000-00000000000dffff (prio 1, rom): bios @0000000000010000
  00000000000e0000-00000000000effff (prio 0, rom): ram @00000000000e0000
  00000000000f0000-00000000000fffff (prio 1, rom): bios @0000000000030000
  0000000000100000-00000000bfffffff (prio 0, ram): ram @0000000000100000
  00000000fe000000-00000000fe003fff (prio 0, ram): store
  0000000100000000-000000017fffffff (prio 0, ram): ram @00000000c0000000
"""

OVERLAPS = """\
overlaps: memory
  00000000000a0000-00000000000affff (prio 1, ram): vga
    hides (prio 0, ram): ram @00000000000a0000 through ram-below-4g: \
'vga' has priority 1 in 'memory', 'ram-below-4g' has 0
  00000000000b0000-00000000000bffff (prio 1, ram): later
    hides (prio 1, ram): vga @0000000000010000: \
'later' was added to 'memory' later than 'vga', with the same priority
    hides (prio 0, ram): ram @00000000000b0000 through ram-below-4g: \
'later' has priority 1 in 'memory', 'ram-below-4g' has 0
"""


@pytest.fixture
def pc(tmp_path: Path) -> Path:
    """A workload with overlaps and aliases, like a PC's first megabyte."""
    path = tmp_path / "pc.toml"
    path.write_text(PC)
    return path


def printed(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return what a process that went well printed."""
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    return done.stdout.decode()


def refused(done: subprocess.CompletedProcess[bytes], *words: str) -> None:
    """Check that a process refused with a message of these words."""
    stderr = done.stderr.decode()
    assert done.returncode == 2, stderr
    assert done.stdout == b""
    assert "Traceback" not in stderr
    for one in words:
        assert one in stderr


def test_mtree_workload_prints_trees_and_what_only_aliases_show(accelctl: Accelctl, pc: Path) -> None:
    assert printed(accelctl("mtree", pc)) == TREE


def test_mtree_flat_prints_what_each_address_shows_and_whose_it_is(accelctl: Accelctl, pc: Path) -> None:
    text = printed(accelctl("mtree", pc, "-f"))
    assert text.startswith(FLAT)
    assert "(prio 0, mmio): serial@0x3f8 owner: serial@0x3f8\n" in text
    assert "address-space" not in text


def test_mtree_overlaps_prints_winner_reason_and_hidden_in_order(accelctl: Accelctl, pc: Path) -> None:
    text = printed(accelctl("mtree", pc, "--overlaps"))
    assert text.startswith(OVERLAPS)
    assert text.endswith("overlaps: io\n  none\n")


def test_mtree_flat_and_overlaps_prints_both(accelctl: Accelctl, pc: Path) -> None:
    text = printed(accelctl("mtree", pc, "--flat", "--overlaps"))
    assert FLAT in text
    assert OVERLAPS in text


def test_mtree_owner_names_devices_in_the_trees(accelctl: Accelctl, pc: Path) -> None:
    text = printed(accelctl("mtree", pc, "-o"))
    assert "(prio 0, mmio): serial@0x3f8 owner: serial@0x3f8\n" in text
    assert "vga\n" in text


def test_mtree_space_shows_that_one_only(accelctl: Accelctl, pc: Path) -> None:
    text = printed(accelctl("mtree", pc, "--space", "io"))
    assert text.startswith("address-space: io\n")
    assert "memory" not in text


def test_mtree_unknown_space_is_refused_with_the_nearest(accelctl: Accelctl, pc: Path) -> None:
    refused(accelctl("mtree", pc, "--space", "memroy"), "no address space 'memroy'; did you mean 'memory'?")


# JSON


def test_mtree_json_flat_is_the_view_of_the_machine_that_runs(accelctl: Accelctl, pc: Path) -> None:
    data = json.loads(printed(accelctl("mtree", pc, "--json")))
    assert (data["format"], data["name"]) == (1, "pc.toml")
    with Session(parse_file(pc)) as session:
        for space, real in zip(data["spaces"], session.machine.vm.address_spaces, strict=True):
            assert space["name"] == real.name
            assert [
                (int(row["start"], 0), int(row["end"], 0), row["name"], int(row["offset"], 0), row["readonly"])
                for row in space["flat"]
            ] == [(one.range.start, one.range.end, one.region.name, one.offset, one.readonly) for one in real.view]


def rows_by_id(data: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return all rows of all trees; a number stands for one region."""
    rows = [row for space in data["spaces"] for row in space["tree"]] + [
        row for tree in data["detached"] for row in tree
    ]
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_mtree_json_numbers_lead_from_everything_to_the_tree(accelctl: Accelctl, pc: Path) -> None:
    data = json.loads(printed(accelctl("mtree", pc, "--json")))
    rows = rows_by_id(data)
    for row in rows.values():
        if row["parent"] is not None:
            assert rows[row["parent"]]["depth"] == row["depth"] - 1
        if row["alias"] is not None:
            assert rows[row["alias"]["id"]]["name"] == row["alias"]["name"]
    for space in data["spaces"]:
        for one in space["flat"]:
            assert rows[one["id"]]["name"] == one["name"]
        for overlap in space["overlaps"]:
            for claim in (overlap["winner"], *overlap["hidden"]):
                assert rows[claim["id"]]["name"] == claim["name"]


def test_mtree_json_tree_has_every_attribute(accelctl: Accelctl, pc: Path) -> None:
    data = json.loads(printed(accelctl("mtree", pc, "--json")))
    shadow = next(row for row in data["spaces"][0]["tree"] if row["name"] == "shadow")
    target = next(row for row in data["detached"][0] if row["name"] == "ram")
    assert {name: shadow[name] for name in shadow if name not in ("id", "parent")} == {
        "depth": 1,
        "name": "shadow",
        "kind": "alias",
        "served": "rom",
        "start": "0xe0000",
        "end": "0xf0000",
        "priority": 2,
        "enabled": True,
        "readonly": True,
        "nonvolatile": False,
        "coalesced": False,
        "owner": None,
        "alias": {"id": target["id"], "name": "ram", "start": "0xe0000", "end": "0xf0000"},
    }
    serial = next(row for row in data["spaces"][1]["tree"] if row["name"] == "serial@0x3f8")
    assert (serial["owner"], serial["served"]) == ("serial@0x3f8", "mmio")


def test_mtree_json_overlap_says_who_wins_and_by_which_rule(accelctl: Accelctl, pc: Path) -> None:
    data = json.loads(printed(accelctl("mtree", pc, "--json", "--space", "memory")))
    overlap = data["spaces"][0]["overlaps"][1]
    assert (overlap["start"], overlap["end"]) == ("0xb0000", "0xc0000")
    assert overlap["winner"]["name"] == "later"
    assert [(one["name"], one["rule"], one["offset"]) for one in overlap["hidden"]] == [
        ("vga", "later", "0x10000"),
        ("ram", "priority", "0xb0000"),
    ]
    assert overlap["hidden"][1]["through"] == ["ram-below-4g"]
    assert overlap["hidden_count"] == 2
    assert data["spaces"][0]["overlaps_left_out"] == 0


def test_mtree_json_keys_are_those_that_the_reference_page_lists(accelctl: Accelctl, pc: Path) -> None:
    data = json.loads(printed(accelctl("mtree", pc, "--json")))
    page = (Path(__file__).parents[2] / "docs" / "reference" / "accelctl.md").read_text()
    section = page.partition("## accelctl mtree\n")[2].partition("\n## ")[0]
    listed = {
        row.split("`")[1]: set(re.findall(r"`(\w+)`", row.split("|")[2]))
        for row in section.splitlines()
        if re.match(r"\| `\w+` \|", row)
    }
    space = data["spaces"][0]
    assert set(data) <= set(listed)
    assert listed["spaces"] == set(space)
    for name in ("tree", "flat", "overlaps"):
        assert listed[name] == set(space[name][0])
    claims = space["overlaps"][0]
    for key in {*space["tree"][1]["alias"], *claims["winner"], *claims["hidden"][0]}:
        assert f"`{key}`" in section


# machines and images


def test_mtree_machine_has_the_devices_and_memory_of_an_image(accelctl: Accelctl) -> None:
    text = printed(accelctl("mtree", "--machine", "--memory", "4G", "--cpus", "4"))
    assert "alias ram-above-4g @ram 00000000c0000000-00000000ffffffff" in text
    for device in ("serial@0x3f8", "debug-console@0xe9", "debug-console@0x402", "debug-exit@0xf4", "cmos@0x70"):
        assert device in text


def test_mtree_firmware_shows_its_rom(accelctl: Accelctl, tmp_path: Path) -> None:
    (tmp_path / "bios.bin").write_bytes(bytes(0x2_0000))
    for arguments in (["--firmware", "bios.bin"], ["--machine", "--firmware", "bios.bin"]):
        text = printed(accelctl("mtree", *arguments))
        assert "00000000fffe0000-00000000ffffffff (prio 1, rom): firmware-rom0\n" in text


def test_mtree_image_is_shown_where_every_accelerator_is_switched_off(accelctl: Accelctl, guests: Path) -> None:
    done = accelctl("mtree", guests / "hello.bin", env={"ACCEL_BLOCK_PLUGINS": "kvm,mock,hvf"})
    assert "(prio 0, ram): ram\n" in printed(done)


def test_mtree_flags_come_before_the_workload(accelctl: Accelctl, pc: Path) -> None:
    assert "0000000000000000-00000000007fffff (prio 0, ram): ram\n" in printed(accelctl("mtree", pc, "--memory", "8M"))


def test_mtree_nothing_to_show_is_refused(accelctl: Accelctl) -> None:
    refused(accelctl("mtree"), "nothing to show: name a workload file or an image, or --machine")


def test_mtree_machine_and_image_are_refused(accelctl: Accelctl, pc: Path) -> None:
    refused(accelctl("mtree", pc, "--machine"), "--machine shows a machine without an image; leave out either")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothere.toml"], "nothere.toml: no such file"),
        (["nothere.bin"], "nothere.bin: no such file"),
        (["--machine", "--memory", "5000"], "is no multiple of 0x1000; try 8K"),
        (["--machine", "--memory", "8T"], "more than this host has"),
        (["--machine", "--cpus", "0"], "0 vCPUs: a machine needs at least one"),
        (["--machine", "--svg", "nothere/map.svg"], "--svg nothere/map.svg: cannot be written: No such file"),
        (["--machine", "--png", "."], "--png .: cannot be written: Is a directory"),
    ],
)
def test_mtree_bad_input_is_refused(accelctl: Accelctl, arguments: list[str], words: str) -> None:
    refused(accelctl("mtree", *arguments), words)


# pictures


def test_mtree_pictures_are_written_beside_the_text(accelctl: Accelctl, pc: Path, tmp_path: Path) -> None:
    done = accelctl("mtree", pc, "--svg", "map.svg", "--png", "map.png")
    # matplotlib may tell on stderr that it looks for fonts, the first time.
    assert (done.returncode, done.stdout.decode()) == (0, TREE)
    assert (tmp_path / "map.svg").read_text().startswith("<?xml")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_mtree_svg_works_without_matplotlib_and_png_says_what_to_install(
    accelctl_after: Accelctl, pc: Path, tmp_path: Path
) -> None:
    absent = "sys.modules['matplotlib'] = None"
    assert printed(accelctl_after(absent, "mtree", pc, "--svg", "map.svg")) == TREE
    assert (tmp_path / "map.svg").exists()
    refused(accelctl_after(absent, "mtree", pc, "--png", "map.png"), "pip install 'accel[plot]'", "--svg")
    assert not (tmp_path / "map.png").exists()


# hostile files

NAMES = [
    "\x1b[2J\x1b]0;title\x07",
    "two\nlines\r\x00"[:-1],
    "</text><script>alert(1)</script>&amp;\"'",
    r"$\frac{1}$ ^_{",
    "\N{RIGHT-TO-LEFT OVERRIDE}desrever",
    "\N{SNOWMAN}\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 20 + "e\N{COMBINING ACUTE ACCENT}" * 50,
    "x" * 50_000,
]


def test_mtree_hostile_names_steer_nothing(accelctl: Accelctl, tmp_path: Path) -> None:
    regions = ",".join(
        f"{{name = {json.dumps(name)}, at = {0x1_0000_0000 + index * 0x1800}, size = '8K'}}"
        for index, name in enumerate(NAMES)
    )
    (tmp_path / "w.toml").write_text(HEAD.replace("5G", "1M") + f"region = [{regions}]")
    for flags in ([], ["-f"], ["--overlaps"]):
        text = printed(accelctl("mtree", "w.toml", *flags))
        assert all(one.isprintable() or one == "\n" for one in text)
        assert max(map(len, text.splitlines())) < 800
    data = json.loads(printed(accelctl("mtree", "w.toml", "--json", "--svg", "m.svg")))
    assert [row["name"] for row in data["spaces"][0]["tree"][2:-1]] == NAMES[:-1]
    assert re.fullmatch("x{100,}…x{100,}", data["spaces"][0]["tree"][-1]["name"])


def test_mtree_thousand_regions_on_top_of_each_other_are_listed_in_bounds(accelctl: Accelctl, tmp_path: Path) -> None:
    regions = ",".join(
        f"{{name = 'r{n}', at = {0x1_0000_0000 + n * 4096}, size = {0x1000 * (2048 - 2 * n)}, priority = {n}}}"
        for n in range(1000)
    )
    (tmp_path / "w.toml").write_text(HEAD.replace("5G", "1M") + f"region = [{regions}]")
    text = printed(accelctl("mtree", "w.toml", "--overlaps"))
    deepest_part = text.partition("    hides 991 more\n")[0].rpartition("\n  0")[2]
    assert deepest_part.count("    hides ") == 8
    data = json.loads(printed(accelctl("mtree", "w.toml", "--json", "--space", "memory")))
    overlaps = data["spaces"][0]["overlaps"]
    deepest = max(overlaps, key=lambda one: one["hidden_count"])
    assert deepest["hidden_count"] == 999
    assert [one["name"] for one in deepest["hidden"]] == [f"r{n}" for n in range(998, 966, -1)]
    # The first and the last range of each region but the last, less the two that only one has.
    assert len(overlaps) + data["spaces"][0]["overlaps_left_out"] == 2 * 1000 - 1 - 2
