"""A scene as SVG: real text, so that it can be searched and copied, and a tip for each region.

Written here and not by matplotlib, whose SVG has neither tips nor text of a known width, is two to four times as large,
and would have to be installed. `textLength` makes a browser set each label in the width that the layout has given it,
whatever fixed-width font it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from accel.cli.memory_map.scene import HATCH_ANGLE, HATCH_DISTANCE, Box, Group, Label, Line, Scene

_FONTS = "'DejaVu Sans Mono',Menlo,Consolas,'Liberation Mono',monospace"
_HATCH = "accel-hidden"


def svg_text(scene: Scene) -> str:
    """Return `scene` as an SVG document."""
    return "\n".join(_lines(scene)) + "\n"


def _lines(scene: Scene) -> Iterator[str]:
    width, height = _number(scene.width), _number(scene.height)
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" shape-rendering="crispEdges" font-family="{_FONTS}">'
    )
    yield f"<title>{escape(scene.title)}</title>"
    yield "<style>text{white-space:pre}g:hover>rect[stroke]{stroke:#000;stroke-width:2}</style>"
    yield (
        f'<defs><pattern id="{_HATCH}" width="{HATCH_DISTANCE}" height="{HATCH_DISTANCE}"'
        f' patternUnits="userSpaceOnUse" patternTransform="rotate({HATCH_ANGLE})">'
        f'<path d="M0 0V{HATCH_DISTANCE}" stroke="#5c5c5c" stroke-width="1.1"/></pattern></defs>'
    )
    yield f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    for group in scene.groups:
        yield "<g>" + (f"<title>{escape(group.tip)}</title>" if group.tip else "")
        yield from _shapes(group)
        yield "</g>"
    yield "</svg>"


def _shapes(group: Group) -> Iterator[str]:
    for shape in group.shapes:
        if isinstance(shape, Box):
            yield from _box(shape)
        elif isinstance(shape, Line):
            yield f'<path d="M{_number(shape.x)} {_number(shape.y)}h{_number(shape.width)}" stroke="{shape.colour}"/>'
        else:
            if shape.plate:
                yield from _box(shape.box)
            yield _label(shape)


def _box(box: Box) -> Iterator[str]:
    place = f'x="{_number(box.x)}" y="{_number(box.y)}" width="{_number(box.width)}" height="{_number(box.height)}"'
    # A transparent fill, unlike none, is something that the mouse can point at.
    fill = f'fill="{box.fill}"' if box.fill else 'fill="#ffffff" fill-opacity="0"'
    stroke = f' stroke="{box.stroke}"' if box.stroke else ""
    dashes = ' stroke-dasharray="5 3"' if box.stroke and box.dashed else ""
    yield f"<rect {place} {fill}{stroke}{dashes}/>"
    if box.hatched:
        yield f'<rect {place} fill="url(#{_HATCH})"/>'


def _label(label: Label) -> str:
    attributes = {
        "x": _number(label.x),
        "y": _number(label.y),
        "font-size": _number(label.size),
        "fill": label.colour,
        "textLength": _number(label.width),
        "lengthAdjust": "spacingAndGlyphs",
    }
    if label.anchor == "end":
        attributes["text-anchor"] = "end"
    if label.bold:
        attributes["font-weight"] = "bold"
    written = " ".join(f"{name}={quoteattr(value)}" for name, value in attributes.items())
    return f"<text {written}>{escape(label.text)}</text>"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
