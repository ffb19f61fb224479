"""The mock is KVM: random sequences of slot calls and guest operations come to the same on both, outcome by outcome."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from random import Random

import attrs
import pytest
from memory_sides import ANSWER, BASE, FIRST_NUMBER, NUMBERS, PAGE, PAGES, Region, Side, both_sides, errno_name

from accel.program import Add, Fetch, Load, Op, Store

SEQUENCES, LENGTH = 2000, 24
#: Bytes at the beginning of each page that are returns and stay so: only there a guest may fetch.
_CODE_BYTES = 64

#: An operation: what it is called with, and what it does to a side.
Step = tuple[str, Callable[[Side], object]]


class Sequences:
    """Makes random sequences; it knows which slots there are, so that calls are right more often than by chance."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.regions: dict[int, Region] = {}

    def step(self, kind: str) -> Step:
        """Return one operation of a kind; where it is a slot call, `took` says later whether it was taken."""
        return getattr(self, kind)()

    def _number(self, *, used: bool) -> int:
        numbers = [n for n in range(FIRST_NUMBER, FIRST_NUMBER + NUMBERS) if (n in self.regions) is used]
        return self._random.choice(numbers or [FIRST_NUMBER])

    def _fresh(self) -> Region:
        pages = self._random.randint(1, 4)
        return Region(
            self._random.randint(0, PAGES - pages),
            pages,
            self._random.randint(0, PAGES - pages),
            self._random.random() < 0.25,
            self._random.random() < 0.3,
        )

    def _set(self, number: int, region: Region | None) -> Step:
        return f"slot {number} = {region}", lambda side: errno_name(side.set(number, region))

    def create(self) -> Step:
        return self._set(self._number(used=False), self._fresh())

    def create_over(self) -> Step:
        """One that has a number already: of another size or place, mostly refused."""
        return self._set(self._number(used=True), self._fresh())

    def delete(self) -> Step:
        return self._set(self._number(used=self._random.random() < 0.9), None)

    def _changed(self, **what: object) -> Step:
        number = self._number(used=True)
        return self._set(number, attrs.evolve(self.regions.get(number, Region(0, 1, 0)), **what))

    def move(self) -> Step:
        return self._changed(gpa=self._random.randint(0, PAGES - 1))

    def toggle(self) -> Step:
        number = self._number(used=True)
        region = self.regions.get(number, Region(0, 1, 0))
        return self._set(number, attrs.evolve(region, logged=not region.logged))

    def make_readonly(self) -> Step:
        return self._changed(readonly=True)

    def misaligned(self) -> Step:
        return self._changed(skew=self._random.choice([1, 8, 0x800]))

    def take_log(self) -> Step:
        number = self._number(used=self._random.random() < 0.9)
        return f"log of {number}", lambda side: errno_name(side.log(number))

    def _address(self, size: int) -> int:
        page = self._random.randint(0, PAGES - 1)
        place = self._random.choice([_CODE_BYTES, 0x100, 0x7F8, PAGE - size])
        return BASE + page * PAGE + place

    def _guest(self, op: Op) -> Step:
        return str(op), lambda side: side.run(op)

    def _value(self, size: int) -> int:
        return self._random.getrandbits(8 * size)

    def load(self) -> Step:
        size = self._random.choice([1, 2, 4, 8])
        return self._expected(self._address(size), size)

    def load_across(self) -> Step:
        return self._expected(BASE + self._random.randint(1, PAGES - 1) * PAGE - self._random.randint(1, 7), 8)

    def _expected(self, address: int, size: int) -> Step:
        def run(side: Side) -> object:
            return side.run(Load(address, size, _bytes_at(side, address, size)))

        return f"load {size} at {address:#x}", run

    def store(self) -> Step:
        size = self._random.choice([1, 2, 4, 8])
        return self._guest(Store(self._address(size), self._value(size), size))

    def store_across(self) -> Step:
        address = BASE + self._random.randint(1, PAGES - 1) * PAGE - self._random.randint(1, 7)
        # Never into the returns at the start of the next page: what would be fetched then is anything.
        return self._guest(Store(address, 0xC3C3_C3C3_C3C3_C3C3, 8))

    def add(self) -> Step:
        size = self._random.choice([1, 2, 4, 8])
        return self._guest(Add(self._address(size), self._value(size), size))

    def fetch(self) -> Step:
        return self._guest(Fetch(BASE + self._random.randint(0, PAGES - 1) * PAGE + self._random.randint(0, 63)))


KINDS = (
    *("create", "create_over", "delete", "move", "toggle", "make_readonly", "misaligned", "take_log"),
    *("load", "load_across", "store", "store_across", "add", "fetch"),
)
#: How often each is chosen; there have to be slots for the rest to say anything.
_WEIGHTS = (5, 1, 2, 2, 2, 1, 1, 3, 5, 2, 5, 2, 3, 1)


def _bytes_at(side: Side, address: int, size: int) -> int:
    """Return what a guest has to read, byte by byte, by the slots that the side was given."""
    read = bytearray()
    for at in range(address, address + size):
        for slot in side.slots.values():
            if slot.gpa <= at < slot.gpa + slot.size:
                read.append(side.block.view[slot.hva - side.block.address + at - slot.gpa])
                break
        else:
            read.append(ANSWER)
    return int.from_bytes(read, "little")


# It takes some 15 seconds, all in one, and many times that on a host that is busy with other things.
@pytest.mark.timeout(900)
@pytest.mark.kvm
def test_memory_sides_agree_on_random_sequences(summarize: Callable[[str], None]) -> None:
    """Also after each sequence: the same bytes in the memory behind, and the same pages in the logs."""
    pairs: Counter[tuple[str, str]] = Counter()
    outcomes: Counter[str] = Counter()
    with both_sides() as (kvm, mock):
        for seed in range(SEQUENCES):
            sequences, said = Sequences(seed), []
            kvm.fill()
            mock.fill()
            kinds = sequences._random.choices(KINDS, _WEIGHTS, k=LENGTH)
            for kind in kinds:
                name, do = sequences.step(kind)
                found = do(kvm), do(mock)
                said.append(f"{kind}: {name} → {found[0]}")
                assert found[0] == found[1], f"sequence {seed}; the mock: {found[1]}\n" + "\n".join(said)
                outcomes[f"{kind}/{_sort(found[0])}"] += 1
                sequences.regions = {number: _region(kvm, slot) for number, slot in kvm.slots.items()}
            pairs.update(itertools.pairwise(kinds))
            for number in kvm.slots:
                assert kvm.log(number) == mock.log(number), (seed, number, said)
            assert bytes(kvm.block.view) == bytes(mock.block.view), (seed, said)
    wanted = set(itertools.product(KINDS, repeat=2))
    summarize(
        f"mock beside KVM: {SEQUENCES} sequences of {LENGTH} operations agree; {len(pairs)} of {len(wanted)} pairs of "
        f"operations, each at least {min(pairs.values())} times; {len(outcomes)} kinds of outcome"
    )
    assert set(pairs) == wanted
    assert set(outcomes) >= _OUTCOMES, _OUTCOMES - set(outcomes)


#: What has to come up among the outcomes, or the sequences say little.
_OUTCOMES = {
    *("create/0", "create/EEXIST", "create_over/EINVAL", "delete/0", "delete/EINVAL", "move/0", "move/EEXIST"),
    *("toggle/0", "make_readonly/0", "make_readonly/EINVAL", "misaligned/EINVAL", "take_log/pages", "take_log/ENOENT"),
    *("load/memory", "load/mmio", "store/memory", "store/mmio", "add/memory", "add/mmio", "fetch/memory"),
    *("fetch/internal error", "load_across/memory", "load_across/mmio", "store_across/memory", "store_across/mmio"),
}


def _sort(outcome: object) -> str:
    """Return an outcome without its numbers."""
    if isinstance(outcome, bytes):
        return "pages"
    if not isinstance(outcome, tuple):
        return str(outcome)
    if outcome[-1] == "internal error":
        return "internal error"
    return "mmio" if any(one[0] in ("read", "write") for one in outcome) else "memory"


def _region(side: Side, slot: object) -> Region:
    offset = (slot.hva - side.block.address) // PAGE
    return Region((slot.gpa - BASE) // PAGE, slot.size // PAGE, offset, slot.readonly, slot.log is not None)
