"""The picture of a memory map: what stands in it, that no two labels meet, and that it stays readable when it grows."""

from __future__ import annotations

import io
import itertools
import json
import math
import random
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest
from attrs import frozen

from accel.address import ADDRESS_SPACE_SIZE
from accel.cli.memory_map import chart as chart_module
from accel.cli.memory_map import fold as fold_module
from accel.cli.memory_map import png as png_module
from accel.cli.memory_map.chart import Chart, State, build_chart
from accel.cli.memory_map.fold import fold
from accel.cli.memory_map.layout import draw_map
from accel.cli.memory_map.png import png_bytes
from accel.cli.memory_map.scene import Box, Group, Label, Line, Scene
from accel.cli.memory_map.snapshot import MemoryMap, take_snapshot
from accel.cli.memory_map.stage import staged
from accel.cli.memory_map.strip import Strip
from accel.cli.memory_map.style import KIND_FILLS, address_text, range_text, size_text
from accel.cli.memory_map.svg import svg_text
from accel.workload.parse import parse_text

SVG = "{http://www.w3.org/2000/svg}"
HEAD = 'format = 1\nmachine = {accelerators = ["mock"], memory = "%s"}\nimage = {program = []}\n'


def toml(memory: str, regions: Sequence[dict[str, object]]) -> str:
    """Return a workload of these regions, and a serial port."""
    tables = (", ".join(f"{key} = {json.dumps(value)}" for key, value in region.items()) for region in regions)
    listed = ",\n".join(f"  {{{table}}}" for table in tables)
    return (HEAD % memory) + f'device = [{{type = "serial"}}]\nregion = [\n{listed}\n]\n'


def map_of(text: str) -> MemoryMap:
    """Return the map of a workload."""
    with staged(parse_text(text, "w.toml", Path()), "w.toml") as machine:
        return take_snapshot(machine, "w.toml")


FIVE = [
    {"name": "bios", "kind": "rom", "at": 0xE0000, "size": "128K", "priority": 1},
    {"name": "vram", "at": 0xFD00_0000, "size": "16M"},
    {
        "name": "window",
        "kind": "alias",
        "target": "ram",
        "offset": 0x10_0000,
        "at": 0xD0000,
        "size": "64K",
        "priority": 2,
    },
    {"name": "spare", "at": 0xF000_0000, "size": "1M", "enabled": False},
    {"name": "flash", "kind": "rom", "at": 0xFFC0_0000, "size": "4M"},
]


def many(count: int, seed: int) -> list[dict[str, object]]:
    """Return regions of many sizes and kinds, one after the other with gaps and overlaps, some in containers."""
    dice = random.Random(seed)
    regions: list[dict[str, object]] = [{"name": "bus", "kind": "container", "at": 0xC000_0000, "size": "512M"}]
    at = 0
    while len(regions) < count:
        number = len(regions)
        size = dice.choice([1, 1, 2, 3, 5, 8, 16, 64]) * 4096
        region: dict[str, object] = {"name": f"{dice.choice(['nvme', 'gpu', 'hda', 'tpm'])}.{number}", "size": size}
        region |= {"at": at, "parent": "bus", "priority": dice.choice([0, 0, 1]), "enabled": dice.random() > 0.03}
        kind = dice.random()
        if kind < 0.2:
            region["kind"] = "rom"
        elif kind < 0.35:
            region |= {"kind": "alias", "target": "ram", "offset": number * 0x3_7000}
        elif kind < 0.4:
            region |= {"kind": "container"}
        regions.append(region)
        at = max(at + 4096, at + size + dice.choice([0, 0, 1, 3, -1, -2, 40]) * 4096)
    return regions


def alike(count: int) -> list[dict[str, object]]:
    """Return small regions at equal distances."""
    return [{"name": f"queue-{n}", "at": 0x1000_0000 + n * 0x4000, "size": "4K"} for n in range(count)]


MAPS = {
    "5": toml("64M", FIVE),
    "50": toml("6G", FIVE + many(45, seed=1)),
    "500": toml("6G", FIVE + many(495, seed=2)),
    "500 alike": toml("64M", alike(500)),
    "500 aliases": toml(
        "64M",
        [
            {
                "name": f"w{n}",
                "kind": "alias",
                "target": "ram",
                "offset": n * 8192,
                "at": 0x800_0000 + n * 12288,
                "size": "8K",
            }
            for n in range(500)
        ],
    ),
    "300 layers": toml(
        "64M",
        [
            {"name": f"l{n}", "at": 0x800_0000 + n * 4096, "size": 4096 * (601 - 2 * n), "priority": n}
            for n in range(300)
        ],
    ),
    "hostile": toml(
        "64M",
        [
            {"name": name, "at": 0x1000_0000 + n * 4096, "size": "8K"}
            for n, name in enumerate(
                ["\x1b[2J", "<text>&\"'", "two\nlines", "\u4e2d" * 99, "y" * 9999, "$\\frac{1}$", "]]>"]
            )
        ]
        + [{"name": "d" * 50, "at": 0x2000_0000, "size": "4K", "enabled": False}],
    ),
}


@pytest.fixture(scope="module", params=MAPS)
def memory_map(request: pytest.FixtureRequest) -> MemoryMap:
    """Each of the maps in turn."""
    return map_of(MAPS[request.param])


@frozen
class Text:
    """A text of an SVG file, and the box that it takes."""

    text: str
    left: float
    right: float
    top: float
    bottom: float

    def meets(self, other: Text) -> bool:
        """Return whether the boxes have a point in common, with a hair's breadth allowed."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return across > 0.1 and down > 0.1


def texts(root: ElementTree.Element) -> list[Text]:
    """Return all text of a picture, with the room that the file itself gives it."""
    found = []
    for element in root.iter(f"{SVG}text"):
        width, size = float(element.attrib["textLength"]), float(element.attrib["font-size"])
        x, y = float(element.attrib["x"]), float(element.attrib["y"])
        left = x - width if element.get("text-anchor") == "end" else x
        # Letters without those that hang below; what hangs below still has to stand above the next line's letters.
        found.append(Text(element.text or "", left, left + width, y - 0.73 * size, y + 0.24 * size))
    return found


def parsed(memory_map: MemoryMap) -> ElementTree.Element:
    """Return the picture of a map as XML."""
    return ElementTree.fromstring(svg_text(draw_map(memory_map)))


# labels


def test_picture_labels_never_meet(memory_map: MemoryMap) -> None:
    found = sorted(texts(parsed(memory_map)), key=lambda one: one.top)
    assert len(found) > 20
    for index, one in enumerate(found):
        met = []
        for other in found[index + 1 :]:
            if other.top >= one.bottom:
                break
            met += [other] if one.meets(other) else []
        assert not met, f"{one} meets {met}"


def test_picture_labels_lie_on_the_page_and_are_as_wide_as_their_text(memory_map: MemoryMap) -> None:
    root = parsed(memory_map)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for one in texts(root):
        assert one.left >= 0
        assert one.top >= 0
        assert one.right <= width
        assert one.bottom <= height
        assert one.text
    for element in root.iter(f"{SVG}text"):
        assert float(element.attrib["font-size"]) >= 10
        if (element.text or "").isascii():
            wanted = len(element.text or "") * float(element.attrib["font-size"]) * 0.602
            assert float(element.attrib["textLength"]) == pytest.approx(wanted, abs=0.01)


def test_picture_labels_stay_inside_their_boxes(memory_map: MemoryMap) -> None:
    for group in draw_map(memory_map).groups:
        boxes = [shape for shape in group.shapes if isinstance(shape, Box)]
        for label in group.shapes:
            if group.tip and boxes and isinstance(label, Label):
                assert label.box.x >= boxes[0].x
                assert label.box.x + label.box.width <= boxes[0].x + boxes[0].width
                assert label.y <= max(box.y + box.height for box in boxes)


def test_picture_of_many_rows_labels_the_largest_gaps() -> None:
    memory_map = map_of(MAPS["500"])
    (rows,) = (build_chart(space, memory_map).rows for space in memory_map.spaces[:1])
    largest = sorted((row.size for row in rows if row.flat is None), reverse=True)[:10]
    labels = {one.text for one in texts(parsed(memory_map))}
    assert {size_text(size) for size in largest} <= labels


def test_picture_has_the_shape_of_a_page(memory_map: MemoryMap) -> None:
    scene = draw_map(memory_map)
    assert 0.6 < scene.width / scene.height / math.sqrt(2) < 2


# what stands in it


def test_picture_of_five_regions_has_each_name_where_it_belongs() -> None:
    root = parsed(map_of(MAPS["5"]))
    names = Counter(one.text for one in texts(root))
    # RAM shows in three ranges and is a bar, since something stands before it; the alias is a bar only.
    assert {name: names[name] for name in ("bios", "vram", "flash", "ram", "window", "spare (off)", "→ ram")} == {
        "bios": 1,
        "vram": 1,
        "flash": 1,
        "ram": 4 + 1 + 1,  # three ranges, its bar, what kind the bar is, and the legend
        "window": 1,
        "spare (off)": 1,
        "→ ram": 1,
    }
    for address in ("0x0", "0xd_0000", "0xe_0000", "0x10_0000", "0xfd00_0000", "0xffc0_0000", "0x1_0000_0000", "2^64"):
        assert names[address] >= 1


def test_picture_of_many_different_regions_has_each_name_of_the_flat_view() -> None:
    memory_map = map_of(MAPS["500"])
    shown = Counter(one.text for one in texts(parsed(memory_map)))
    flat = {row.name for space in memory_map.spaces for row in space.flat}
    assert len(flat) > 300
    assert not {name for name in flat if not shown[name]}


def test_picture_tips_give_name_range_and_owner() -> None:
    root = parsed(map_of(MAPS["5"]))
    tips = [element.text or "" for element in root.iter(f"{SVG}title")]
    assert "bios\n0xe_0000 to 0xf_ffff (128 KiB)\nrom, priority 1, read-only\nshows it from 0x0 on" in tips
    assert any("serial@0x3f8" in tip and tip.endswith("device serial@0x3f8") for tip in tips)
    assert any(tip.startswith("ram\n") and tip.endswith("hidden at 0xd_0000 to 0xf_ffff (192 KiB)") for tip in tips)
    assert any(tip.startswith("window\n") and "shows ram from 0x10_0000 on" in tip for tip in tips)


def test_picture_hostile_names_are_data() -> None:
    root = parsed(map_of(MAPS["hostile"]))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "title", "style", "defs", "pattern", "path", "rect", "g", "text",
    }  # fmt: skip
    shown = {one.text for one in texts(root)}
    assert {r"\x1b[2J", "<text>&\"'", r"two\nlines", "$\\frac{1}$", "]]>"} <= shown


def boxes_of(memory_map: MemoryMap, name: str) -> list[Box]:
    """Return the boxes of the groups in which a name stands."""
    groups = [group for group in draw_map(memory_map).groups if group.tip.startswith(f"{name}\n")]
    return [shape for group in groups for shape in group.shapes if isinstance(shape, Box)]


def test_picture_colours_say_the_kind_and_hatching_what_is_hidden() -> None:
    memory_map = map_of(MAPS["5"])
    assert {box.fill for box in boxes_of(memory_map, "bios")} == {KIND_FILLS["rom"]}
    assert {box.fill for box in boxes_of(memory_map, "serial@0x3f8")} == {KIND_FILLS["mmio"]}
    hatched = [
        group.tip for group in draw_map(memory_map).groups if any(getattr(one, "hatched", 0) for one in group.shapes)
    ]
    assert [tip.splitlines()[0] for tip in hatched if tip] == ["ram"]


# the chart


def charts(text: str) -> list[Chart]:
    """Return the charts of a workload, before they are folded."""
    memory_map = map_of(text)
    return [build_chart(space, memory_map) for space in memory_map.spaces]


@pytest.mark.parametrize("name", ["5", "50", "500"])
def test_chart_rows_tile_the_space_and_follow_the_flat_view(name: str) -> None:
    memory_map = map_of(MAPS[name])
    for space in memory_map.spaces:
        rows = build_chart(space, memory_map).rows
        assert (rows[0].start, rows[-1].end) == (space.tree[0].start, space.tree[0].end)
        assert all(one.end == other.start for one, other in itertools.pairwise(rows))
        seen = list(dict.fromkeys(row.flat for row in rows if row.flat is not None))
        assert seen == list(space.flat)
        for row in rows:
            assert row.flat is None or (row.flat.start <= row.start and row.end <= row.flat.end)


@pytest.mark.parametrize("name", ["5", "50", "500"])
def test_chart_bars_say_for_each_row_whether_the_region_shows(name: str) -> None:
    memory_map = map_of(MAPS[name])
    for space in memory_map.spaces:
        chart = build_chart(space, memory_map)
        for bar in chart.bars:
            if bar.region.kind == "container":
                continue
            rows = chart.rows[bar.first : bar.end]
            assert (rows[0].start, rows[-1].end) == (max(bar.region.start, 0), bar.region.end)
            for row, state in zip(rows, bar.states, strict=True):
                wanted = bar.region.id if bar.region.alias is None else bar.region.alias.id
                offset = row.start - bar.region.start + (0 if bar.region.alias is None else bar.region.alias.start)
                flat = row.flat
                shows = flat is not None and (flat.id, flat.offset + row.start - flat.start) == (wanted, offset)
                assert shows == (state is State.SHOWN), (bar.region.name, row)
                assert (state is State.DISABLED) == (not bar.region.enabled)


def test_chart_region_that_shows_whole_has_no_bar() -> None:
    (memory, _) = charts(MAPS["5"])
    assert [bar.region.name for bar in memory.bars] == ["window", "spare", "ram"]


@pytest.mark.parametrize("name", ["50", "500", "300 layers"])
def test_strip_what_hides_stands_left_of_what_is_hidden(name: str) -> None:
    for chart in charts(MAPS[name]):
        strip = Strip.of(chart, [20.0] * len(chart.rows), 0, len(chart.rows))
        for one, other in itertools.combinations(strip.bars, 2):
            if one.bar.first < other.bar.end and other.bar.first < one.bar.end:
                assert (one.lane < other.lane) == (one.bar.region.rank < other.bar.region.rank)
        for index, behind in enumerate(strip.behind):
            there = [bar for bar in chart.bars if bar.first <= index < bar.end]
            placed = [one for one in strip.bars if one.bar.first <= index < one.bar.end]
            assert behind == len(there) - len(placed)


def test_chart_with_rows_without_end_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chart_module, "_MOST_EDGES", 40)
    memory_map = map_of(MAPS["500"])
    chart = build_chart(memory_map.spaces[0], memory_map)
    assert len(chart.rows) <= 41
    assert chart.rows[-1].end == ADDRESS_SPACE_SIZE
    names = [
        name for row in chart.rows for name in (row.fold.names if row.fold else [row.flat.name] if row.flat else [])
    ]
    assert set(names) == {row.name for row in memory_map.spaces[0].flat}
    assert parsed(memory_map) is not None


# folding


def test_fold_run_of_like_regions_keeps_its_ends_and_counts_the_rest() -> None:
    labels = [one.text for one in texts(parsed(map_of(MAPS["500 alike"])))]
    assert [text for text in labels if text.startswith("queue")] == [
        "queue-0",
        "queue-1",
        "queue-2 … queue-497",
        "queue-498",
        "queue-499",
    ]
    assert "… 496 more like these" in labels


def test_fold_run_of_aliases_of_one_region_is_named_after_the_aliases() -> None:
    labels = [one.text for one in texts(parsed(map_of(MAPS["500 aliases"])))]
    assert "w2 … w497" in labels
    assert labels.count("w0") == 1


def test_fold_run_of_hidden_regions_is_folded_in_its_lane() -> None:
    regions: list[dict[str, object]] = [{"name": "cover", "at": 0x1000_0000, "size": "64M", "priority": 1}]
    labels = [one.text for one in texts(parsed(map_of(toml("64M", regions + alike(200)))))]
    assert labels.count("cover") == 1
    assert "… 196 more" in labels
    assert "queue-2 … queu…197" in labels
    assert labels.count("queue-198") == 1


def test_fold_leaves_out_the_part_of_a_short_bar_that_is_folded() -> None:
    regions = [{"name": f"step-{n}", "at": 0x1000_0000 + n * 4096, "size": "8K"} for n in range(200)]
    found = charts(toml("64M", regions))
    before, after = found[0], fold(found)[0]
    assert {len(bar.states) for bar in before.bars} == {2}
    folded = [index for index, row in enumerate(after.rows) if row.fold is not None]
    assert len(folded) == 1
    assert len(after.bars) > 2
    for bar in after.bars:
        assert not any(bar.first <= index < bar.end for index in folded)


def test_fold_leaves_few_rows_alone() -> None:
    found = charts(toml("64M", alike(40)))
    assert fold(found) == found


def test_fold_too_many_different_rows_become_blocks_that_name_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "MOST_ROWS", 60)
    found = charts(MAPS["500"])
    folded = fold(found)
    assert sum(len(chart.rows) for chart in folded) <= 62
    for before, after in zip(found, folded, strict=True):
        assert (before.rows[0].start, before.rows[-1].end) == (after.rows[0].start, after.rows[-1].end)
        assert all(one.end == other.start for one, other in itertools.pairwise(after.rows))
        for bar in after.bars:
            assert 0 <= bar.first < bar.end <= len(after.rows)
    assert parsed(map_of(MAPS["500"])) is not None


@pytest.mark.parametrize("name", ["500 alike", "500 aliases", "300 layers"])
def test_fold_makes_a_small_page_of_many_like_regions(name: str) -> None:
    scene = draw_map(map_of(MAPS[name]))
    assert scene.width * scene.height < 1_500_000


# words


def test_sizes_and_addresses_are_written_for_people() -> None:
    assert [size_text(size) for size in (1, 1023, 1024, 1536, (1 << 30) - 1, 1 << 64)] == [
        "1 B",
        "1023 B",
        "1 KiB",
        "~1.5 KiB",
        "~1023.9 MiB",
        "16 EiB",
    ]
    assert address_text(0) == "0x0"
    assert range_text(0, 1 << 64) == "0x0 to 0xffff_ffff_ffff_ffff (16 EiB)"


# PNG


@contextmanager
def pixels(data: bytes) -> Iterator[object]:
    """Give the picture in a PNG file as an array of rows."""
    image = pytest.importorskip("matplotlib.image")
    yield image.imread(io.BytesIO(data))


def test_png_has_two_pixels_for_each_of_the_scene() -> None:
    scene = draw_map(map_of(MAPS["hostile"]))
    data = png_bytes(scene)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (int(2 * scene.width), int(2 * scene.height))


def test_png_of_a_huge_scene_has_fewer_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_module, "_MOST_PIXELS", 10_000)
    width, height = struct.unpack(">II", png_bytes(Scene("", 400, 100, ()))[16:24])
    assert width * height <= 10_000
    assert width == pytest.approx(4 * height, abs=4)


def test_png_paints_every_shape_where_the_scene_has_it() -> None:
    shapes = (
        Box(10, 10, 40, 20, "#ff0000", "#000000"),
        Box(60, 10, 40, 20, hatched=True),
        Label(10, 60, "MMMM", 12),
        Label(100, 60, "MMMM", 12, "end", plate="#00ff00"),
        Line(10, 80, 90, "#0000ff"),
    )
    with pixels(png_bytes(Scene("t", 110, 90, (Group(shapes),)))) as image:

        def mean(x: float, y: float, width: float, height: float) -> list[float]:
            part = image[int(2 * y) : int(2 * (y + height)), int(2 * x) : int(2 * (x + width)), :3]  # type: ignore[index]
            return [float(part[..., channel].mean()) for channel in range(3)]

        assert mean(15, 15, 30, 10) == pytest.approx([1, 0, 0], abs=0.01)
        assert mean(0, 0, 110, 8) == pytest.approx([1, 1, 1], abs=0.01)
        assert 0.3 < mean(62, 12, 36, 16)[0] < 0.97
        for label in shapes[2:4]:
            assert isinstance(label, Label)
            box = label.box
            # Letters stand everywhere in the width that the layout counts on, and nowhere beside it.
            for quarter in range(4):
                assert mean(box.x + quarter * box.width / 4, box.y, box.width / 4, box.height)[0] < 0.8
            assert min(mean(box.x + box.width + 1, box.y, 5, box.height)) > 0.95
        assert mean(shapes[3].box.x, shapes[3].box.y, 10, 1)[1] > 0.9
        assert mean(20, 79.5, 60, 1)[2] == pytest.approx(1, abs=0.05)
        assert mean(20, 79.5, 60, 1)[0] < 0.5


def test_png_takes_no_notice_of_the_users_settings() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    scene = draw_map(map_of(MAPS["hostile"]))
    plain = png_bytes(scene)
    with matplotlib.rc_context({"text.usetex": True, "savefig.dpi": 30, "font.size": 50, "hatch.color": "red"}):
        assert png_bytes(scene) == plain
