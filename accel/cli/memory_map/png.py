"""A scene as PNG, painted by matplotlib, which is in the extra ``plot``.

Only its canvas is used, with its defaults whatever the user's settings are: text is no mathematics here, and all shapes
stand where the layout has put them. Characters that the font has not are replaced.
"""

from __future__ import annotations

import importlib.util
import io
import math
from typing import TYPE_CHECKING, Any

from accel.cli.memory_map.scene import Box, Label, Scene
from accel.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Pixels of the file for one of the scene, and how many pixels there are at most.
_SCALE, _MOST_PIXELS = 2.0, 40_000_000
_DPI = 100
#: matplotlib brings it along.
_FONT = "DejaVu Sans Mono"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def require_matplotlib() -> None:
    """Raise UsageError, with what to do, if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--png needs matplotlib: pip install 'accel[plot]', or use --svg, which needs nothing more")


def png_bytes(scene: Scene) -> bytes:
    """Return `scene` as a PNG file: two pixels for each of the scene's, fewer where it is huge."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["hatch.linewidth"] = 0.9
        scale = min(_SCALE, math.sqrt(_MOST_PIXELS / (scene.width * scene.height)))
        size = scene.width * scale / _DPI, scene.height * scale / _DPI
        figure = Figure(figsize=size, dpi=_DPI, facecolor="white")
        canvas: Any = FigureCanvasAgg(figure)
        for order, artist in enumerate(_Painter(scene.height, scale).artists(scene)):
            artist.set_zorder(order)
            figure.add_artist(artist)
        file = io.BytesIO()
        canvas.print_png(file)
    return file.getvalue()


class _Painter:
    """Makes matplotlib's artists out of shapes."""

    def __init__(self, height: float, scale: float) -> None:
        from matplotlib.font_manager import FontProperties, findfont, get_font
        from matplotlib.transforms import Affine2D

        self._place = Affine2D().translate(0, -height).scale(scale, -scale)
        self._scale = scale
        self._fonts = {
            bold: FontProperties(family=_FONT, weight="bold" if bold else "normal") for bold in (False, True)
        }
        self._known = {bold: frozenset(get_font(findfont(font)).get_charmap()) for bold, font in self._fonts.items()}

    def artists(self, scene: Scene) -> Iterator[Any]:
        """Yield what is to be painted, from the back to the front."""
        for group in scene.groups:
            for shape in group.shapes:
                if isinstance(shape, Box):
                    yield from self._box(shape)
                elif isinstance(shape, Label):
                    if shape.plate:
                        yield from self._box(shape.box)
                    yield self._text(shape)
                else:
                    yield self._rectangle(Box(shape.x, shape.y - 0.5, shape.width, 1), facecolor=shape.colour)

    def _box(self, box: Box) -> Iterator[Any]:
        if box.fill:
            yield self._rectangle(box, facecolor=box.fill)
        if box.hatched:
            yield self._rectangle(box, facecolor="none", hatch="///", edgecolor="#5c5c5c")
        if box.stroke:
            dashes: Any = (0, (3.6, 2.2)) if box.dashed else "solid"
            yield self._rectangle(
                box, facecolor="none", edgecolor=box.stroke, linewidth=0.72 * self._scale, linestyle=dashes
            )

    def _rectangle(self, box: Box, linewidth: float = 0, **style: Any) -> Any:
        from matplotlib.patches import Rectangle

        corner = (box.x, box.y)
        return Rectangle(corner, box.width, box.height, transform=self._place, linewidth=linewidth, **style)

    def _text(self, label: Label) -> Any:
        from matplotlib.text import Text
        from matplotlib.transforms import IdentityTransform

        x, y = self._place.transform((label.x, label.y))
        known = self._known[label.bold]
        return Text(
            x,
            y,
            "".join(one if ord(one) in known else _REPLACEMENT for one in label.text),
            color=label.colour,
            horizontalalignment="right" if label.anchor == "end" else "left",
            verticalalignment="baseline",
            fontproperties=self._fonts[label.bold],
            # In points, of which there are 72 to an inch of _DPI pixels.
            fontsize=label.size * self._scale * 72 / _DPI,
            usetex=False,
            parse_math=False,
            transform=IdentityTransform(),
        )
