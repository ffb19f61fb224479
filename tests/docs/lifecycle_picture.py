"""Draws ``docs/explanation/accelerators.svg``: the life of an accelerator, a VM and a vCPU, call by call.

``python tests/docs/lifecycle_picture.py`` writes it again; `test_docs_accelerators` fails where it is not what this
makes, or where a call on it is none that backends implement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from attrs import frozen

TARGET = Path(__file__).parents[2] / "docs" / "explanation" / "accelerators.svg"

_SANS = "'DejaVu Sans',Verdana,Helvetica,sans-serif"
_MONO = "'DejaVu Sans Mono',Menlo,Consolas,monospace"
_WIDTH, _HEIGHT = 980, 596
_TITLE = "The life of an accelerator, a VM and a vCPU"
_PLAIN, _GOOD, _HELD, _BAD, _GONE = "#ffffff", "#d8ecd8", "#fdf0cc", "#f6d5d5", "#e6e6e6"


@frozen
class Lane:
    """A band for one class of `accel.backend`."""

    y: int
    height: int
    title: str
    colour: str


@frozen
class State:
    """A box: what something is."""

    x: int
    y: int
    width: int
    lines: Sequence[str]
    fill: str = _PLAIN

    @property
    def height(self) -> int:
        """Of the box."""
        return 18 + 15 * len(self.lines)


@frozen
class Step:
    """An arrow with a label: what takes it from one state to another.

    Attributes:
        points: Where the arrow runs.
        at: Where the label begins, or ends.
        calls: The backend's methods, as ``Class.method``.
        says: What is done by the core, beside or in place of them.
    """

    points: Sequence[tuple[int, int]]
    at: tuple[int, int]
    calls: Sequence[str] = ()
    says: Sequence[str] = ()
    anchor: str = "middle"


LANES = [
    Lane(34, 126, "Accelerator: one for each kind, as long as the process", "#f2f6fb"),
    Lane(166, 206, "VmBackend: one for each VM, called under the big lock or inside the VM's gate", "#f6f9f1"),
    Lane(378, 206, "VcpuBackend: one for each vCPU, called inside its gate, by one thread at a time", "#faf6f0"),
]

STATES = [
    State(30, 62, 130, ["registered"]),
    State(330, 62, 130, ["usable"], _GOOD),
    State(330, 112, 130, ["passed over"], _GONE),
    State(30, 218, 130, ["empty"]),
    State(330, 218, 130, ["maps memory"]),
    State(600, 218, 130, ["has vCPUs"], _GOOD),
    State(600, 320, 130, ["vCPUs held"], _HELD),
    State(850, 320, 100, ["map lost"], _BAD),
    State(850, 218, 100, ["closed"], _GONE),
    State(30, 430, 130, ["ready"]),
    State(330, 430, 130, ["in the guest"], _GOOD),
    State(600, 430, 130, ["came out"]),
    State(600, 532, 130, ["at the gate"], _HELD),
    State(850, 430, 100, ["closed"], _GONE),
]

STEPS = [
    Step([(160, 78), (330, 78)], (245, 72), ["Accelerator.probe"]),
    Step([(95, 95), (95, 128), (330, 128)], (215, 122), says=["with the reason"]),
    Step(
        [(460, 78), (500, 78), (500, 156), (95, 156), (95, 218)], (512, 122), ["Accelerator.create_vm"], anchor="start"
    ),
    Step([(160, 234), (330, 234)], (245, 213), ["VmBackend.memory_listener", "VmBackend.io_listener"]),
    Step([(460, 234), (600, 234)], (530, 228), ["VmBackend.create_vcpu"]),
    Step([(730, 234), (850, 234)], (790, 228), ["VmBackend.close"]),
    Step([(640, 251), (640, 320)], (632, 305), says=["a memory change"], anchor="end"),
    Step([(690, 320), (690, 251)], (698, 290), says=["applied, or undone"], anchor="start"),
    Step([(730, 336), (850, 336)], (790, 330), says=["an undo fails"]),
    Step([(615, 251), (615, 284), (95, 284), (95, 430)], (245, 278), says=["each is run by a thread"]),
    Step([(160, 446), (330, 446)], (245, 425), ["VcpuBackend.prepare_thread", "VcpuBackend.run"]),
    Step([(460, 438), (600, 438)], (530, 418), ["VcpuBackend.kick"], ["or an exit"]),
    Step([(600, 454), (460, 454)], (530, 469), ["VcpuBackend.run"]),
    Step([(730, 446), (850, 446)], (790, 440), ["VcpuBackend.close"]),
    Step([(640, 463), (640, 532)], (632, 517), says=["while vCPUs are held"], anchor="end"),
    Step([(690, 532), (690, 463)], (698, 502), says=["they are let go"], anchor="start"),
]

#: What a vCPU that came out is asked besides: a note in its lane.
NOTE = (
    30,
    540,
    ["VcpuBackend.finish", "VcpuBackend.read_state", "VcpuBackend.write_state"],
    "Outside of the guest, for its registers:",
)


def calls() -> list[str]:
    """Return the methods on the picture, as ``Class.method``."""
    return sorted({call for step in STEPS for call in step.calls} | set(NOTE[2]))


def svg_text() -> str:
    """Return the picture."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-family="{_SANS}" font-size="12">'
    )
    yield f"<title>{_TITLE}</title>"
    yield (
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#333333"/></marker></defs>'
    )
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>'
    yield _text(14, 22, _TITLE, "start", bold=True)
    for lane in LANES:
        yield f'<rect x="10" y="{lane.y}" width="{_WIDTH - 20}" height="{lane.height}" fill="{lane.colour}"/>'
        yield _text(_WIDTH - 20, lane.y + 18, lane.title, "end", colour="#555555")
    for step in STEPS:
        path = "L".join(f"{x} {y}" for x, y in step.points)
        yield f'<path d="M{path}" fill="none" stroke="#333333" marker-end="url(#head)"/>'
        x, y = step.at
        for number, call in enumerate(step.calls):
            yield _text(x, y + 14 * number, f"{call.partition('.')[2]}()", step.anchor, mono=True)
        for number, words in enumerate(step.says):
            yield _text(x, y + 14 * (len(step.calls) + number), words, step.anchor)
    for state in STATES:
        yield (
            f'<rect x="{state.x}" y="{state.y}" width="{state.width}" height="{state.height}" rx="6" '
            f'fill="{state.fill}" stroke="#333333"/>'
        )
        for number, line in enumerate(state.lines):
            yield _text(state.x + state.width // 2, state.y + 21 + 15 * number, line, "middle", bold=True)
    x, y, asked, words = NOTE
    yield _text(x, y, words, "start")
    yield _text(x, y + 16, ", ".join(f"{call.partition('.')[2]}()" for call in asked), "start", mono=True)
    yield "</svg>"


def _text(
    x: int, y: int, words: str, anchor: str, *, bold: bool = False, mono: bool = False, colour: str = "#111111"
) -> str:
    style = ' font-weight="bold"' if bold else ""
    style += f' font-family="{_MONO}" font-size="11"' if mono else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}"{style}>{escape(words)}</text>'


if __name__ == "__main__":
    TARGET.write_text(svg_text(), encoding="utf-8")
