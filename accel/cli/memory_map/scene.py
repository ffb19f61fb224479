"""A picture as a list of shapes, before it is SVG or PNG. Units are pixels of a screen, y grows downward.

All text is set in a font of fixed width, so how much room a label takes is known without measuring it, and is the same
in either form.
"""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from accel.cli.memory_map.names import cells

#: Width of a column by font size: that of DejaVu Sans Mono, and about that of every other such font.
_ADVANCE = 0.602
#: Parts of the font size above and below the base line that a line of text takes.
ASCENT, DESCENT = 0.95, 0.25

#: The line that a hatched box is filled with: its distance and its angle to the vertical, in degrees.
HATCH_DISTANCE, HATCH_ANGLE = 6, 45


@frozen
class Box:
    """A rectangle.

    Attributes:
        fill: A colour such as ``#ffffff``, or an empty string.
        dashed: Whether its border is.
        hatched: Whether lines are drawn across it.
    """

    x: float
    y: float
    width: float
    height: float
    fill: str = ""
    stroke: str = ""
    dashed: bool = False
    hatched: bool = False


@frozen
class Label:
    """One line of text.

    Attributes:
        x: Its left end, or its right end where `anchor` is ``end``.
        y: The base line.
        plate: The colour of a box behind it that keeps hatching away, or an empty string.
    """

    x: float
    y: float
    text: str
    size: float = 11
    anchor: Literal["start", "end"] = "start"
    colour: str = "#111111"
    bold: bool = False
    plate: str = ""

    @property
    def width(self) -> float:
        """How much room it takes."""
        return text_width(self.text, self.size)

    @property
    def box(self) -> Box:
        """The room that it takes."""
        left = self.x - (self.width if self.anchor == "end" else 0)
        return Box(left, self.y - ASCENT * self.size, self.width, (ASCENT + DESCENT) * self.size, self.plate)


@frozen
class Line:
    """A thin horizontal line."""

    x: float
    y: float
    width: float
    colour: str


@frozen
class Group:
    """Shapes that are about one thing, later ones above earlier ones.

    Attributes:
        tip: What a browser shows where the mouse points at one of them.
    """

    shapes: tuple[Box | Label | Line, ...]
    tip: str = ""


@frozen
class Scene:
    """A whole picture, on white."""

    title: str
    width: float
    height: float
    groups: tuple[Group, ...]

    def labels(self) -> list[Label]:
        """Return all text in it."""
        return [shape for group in self.groups for shape in group.shapes if isinstance(shape, Label)]


def text_width(text: str, size: float) -> float:
    """Return how wide `text` is."""
    return cells(text) * size * _ADVANCE


def columns(width: float, size: float) -> int:
    """Return how many columns of text fit into `width`."""
    return int(width / (size * _ADVANCE))
