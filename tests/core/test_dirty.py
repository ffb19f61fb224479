"""Dirty logs: counted clients, bitmaps as accelerators deliver them, and no page lost between threads.

The oracle keeps a set of page numbers per client and finds the pages of a range by looking at each of its bytes.
"""

from __future__ import annotations

import ctypes
import itertools
import random
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator

import attrs
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from accel.address import AddressRange
from accel.errors import AddressError, LockError, StateError, UsageError
from accel.locks import BIG_LOCK, DIRTY_LOCK, GATE, GATES_LOCK, Lock, note_released, note_taken
from accel.memory.dirty import DirtyClient, DirtyLog, DirtySnapshot

CLIENTS = list(DirtyClient)
VGA, CODE, MIGRATION = CLIENTS
EVERY = VGA | CODE | MIGRATION
PAGE = 4096


def dirty_pages(log: DirtyLog, client: DirtyClient = VGA) -> set[int]:
    return {page for page in range(-(-log.size // log.page_size)) if log.is_dirty(client, page * log.page_size)}


def pages_in(snapshot: DirtySnapshot) -> Iterator[int]:
    for dirty in snapshot.ranges():
        yield from range(dirty.start // snapshot.page_size, -(-dirty.end // snapshot.page_size))


@pytest.fixture
def log() -> DirtyLog:
    """A log of 20 pages, the last one short, in which the display logs."""
    made = DirtyLog(20 * PAGE - 100)
    made.start(VGA)
    return made


# clients


def test_dirty_clients_have_the_bits_of_the_field() -> None:
    assert [(client.name, client.value) for client in DirtyClient] == [("VGA", 1), ("CODE", 2), ("MIGRATION", 4)]


def test_dirty_mask_is_those_who_log_as_a_plain_int() -> None:
    log = DirtyLog(PAGE)
    masks = [log.mask]
    for change, clients in ((log.start, VGA), (log.start, CODE | MIGRATION), (log.stop, VGA | CODE)):
        change(clients)
        masks.append(log.mask)
    assert masks == [0, VGA, EVERY, MIGRATION]
    assert {type(mask) for mask in masks} == {int}


def test_dirty_client_started_twice_logs_until_stopped_twice(log: DirtyLog) -> None:
    log.mark(0, 1)
    log.start(VGA | CODE)
    assert log.is_dirty(VGA, 0)
    assert not log.is_dirty(CODE, 0)
    log.stop(VGA)
    assert log.is_dirty(VGA, 0)
    log.stop(VGA)
    assert log.mask == CODE


def test_dirty_client_loses_its_bits_when_it_stops(log: DirtyLog) -> None:
    log.mark(0, log.size)
    log.stop(VGA)
    log.mark(0, log.size)
    log.start(VGA)
    assert dirty_pages(log) == set()


def test_dirty_stop_without_start_raises_and_stops_nobody(log: DirtyLog) -> None:
    log.mark(0, 1)
    with pytest.raises(StateError, match="dirty-log client MIGRATION does not log this block; start it first"):
        log.stop(VGA | MIGRATION)
    assert log.mask == VGA
    assert log.is_dirty(VGA, 0)


def test_dirty_start_and_stop_of_nobody_change_nothing(log: DirtyLog) -> None:
    log.start(0)
    log.stop(0)
    assert log.mask == VGA


@pytest.mark.parametrize("clients", [8, 9, 1 << 64, -1])
def test_dirty_unknown_clients_raise_and_change_nothing(log: DirtyLog, clients: int) -> None:
    for change in (log.start, log.stop):
        with pytest.raises(UsageError, match="no dirty-log client; the clients are 0x7 in all"):
            change(clients)
    assert log.mask == VGA


def test_dirty_start_without_memory_raises_and_starts_nobody() -> None:
    """A bitmap of 2^49 bytes is more than any process can address."""
    log = DirtyLog(1 << 64)
    with pytest.raises(AddressError, match="no memory for a dirty log of 0x10000000000000000 bytes"):
        log.start(EVERY)
    assert log.mask == 0
    with pytest.raises(StateError):
        log.stop(VGA)


@pytest.mark.parametrize(("client", "error"), [(CODE, "CODE does not log"), (3, "0x3 is not one"), (0, "0x0 is not")])
def test_dirty_use_for_a_client_that_does_not_log_names_it(log: DirtyLog, client: int, error: str) -> None:
    for use in (log.is_dirty, log.collect, log.clear):
        with pytest.raises(StateError if client == CODE else UsageError, match=error):
            use(client, 0, 1)


# marking and collecting


@pytest.mark.parametrize(
    ("offset", "size", "pages"),
    [
        (0, 1, [0]),
        (PAGE - 1, 1, [0]),
        (PAGE, PAGE, [1]),
        (PAGE - 1, 2, [0, 1]),
        (PAGE + 1, PAGE, [1, 2]),
        (7 * PAGE, 1, [7]),
        (7 * PAGE, 2 * PAGE, [7, 8]),
        (3 * PAGE + 5, 16 * PAGE, range(3, 20)),
        (20 * PAGE - 101, 1, [19]),
        (0, 20 * PAGE - 100, range(20)),
        (5 * PAGE + 9, 0, []),
        (20 * PAGE - 100, 0, []),
    ],
)
def test_dirty_range_stands_for_the_pages_that_it_touches(log: DirtyLog, offset: int, size: int, pages) -> None:
    everything = set(range(20))
    log.mark(offset, size)
    assert dirty_pages(log) == set(pages)
    assert log.is_dirty(VGA, offset, size) is bool(pages)
    assert set(pages_in(log.collect(VGA, offset, size))) == set(pages)
    assert dirty_pages(log) == set()
    log.mark(0, log.size)
    log.clear(VGA, offset, size)
    assert dirty_pages(log) == everything - set(pages)


def test_dirty_mark_is_for_those_clients_of_the_mask_who_log() -> None:
    log = DirtyLog(4 * PAGE)
    log.start(VGA | MIGRATION)
    log.mark(0, 1)
    log.mark(PAGE, 1, MIGRATION)
    log.mark(2 * PAGE, 1, CODE | MIGRATION)
    log.mark(3 * PAGE, 1, CODE)
    log.mark(3 * PAGE, 1, 0)
    assert (dirty_pages(log, VGA), dirty_pages(log, MIGRATION)) == ({0}, {0, 1, 2})


def test_dirty_collect_clears_for_its_client_only(log: DirtyLog) -> None:
    log.start(MIGRATION)
    log.mark(0, log.size)
    assert log.collect(VGA, PAGE, PAGE).page_count == 1
    assert dirty_pages(log) == set(range(20)) - {1}
    assert dirty_pages(log, MIGRATION) == set(range(20))


@pytest.mark.parametrize(
    ("offset", "size"), [(-1, 1), (0, 20 * PAGE - 99), (20 * PAGE - 100, 1), (9, -1), (1 << 70, 1)]
)
def test_dirty_range_outside_of_the_block_raises_and_changes_nothing(log: DirtyLog, offset: int, size: int) -> None:
    log.mark(PAGE, 1)
    uses: list[Callable[[], object]] = [
        lambda: log.mark(offset, size),
        lambda: log.is_dirty(VGA, offset, size),
        lambda: log.collect(VGA, offset, size),
        lambda: log.clear(VGA, offset, size),
        lambda: DirtyLog(log.size).mark(offset, size),
    ]
    for use in uses:
        with pytest.raises(AddressError, match="is not within the dirty log of a block of 0x13f9c"):
            use()
    assert dirty_pages(log) == {1}


@pytest.mark.parametrize(("size", "page_size"), [(0, PAGE), (-1, PAGE), (PAGE, 0), (PAGE, 3), (PAGE, -4)])
def test_dirty_log_of_impossible_sizes_raises(size: int, page_size: int) -> None:
    with pytest.raises(AddressError, match="the size must be positive and the page size a power of two"):
        DirtyLog(size, page_size)


def test_dirty_log_shows_its_sizes_and_clients(log: DirtyLog) -> None:
    assert repr(log) == "<DirtyLog 0x13f9c bytes in pages of 0x1000, <DirtyClient.VGA: 1>>"


# snapshots


def test_dirty_snapshot_has_ranges_of_whole_pages_cut_at_the_end_of_the_block(log: DirtyLog) -> None:
    for page in (1, 2, 9, 18, 19):
        log.mark(page * PAGE + 7, 1)
    snapshot = log.collect(VGA, 0, log.size)
    assert list(snapshot.ranges()) == [
        AddressRange(1 * PAGE, 3 * PAGE),
        AddressRange(9 * PAGE, 10 * PAGE),
        AddressRange(18 * PAGE, 20 * PAGE - 100),
    ]
    assert snapshot == DirtySnapshot(0, log.size, PAGE, bytes([0b110, 0b10, 0b1100]))
    assert snapshot.page_count == 5


def test_dirty_snapshot_of_a_part_counts_its_bits_from_its_first_page(log: DirtyLog) -> None:
    log.mark(0, log.size)
    log.clear(VGA, 4 * PAGE, 1)
    snapshot = log.collect(VGA, 3 * PAGE + 1, 9 * PAGE)
    assert snapshot == DirtySnapshot(3 * PAGE, 10 * PAGE, PAGE, bytes([0b11111101, 0b11]))
    assert list(snapshot.ranges()) == [AddressRange(3 * PAGE, 4 * PAGE), AddressRange(5 * PAGE, 13 * PAGE)]
    assert [snapshot.is_dirty(page * PAGE) for page in (3, 4, 5, 12)] == [True, False, True, True]
    assert not snapshot.is_dirty(4 * PAGE, PAGE)
    assert snapshot.is_dirty(4 * PAGE, PAGE + 1)
    assert not snapshot.is_dirty(5 * PAGE, 0)


def test_dirty_snapshot_of_nothing_is_empty(log: DirtyLog) -> None:
    log.mark(0, log.size)
    for offset in (0, 5 * PAGE + 9, log.size):
        snapshot = log.collect(VGA, offset, 0)
        assert (snapshot.size, snapshot.bitmap, snapshot.page_count, [*snapshot.ranges()]) == (0, b"", 0, [])


@pytest.mark.parametrize(("offset", "size"), [(2 * PAGE, 1), (5 * PAGE, 1), (4 * PAGE, PAGE + 1), (4 * PAGE, -1)])
def test_dirty_snapshot_knows_nothing_of_other_pages(log: DirtyLog, offset: int, size: int) -> None:
    snapshot = log.collect(VGA, 3 * PAGE, 2 * PAGE)
    with pytest.raises(AddressError, match=r"is not within the snapshot of \[0x3000, 0x5000\)"):
        snapshot.is_dirty(offset, size)


def test_dirty_snapshot_does_not_change(log: DirtyLog) -> None:
    log.mark(0, 1)
    snapshot = log.collect(VGA, 0, log.size)
    log.mark(0, log.size)
    assert list(pages_in(snapshot)) == [0]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        snapshot.offset = 1


# bitmaps of accelerators


def test_dirty_merge_adds_to_what_is_dirty_for_everyone_who_logs(log: DirtyLog) -> None:
    log.start(MIGRATION)
    log.mark(PAGE, 1, VGA)
    log.merge(0, bytes([0b101, 0, 0b1000, 0, 0, 0, 0, 0]))
    assert dirty_pages(log, VGA) == {0, 1, 2, 19}
    assert dirty_pages(log, MIGRATION) == {0, 2, 19}


def test_dirty_merge_when_nobody_logs_changes_nothing() -> None:
    log = DirtyLog(20 * PAGE)
    log.merge(0, b"\xff" * 8)
    log.start(VGA)
    assert dirty_pages(log) == set()


@pytest.mark.parametrize("offset", range(20))
def test_dirty_merge_ignores_bits_past_the_end_of_the_block(offset: int) -> None:
    log = DirtyLog(20 * PAGE - 100)
    log.start(VGA)
    log.merge(offset * PAGE, b"\xff" * 8)
    assert dirty_pages(log) == set(range(offset, 20))
    snapshot = log.collect(VGA, 0, log.size)
    assert snapshot.page_count == 20 - offset


@pytest.mark.parametrize("offset", [1, 3, 7, 8, 9])
def test_dirty_merge_counts_bits_from_the_page_at_the_offset(log: DirtyLog, offset: int) -> None:
    log.merge(offset * PAGE, (0b10_0000_0001).to_bytes(8, "little"))
    assert dirty_pages(log) == {offset, offset + 9}


def test_dirty_merge_of_larger_pages_covers_each_of_theirs(log: DirtyLog) -> None:
    """16 KiB of an accelerator are four pages of the log; the fifth bit begins with the last four, one cut short."""
    log.merge(0, bytes([0b10010, 0, 0, 0, 0, 0, 0, 0]), 4 * PAGE)
    assert dirty_pages(log) == {4, 5, 6, 7, 16, 17, 18, 19}


@pytest.mark.parametrize("factor", [2, 8, 16, 1 << 40])
def test_dirty_merge_of_larger_pages_ignores_what_is_past_the_end(factor: int) -> None:
    log = DirtyLog(19 * PAGE)
    log.start(VGA)
    log.merge(3 * PAGE, b"\xff" * 8, factor * PAGE)
    assert dirty_pages(log) == set(range(3, 19))


@pytest.mark.parametrize("length", range(4))
def test_dirty_merge_takes_a_bitmap_of_any_length(log: DirtyLog, length: int) -> None:
    log.merge(0, b"\xff" * length)
    assert dirty_pages(log) == set(range(min(8 * length, 20)))


def test_dirty_merge_takes_the_buffer_of_a_call_into_an_accelerator(log: DirtyLog) -> None:
    words = (ctypes.c_uint64.__ctype_le__ * 1)(0b11)
    for buffer in (bytearray(words), memoryview(words), memoryview(bytes(words))):
        log.clear(VGA, 0, log.size)
        log.merge(PAGE, buffer)
        assert dirty_pages(log) == {1, 2}


@pytest.mark.parametrize(
    ("offset", "page_size", "error"),
    [
        (1, None, "must begin with a page"),
        (PAGE // 2, PAGE, "must begin with a page"),
        (-PAGE, PAGE, "must begin with a page"),
        (20 * PAGE, PAGE, "must begin with a page of 0x1000 in a block of 0x13f9c"),
        (0, PAGE // 2, "pages of 0x800 cannot be merged into a dirty log with pages of 0x1000"),
        (0, 3 * PAGE, "times a power of two"),
        (0, 0, "times a power of two"),
        (0, -PAGE, "times a power of two"),
    ],
)
def test_dirty_merge_that_does_not_fit_raises_and_changes_nothing(log, offset, page_size, error) -> None:
    with pytest.raises(AddressError, match=error):
        log.merge(offset, b"\xff" * 8, page_size)
    assert dirty_pages(log) == set()


def test_dirty_merge_and_collect_of_a_million_pages_keep_every_bit() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    first, second = (random.Random(seed + n).randbytes(1 << 17) for n in range(2))
    log = DirtyLog(4 << 30)
    log.start(MIGRATION)
    log.merge(0, first)
    log.merge(0, second)
    snapshot = log.collect(MIGRATION, 0, log.size)
    assert snapshot.bitmap == bytes(a | b for a, b in zip(first, second, strict=True))
    assert snapshot.page_count == sum(byte.bit_count() for byte in snapshot.bitmap)
    assert not log.is_dirty(MIGRATION, 0, log.size)


# against the oracle


class DirtyLogMachine(RuleBasedStateMachine):
    """Random calls; the pages of a range are found by its bytes, those of a bitmap by its binary digits."""

    @initialize(page_size=st.sampled_from([1, 2, 16]), pages=st.integers(1, 70), short=st.integers(0, 15))
    def make(self, page_size: int, pages: int, short: int) -> None:
        self.page_size = page_size
        self.size = pages * page_size - short % page_size
        self.log = DirtyLog(self.size, page_size)
        self.counts = Counter[DirtyClient]()
        self.dirty: dict[DirtyClient, set[int]] = {}

    def touched(self, offset: int, size: int) -> set[int]:
        return {byte // self.page_size for byte in range(offset, offset + size)}

    def draw_range(self, data: st.DataObject) -> tuple[int, int]:
        offset = data.draw(st.integers(0, self.size), "offset")
        return offset, data.draw(st.integers(0, self.size - offset), "size")

    def draw_client(self, data: st.DataObject) -> DirtyClient:
        return data.draw(st.sampled_from(sorted(self.dirty)), "client")

    @rule(clients=st.sets(st.sampled_from(CLIENTS)))
    def start(self, clients: set[DirtyClient]) -> None:
        self.log.start(sum(clients))
        self.counts.update(clients)
        for client in clients:
            self.dirty.setdefault(client, set())

    @rule(clients=st.sets(st.sampled_from(CLIENTS), min_size=1, max_size=2))
    def stop(self, clients: set[DirtyClient]) -> None:
        if not clients <= set(self.dirty):
            with pytest.raises(StateError):
                self.log.stop(sum(clients))
            return
        self.log.stop(sum(clients))
        for client in clients:
            self.counts[client] -= 1
            if not self.counts[client]:
                del self.dirty[client]

    @rule(data=st.data(), clients=st.none() | st.sets(st.sampled_from(CLIENTS)))
    def mark(self, data: st.DataObject, clients: set[DirtyClient] | None) -> None:
        offset, size = self.draw_range(data)
        if clients is None:
            self.log.mark(offset, size)
        else:
            self.log.mark(offset, size, sum(clients))
        for client, pages in self.dirty.items():
            if clients is None or client in clients:
                pages |= self.touched(offset, size)

    @rule(data=st.data(), bitmap=st.binary(max_size=16), factor=st.sampled_from([1, 2, 4, 8, 16]))
    def merge(self, data: st.DataObject, bitmap: bytes, factor: int) -> None:
        first = data.draw(st.integers(0, self.size // self.page_size), "first page")
        self.log.merge(first * self.page_size, bitmap, factor * self.page_size)
        digits = "".join(f"{byte:08b}"[::-1] for byte in bitmap)
        covered = {first + n * factor + part for n, bit in enumerate(digits) if bit == "1" for part in range(factor)}
        for pages in self.dirty.values():
            pages |= covered & self.touched(0, self.size)

    @precondition(lambda self: self.dirty)
    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        client, (offset, size) = self.draw_client(data), self.draw_range(data)
        self.log.clear(client, offset, size)
        self.dirty[client] -= self.touched(offset, size)

    @precondition(lambda self: self.dirty)
    @rule(data=st.data())
    def collect(self, data: st.DataObject) -> None:
        client, (offset, size) = self.draw_client(data), self.draw_range(data)
        snapshot = self.log.collect(client, offset, size)
        touched = self.touched(offset, size)
        expected = self.dirty[client] & touched
        self.dirty[client] -= touched
        assert list(pages_in(snapshot)) == sorted(expected)
        assert snapshot.page_count == len(expected)
        bytes_in = {byte for dirty in snapshot.ranges() for byte in range(dirty.start, dirty.end)}
        assert bytes_in == {byte for byte in range(self.size) if byte // self.page_size in expected}
        assert all(a.end < b.start for a, b in itertools.pairwise(snapshot.ranges()))
        for byte in range(snapshot.offset, snapshot.offset + snapshot.size):
            assert snapshot.is_dirty(byte) is (byte in bytes_in)

    @precondition(lambda self: self.dirty)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        client, (offset, size) = self.draw_client(data), self.draw_range(data)
        assert self.log.is_dirty(client, offset, size) is bool(self.dirty[client] & self.touched(offset, size))

    @invariant()
    def log_says_what_the_sets_say(self) -> None:
        assert self.log.mask == sum(self.dirty)
        for client, pages in self.dirty.items():
            assert dirty_pages(self.log, client) == pages

    @invariant()
    def bitmaps_have_a_bit_per_page_and_no_more(self) -> None:
        page_count = -(-self.size // self.page_size)
        for bitmap in self.log._bitmaps.values():
            assert len(bitmap) == -(-page_count // 8)
            assert int.from_bytes(bitmap, "little") >> page_count == 0


TestDirtyLogAgainstSets = DirtyLogMachine.TestCase


# memory


@pytest.fixture
def allocated() -> Iterator[Callable[[], int]]:
    """How many bytes are allocated at the moment, of those since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()


def test_dirty_log_costs_a_bit_per_page_and_client_and_only_while_it_logs(allocated: Callable[[], int]) -> None:
    size, bitmap, little = 64 << 30, 2 << 20, 1 << 16
    log = DirtyLog(size)
    assert allocated() < little
    for clients, count in ((VGA, 1), (CODE | MIGRATION, 3), (EVERY, 3)):
        log.start(clients)
        assert abs(allocated() - count * bitmap) < little
    log.mark(0, size)
    log.merge(0, b"\xff" * 8)
    assert log.collect(VGA, 0, size).page_count == 16 << 20
    assert abs(allocated() - 3 * bitmap) < little
    log.stop(EVERY)
    log.stop(EVERY)
    assert allocated() < little


# threads


def test_dirty_every_call_that_touches_the_bits_takes_the_leaf_lock(log: DirtyLog) -> None:
    """A second lock of the class is refused while one is held, so a call that is not refused takes none."""
    uses: list[Callable[[], object]] = [
        lambda: log.start(CODE),
        lambda: log.stop(VGA),
        lambda: log.mark(0, 1),
        lambda: log.merge(0, b"\xff"),
        lambda: log.is_dirty(VGA, 0),
        lambda: log.collect(VGA, 0, 1),
        lambda: log.clear(VGA, 0, 1),
    ]
    with Lock(DIRTY_LOCK):
        for use in uses:
            with pytest.raises(LockError, match="one at a time"):
                use()
    assert log.mask == VGA
    assert dirty_pages(log) == set()


def test_dirty_mark_is_possible_under_any_other_lock_and_inside_a_gate(log: DirtyLog) -> None:
    class Inside:
        lock_class = GATE

    inside = Inside()
    with Lock(BIG_LOCK):
        note_taken(inside)
        try:
            with Lock(GATES_LOCK):
                log.mark(0, 1)
        finally:
            note_released(inside)
    assert dirty_pages(log) == {0}


def test_dirty_mark_of_a_block_that_nobody_logs_takes_no_lock() -> None:
    log = DirtyLog(PAGE)
    with Lock(DIRTY_LOCK):
        log.mark(0, 1)


@pytest.fixture
def _many_switches() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_many_switches")
def test_dirty_threads_that_mark_while_others_collect_lose_no_page(spawn) -> None:
    """Each page is marked once, by one of four threads that share every byte; two clients collect all the time."""
    groups = 2000
    log = DirtyLog(groups * 8 * PAGE)
    log.start(VGA | MIGRATION)
    barrier = threading.Barrier(6)
    done = threading.Event()

    def writer(write: Callable[[int], None]) -> Callable[[], None]:
        def run() -> None:
            barrier.wait()
            for group in range(groups):
                write(group * 8 * PAGE)

        return run

    def collect(client: DirtyClient) -> Counter[int]:
        seen: Counter[int] = Counter()
        barrier.wait()
        while not done.is_set():
            seen.update(pages_in(log.collect(client, 0, log.size)))
        seen.update(pages_in(log.collect(client, 0, log.size)))
        return seen

    def mark_two(at: int) -> None:
        log.mark(at, 1)
        log.mark(at + PAGE, PAGE)

    writers = [
        spawn(writer(mark_two)),
        spawn(writer(lambda at: log.mark(at + 2 * PAGE, PAGE))),
        spawn(writer(lambda at: log.mark(at + 3 * PAGE, 3 * PAGE))),
        spawn(writer(lambda at: log.merge(at, bytes([0b11000000, 0, 0, 0, 0, 0, 0, 0])))),
    ]
    collectors = [spawn(lambda client=client: collect(client)) for client in (VGA, MIGRATION)]
    try:
        for one in writers:
            one.join()
    finally:
        done.set()
    for one in collectors:
        assert one.join() == Counter(range(groups * 8))
