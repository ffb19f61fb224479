"""ioeventfds: what rings, what cannot be one, and which of them go together."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.errors import AddressError, RegionError, UsageError
from accel.memory import guest_access
from accel.memory.ioeventfd import IoEventFd
from accel.memory.region import MemoryRegion


@pytest.fixture
def bells() -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    yield fds
    for fd in fds:
        os.close(fd)


def rung(fd: int) -> int:
    """Return how often `fd` was rung since the last time, without waiting."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


# rules


@pytest.mark.parametrize("size", [0, 1, 2, 4, 8])
def test_ioeventfd_of_each_size_is_one(size: int) -> None:
    assert IoEventFd(3, size, fd=0).size == size


@pytest.mark.parametrize(
    ("size", "match", "fd", "message"),
    [
        (3, None, 0, r"at 0x10: size 3 is none of 0 \(any\), 1, 2, 4 and 8"),
        (-1, None, 0, "size -1 is none"),
        (16, None, 0, "size 16 is none"),
        (0, 0, 0, "value 0x0 needs the size of the write"),
        (1, 0x100, 0, "value 0x100 does not fit into a write of 1 bytes"),
        (8, 1 << 64, 0, "does not fit into a write of 8 bytes"),
        (4, -1, 0, "value -0x1 does not fit"),
        (4, None, -1, "fd -1 is none; give an open eventfd"),
    ],
)
def test_ioeventfd_that_cannot_be_one_is_refused(size: int, match: int | None, fd: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        IoEventFd(0x10, size, match, fd)


def test_ioeventfd_value_may_be_the_greatest_of_its_size() -> None:
    assert IoEventFd(0, 8, (1 << 64) - 1, 0).match == (1 << 64) - 1


@pytest.mark.parametrize(
    ("size", "match", "write", "rings"),
    [
        (0, None, (0x10, 5, 1), True),
        (0, None, (0x10, 5, 8), True),
        (0, None, (0x11, 5, 1), False),
        (4, None, (0x10, 5, 4), True),
        (4, None, (0x10, 5, 2), False),
        (4, None, (0xF, 5, 4), False),
        (4, 5, (0x10, 5, 4), True),
        (4, 5, (0x10, 6, 4), False),
        (4, 0, (0x10, 0, 4), True),
        (4, 0, (0x10, 1, 4), False),
    ],
)
def test_ioeventfd_rings_at_its_place_for_its_size_and_value(size, match, write, rings: bool) -> None:
    assert IoEventFd(0x10, size, match, 0).rings(*write) is rings


_bells = st.builds(IoEventFd, st.integers(0, 1), st.sampled_from([0, 1, 2]), st.none(), st.integers(0, 2)) | st.builds(
    IoEventFd, st.integers(0, 1), st.sampled_from([1, 2]), st.integers(0, 2), st.integers(0, 2)
)


@given(_bells, _bells)
def test_ioeventfd_collides_where_one_write_would_ring_both(one: IoEventFd, other: IoEventFd) -> None:
    writes = [(offset, value, size) for offset in range(2) for value in range(3) for size in (1, 2, 4)]
    both = any(one.rings(*write) and other.rings(*write) for write in writes)
    assert one.collides(other) is other.collides(one) is both
    if one.key == other.key:
        assert both


def test_ioeventfds_are_ordered_by_place_then_size_then_value() -> None:
    ordered = [(0, 0, None), (0, 1, 0), (0, 1, 7), (0, 1, None), (0, 2, 3), (4, 0, None), (8, 4, 1)]
    made = [IoEventFd(*one, 0) for one in reversed(ordered)]
    assert [(one.offset, one.size, one.match) for one in sorted(made, key=lambda one: one.key)] == ordered


# the fd


def test_ioeventfd_of_an_open_eventfd_passes_the_check(bells) -> None:
    IoEventFd(0, fd=bells[0]).check_fd()


def test_ioeventfd_of_a_closed_fd_is_refused() -> None:
    fd = os.eventfd(0)
    os.close(fd)
    with pytest.raises(UsageError, match=f"fd {fd} is not open; give an eventfd and keep it open"):
        IoEventFd(0, fd=fd).check_fd()
    with pytest.raises(UsageError, match="is not open"):
        IoEventFd(0, fd=1 << 40).check_fd()


def test_ioeventfd_of_something_else_is_refused() -> None:
    """Ringing a file would write into it."""
    ends = os.pipe()
    try:
        with pytest.raises(UsageError, match=r"is pipe:\[.*no eventfd; make one with os.eventfd"):
            IoEventFd(0, fd=ends[1]).check_fd()
    finally:
        for fd in ends:
            os.close(fd)


def test_ioeventfd_adds_one_for_each_ring_and_stays_full(bells) -> None:
    bell = IoEventFd(0, fd=bells[0])
    bell.ring()
    bell.ring()
    assert rung(bells[0]) == 2
    os.eventfd_write(bells[0], (1 << 64) - 2)
    bell.ring()
    assert rung(bells[0]) == (1 << 64) - 2


def test_ioeventfd_that_was_closed_too_early_says_so(bells) -> None:
    fd = os.eventfd(0)
    os.close(fd)
    with pytest.raises(UsageError, match="keep it open until the doorbell is removed") as caught:
        IoEventFd(0, fd=fd).ring()
    assert caught.value.__cause__.errno == errno.EBADF


# in a region


def test_region_rings_instead_of_calling(stage, bells) -> None:
    written = []
    region = MemoryRegion.mmio("doors", 0x40, write=lambda *access: written.append(access))
    region.add_eventfd(8, bells[0], 4, 7)
    stage.memory.add(region, 0x1000)
    region.add_eventfd(0x10, bells[1])
    guest_access.store(stage.memory, 0x1008, 7, 4)
    guest_access.store(stage.memory, 0x1008, 8, 4)
    guest_access.store(stage.memory, 0x1010, 1, 2)
    guest_access.store(stage.memory, 0x1012, 1, 2)
    assert [rung(fd) for fd in bells] == [1, 1, 0]
    assert written == [(8, 8, 4), (0x12, 1, 2)]
    region.remove_eventfd(8, bells[0], 4, 7)
    guest_access.store(stage.memory, 0x1008, 7, 4)
    assert rung(bells[0]) == 0
    assert written[2:] == [(8, 7, 4)]


def test_region_doorbell_rings_at_each_place_that_shows_it(stage, bells) -> None:
    region = MemoryRegion.mmio("doors", 0x40)
    region.add_eventfd(8, bells[0], 2)
    stage.memory.add(MemoryRegion.alias("low", region), 0x1000)
    stage.memory.add(MemoryRegion.alias("high", region, 8), 0x2000)
    guest_access.store(stage.memory, 0x1008, 1, 2)
    guest_access.store(stage.memory, 0x2000, 1, 2)
    assert rung(bells[0]) == 2


def test_region_doorbells_stand_in_order(bells) -> None:
    region = MemoryRegion.mmio("doors", 0x40)
    for offset, size, match in [(8, 2, None), (0, 4, 9), (8, 1, 3), (0, 4, 2)]:
        region.add_eventfd(offset, bells[0], size, match)
    assert [(one.offset, one.size, one.match) for one in region.eventfds] == [
        (0, 4, 2), (0, 4, 9), (8, 1, 3), (8, 2, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("second", "refused"),
    [
        ((8, 4, 7), True),
        ((8, 4, None), True),
        ((8, 0, None), True),
        ((8, 4, 6), False),
        ((8, 2, 7), False),
        ((12, 4, 7), False),
    ],
)
def test_region_refuses_a_doorbell_for_a_write_that_rings_already(stage, bells, second, refused: bool) -> None:
    region = MemoryRegion.mmio("doors", 0x40)
    stage.memory.add(region, 0)
    region.add_eventfd(8, bells[0], 4, 7)
    before = region.eventfds
    offset, size, match = second
    if refused:
        with pytest.raises(RegionError, match="'doors': has an ioeventfd for this write at 0x8 already"):
            region.add_eventfd(offset, bells[1], size, match)
        assert region.eventfds == before
    else:
        region.add_eventfd(offset, bells[1], size, match)
        assert len(region.eventfds) == 2
    stage.check()


def test_region_refuses_what_is_no_doorbell_and_changes_nothing(stage, bells) -> None:
    region = MemoryRegion.mmio("doors", 0x40)
    stage.memory.add(region, 0)
    for arguments, error in [
        ((0x3D, bells[0], 4), AddressError),
        ((0x40, bells[0]), AddressError),
        ((-1, bells[0]), AddressError),
        ((0, -1), UsageError),
        ((0, bells[0], 3), UsageError),
        ((0, bells[0], 1, 256), UsageError),
    ]:
        with pytest.raises(error):
            region.add_eventfd(*arguments)
    closed = os.eventfd(0)
    os.close(closed)
    with pytest.raises(UsageError, match="is not open"):
        region.add_eventfd(0, closed)
    assert region.eventfds == ()
    with pytest.raises(RegionError, match="only writes to MMIO can ring"):
        MemoryRegion.ram("ram", 0x1000).add_eventfd(0, bells[0])
    with pytest.raises(RegionError, match="has no such ioeventfd at 0x0"):
        region.remove_eventfd(0, bells[0])
    stage.check()


def test_region_doorbell_whose_fd_is_closed_can_still_be_removed(stage) -> None:
    region = MemoryRegion.mmio("doors", 0x40)
    fd = os.eventfd(0)
    region.add_eventfd(0, fd)
    os.close(fd)
    region.remove_eventfd(0, fd)
    assert region.eventfds == ()
