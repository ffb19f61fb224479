"""Random instruction sequences on KVM and on Unicorn: the same registers, flags where defined, memory and accesses.

What differs is shrunk and printed as instructions. `known_differences.py` lists what is known to differ, and why; by
hand, ``pytest -m soak`` runs 20,000 sequences of other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
from attrs import evolve
from known_differences import EVERYWHERE, KNOWN, Known, Wrong, excluding
from two_sides import Side, differences, report, shrink
from x86_draw import NothingToDrawError, draw_fault, draw_sequence, draw_unit
from x86_faults import FAULTS
from x86_forms import FORMS, Form
from x86_modes import BY_NAME, CODE, HANDLERS, MODES, VECTORS, Mode
from x86_sequences import Sequence

#: Sequences of each mode and kind, so that the tests take some ten seconds.
_SEQUENCES, _DEVICE_SEQUENCES, _UNITS, _FAULTS = 100, 40, 2, 3
_SOAK = 20_000
#: A known difference shows in one of so many units at the latest.
_MOST_UNITS = 120

by_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


@pytest.fixture(scope="module")
def kvm() -> Iterator[Side]:
    with Side("kvm") as side:
        yield side


@pytest.fixture(scope="module")
def unicorn() -> Iterator[Side]:
    with Side("unicorn") as side:
        yield side


@pytest.fixture(scope="module")
def emulated() -> bool:
    """Whether KVM executes guest code in its instruction emulator, which knows no ENTER with a nesting level."""
    with Side("kvm") as side:
        return side.run(draw_unit(BY_NAME["protected32"], "enter nested", "0")).end != "halt"


@pytest.fixture(scope="module")
def here(emulated: bool) -> tuple[Known, ...]:
    """The known differences that show on this host."""
    return KNOWN if emulated else EVERYWHERE


def check(
    sequences: Iterable[Sequence], kvm: Side, unicorn: Side, *, faults: bool = False, renew: bool = False
) -> None:
    """Fail with a report of each of the first few sequences that differ, or do not end where they should.

    With `renew`, each finds the device page as if nobody had ever touched it.
    """

    def differs(sequence: Sequence) -> bool:
        if renew:
            unicorn.renew_device()
        return bool(differences(sequence, kvm.run(sequence), unicorn.run(sequence)))

    reports = []
    for sequence in sequences:
        one = kvm.run(sequence)
        end = HANDLERS if faults else CODE + len(sequence.code)
        ends = one.end == "halt" and 0 <= one.registers["rip"] - end <= (VECTORS if faults else 0)
        if not ends or differs(sequence):
            small = shrink(sequence, differs) if differs(sequence) else sequence
            reports.append(report(small, (kvm, unicorn)))
            if len(reports) == 3:
                break
    assert not reports, "\n\n".join(["these differ:", *reports])


def units(mode: Mode, forms: dict[str, Form], draw: Callable[..., Sequence], count: int, here: Iterable[Known]):
    """Yield so many units of each form that exists in a mode; none of forms of which all is known to differ."""
    excluded = excluding(here)
    for name in (one.name for one in forms.values() if one.exists(mode)):
        try:
            yield from [draw(mode, name, f"{seed}", excluded) for seed in range(count)]
        except NothingToDrawError:
            assert any(name in one.forms and mode.name in one.modes for one in here) or mode.name.endswith("bases")


@pytest.mark.kvm
@by_mode
def test_each_form_does_on_unicorn_what_it_does_on_kvm(mode, kvm, unicorn, here):
    check(units(mode, FORMS, draw_unit, _UNITS, here), kvm, unicorn)


@pytest.mark.kvm
@by_mode
def test_random_sequence_does_on_unicorn_what_it_does_on_kvm(mode, kvm, unicorn, here):
    excluded = excluding(here)
    check((draw_sequence(mode, f"{seed}", excluded) for seed in range(_SEQUENCES)), kvm, unicorn)


@pytest.mark.kvm
@by_mode
def test_random_sequence_with_a_device_makes_the_same_accesses(mode, kvm, unicorn, here):
    excluded = excluding(here, device=True)
    seeds = [f"device {seed}" for seed in range(_DEVICE_SEQUENCES)]
    check((draw_sequence(mode, seed, excluded, device=True) for seed in seeds), kvm, unicorn)
    check((draw_sequence(mode, seed, excluded, device=True) for seed in seeds), kvm, unicorn, renew=True)


@pytest.mark.kvm
@by_mode
def test_exception_finds_the_same_handler_and_pushes_the_same(mode, kvm, unicorn, here):
    check(units(mode, FAULTS, draw_fault, _FAULTS, here), kvm, unicorn, faults=True)


@pytest.mark.kvm
@pytest.mark.soak
@pytest.mark.timeout(3600)
@by_mode
def test_soak_of_random_sequences(mode, kvm, unicorn, here):
    excluded, on_device = excluding(here), excluding(here, device=True)
    count = _SOAK // len(MODES)
    check((draw_sequence(mode, f"soak {seed}", excluded) for seed in range(count)), kvm, unicorn)
    check((draw_sequence(mode, f"soak {seed}", on_device, device=True) for seed in range(count // 4)), kvm, unicorn)
    renewed = (draw_sequence(mode, f"renewed {seed}", on_device, device=True) for seed in range(count // 4))
    check(renewed, kvm, unicorn, renew=True)
    check(units(mode, FORMS, draw_unit, 20, here), kvm, unicorn)
    check(units(mode, FAULTS, draw_fault, 60, here), kvm, unicorn, faults=True)


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("entry", "form"),
    [(one, form) for one in KNOWN for form in one.forms],
    ids=lambda value: getattr(value, "name", value),
)
def test_known_difference_still_differs(entry, form, kvm, unicorn, emulated, here):
    draw = draw_fault if form in FAULTS else draw_unit
    exists = {**FORMS, **FAULTS}[form].exists
    others = [one for one in here if one is not entry]
    modes = [mode for mode in MODES if mode.name in entry.modes and exists(mode)]
    applies = entry.wrong is not Wrong.EMULATOR or emulated
    shown = 0
    for mode in modes:
        try:
            lines = _first_difference(draw, mode, form, entry, others, (kvm, unicorn))
        except NothingToDrawError:
            continue  # where another entry is about the same instructions
        assert bool(lines) == applies, f"{entry.name} in {mode.name}"
        assert all(line.startswith(entry.shows) for line in lines), lines
        shown += 1
    assert shown


def _first_difference(draw, mode: Mode, form: str, entry: Known, others, sides) -> list[str]:
    """Return what differs in the first unit of `form` that is about `entry` and differs; nothing if none does."""
    excluded, more = excluding(others, device=True), {"device": True} if entry.device else {}
    for seed in range(_MOST_UNITS):
        sequence = draw(mode, form, f"{seed}", excluded, **more)
        last = sequence.nodes[-1]
        if any(entry.matches(one) for one in last.instructions):
            sequence = evolve(sequence, nodes=(last,))
            found = differences(sequence, *(side.run(sequence) for side in sides))
            if found:
                return found
    return []
