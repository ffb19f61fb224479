"""The rules of an MMIO access: which are accepted, which calls carry them out, and in what byte order.

`Device` is memory behind callbacks that refuse whatever `implemented` does not allow. The oracle knows no pieces: it
says byte by byte what an access gives and changes, and which bytes it may touch.
"""

from __future__ import annotations

import doctest
from itertools import pairwise

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from accel.errors import UsageError
from accel.memory import mmio
from accel.memory.mmio import ANY_ACCESS, AccessSizes, MmioOps, natural_pieces

POWERS = (1, 2, 4, 8)
REGION = 24


class Device:
    """Bytes behind callbacks, of a given byte order; every call is noted as (kind, offset, size) and judged."""

    def __init__(self, implemented: AccessSizes = ANY_ACCESS, endian="little", size: int = REGION) -> None:
        self.implemented = implemented
        self.endian = endian
        self.size = size
        # No byte is like another, and there is room for a unit that reaches beyond the region's end.
        self.memory = bytearray(range(1, size + 9))
        self.calls: list[tuple[str, int, int]] = []

    def _judge(self, kind: str, offset: int, size: int) -> None:
        sizes = self.implemented
        assert size in POWERS
        assert sizes.min <= size <= sizes.max
        assert sizes.unaligned or offset % size == 0
        assert 0 <= offset < self.size
        self.calls.append((kind, offset, size))

    def read(self, offset: int, size: int) -> int:
        self._judge("read", offset, size)
        return int.from_bytes(self.memory[offset : offset + size], self.endian)

    def write(self, offset: int, value: int, size: int) -> None:
        self._judge("write", offset, size)
        self.memory[offset : offset + size] = value.to_bytes(size, self.endian)

    def ops(self, *, read: bool = True, write: bool = True, valid: AccessSizes = ANY_ACCESS) -> MmioOps:
        return MmioOps(
            read=self.read if read else None,
            write=self.write if write else None,
            valid=valid,
            implemented=self.implemented,
            endian=self.endian,
        )

    def made(self, kind: str) -> list[tuple[int, int]]:
        """Return (offset, size) of the calls of `kind`."""
        return [call[1:] for call in self.calls if call[0] == kind]


@st.composite
def sizes(draw) -> AccessSizes:
    least, largest = sorted((draw(st.sampled_from(POWERS)), draw(st.sampled_from(POWERS))))
    return AccessSizes(least, largest, unaligned=draw(st.booleans()))


@st.composite
def accesses(draw) -> tuple[int, int]:
    """An access of 1 to 8 bytes within the region, at its very end now and then."""
    size = draw(st.integers(1, 8))
    return draw(st.integers(0, REGION - size) | st.just(REGION - size)), size


devices = st.builds(Device, sizes(), st.sampled_from(["little", "big"]))


def touched(sizes: AccessSizes, offset: int, size: int) -> list[int]:
    """Return the bytes that an access may touch: its own, or all of the aligned units they are in."""
    own = range(offset, offset + size)
    if sizes.unaligned and size in POWERS and size >= sizes.min:
        return list(own)
    return sorted({at - at % sizes.min + step for at in own for step in range(sizes.min)})


def partial_units(sizes: AccessSizes, offset: int, size: int) -> list[tuple[int, int]]:
    """Return the units of which some bytes are touched that are not the access's."""
    strange = set(touched(sizes, offset, size)) - set(range(offset, offset + size))
    return sorted({(at - at % sizes.min, sizes.min) for at in strange})


def buddies(offset: int, end: int, block: int, block_size: int) -> list[tuple[int, int]]:
    """Return the natural pieces, by halving a block until it lies within the bytes."""
    if block >= end or block + block_size <= offset:
        return []
    if offset <= block and block + block_size <= end and block_size <= 8:
        return [(block, block_size)]
    half = block_size // 2
    return buddies(offset, end, block, half) + buddies(offset, end, block + half, half)


def could_be_one(sizes: AccessSizes, one: tuple[int, int], two: tuple[int, int]) -> bool:
    """Whether an aligned call could stand in place of two neighbours."""
    return one[1] == two[1] and one[0] % (2 * one[1]) == 0 and 2 * one[1] <= sizes.max


def check_calls(device: Device, calls: list[tuple[int, int]], offset: int, size: int) -> None:
    """Assert that `calls` touch what they may, once, in order, and in as few calls as can be."""
    sizes = device.implemented
    # In this order, so it is a test of the order, and of no byte twice, too.
    assert [at + step for at, length in calls for step in range(length)] == touched(sizes, offset, size)
    partial = partial_units(sizes, offset, size)
    assert [call for call in calls if not offset <= call[0] <= call[0] + call[1] <= offset + size] == partial
    whole = [call for call in calls if call not in partial]
    if sizes.unaligned and size in POWERS and size >= sizes.min:
        assert {length for _, length in whole} == {min(size, sizes.max)}
    else:
        assert not [pair for pair in pairwise(whole) if sum(pair[0]) == pair[1][0] and could_be_one(sizes, *pair)]
    event(f"{len(whole)} whole, {len(partial)} partial")


# against the oracle


@settings(max_examples=500)
@given(devices, accesses())
def test_load_any_access_gives_its_bytes(device: Device, access: tuple[int, int]) -> None:
    offset, size = access
    before = bytes(device.memory)
    value = device.ops().load(offset, size)
    assert value == sum(before[offset + index] << 8 * index for index in range(size))
    assert device.memory == before
    assert device.made("write") == []
    check_calls(device, device.made("read"), offset, size)


@settings(max_examples=500)
@given(devices, accesses(), st.booleans(), st.data())
def test_store_any_access_changes_its_bytes(device: Device, access: tuple[int, int], readable: bool, data) -> None:
    offset, size = access
    value = data.draw(st.integers(0, (1 << 8 * size) - 1))
    wanted = bytearray(device.memory)
    if not readable:
        for at in touched(device.implemented, offset, size):
            wanted[at] = 0
    for index in range(size):
        wanted[offset + index] = value >> 8 * index & 0xFF
    device.ops(read=readable).store(offset, value, size)
    assert device.memory == wanted
    check_calls(device, device.made("write"), offset, size)
    # What is read is what is covered in part, once, right before it is written back.
    partial = partial_units(device.implemented, offset, size) if readable else []
    assert device.made("read") == partial
    for number, (kind, *call) in enumerate(device.calls):
        assert kind == "write" or device.calls[number + 1] == ("write", *call)


@settings(max_examples=300)
@given(devices, sizes(), accesses())
def test_is_direct_any_access_means_one_call_alike(device: Device, valid: AccessSizes, access: tuple[int, int]) -> None:
    ops = device.ops(valid=valid)
    value = ops.load(*access)
    one = device.calls == [("read", *access)] and device.read(*access) == value
    assert ops.is_direct(*access) == (one and ops.accepts(*access))
    event("direct" if ops.is_direct(*access) else "not direct")


@settings(max_examples=300)
@given(sizes(), accesses())
def test_accepts_any_access_judges_it_or_its_natural_pieces(valid: AccessSizes, access: tuple[int, int]) -> None:
    offset, size = access
    pieces = [access] if size in POWERS else buddies(offset, offset + size, 0, 32)
    wanted = all(valid.min <= length <= valid.max and (at % length == 0 or valid.unaligned) for at, length in pieces)
    assert MmioOps(valid=valid).accepts(*access) == wanted
    event("accepted" if wanted else "refused")


@given(st.integers(0, 100), st.integers(0, 100), st.sampled_from(POWERS))
def test_natural_pieces_any_bytes_are_the_halves_of_aligned_blocks(offset: int, size: int, largest: int) -> None:
    wanted = []
    for block in range(0, 200, largest):
        wanted += buddies(offset, offset + size, block, largest)
    assert list(natural_pieces(offset, size, largest)) == wanted


# fixed vectors: which calls


@pytest.mark.parametrize(
    ("implemented", "access", "calls"),
    [
        # As it is.
        (AccessSizes(1, 8), (8, 8), [(8, 8)]),
        (AccessSizes(4, 4), (4, 4), [(4, 4)]),
        (ANY_ACCESS, (3, 4), [(3, 4)]),
        # Too wide.
        (AccessSizes(1, 4), (8, 8), [(8, 4), (12, 4)]),
        (AccessSizes(1, 1), (4, 4), [(4, 1), (5, 1), (6, 1), (7, 1)]),
        (AccessSizes(1, 2, unaligned=True), (3, 4), [(3, 2), (5, 2)]),
        # Too narrow.
        (AccessSizes(4, 4), (5, 1), [(4, 4)]),
        (AccessSizes(4, 8), (6, 2), [(4, 4)]),
        (AccessSizes(8, 8), (2, 2), [(0, 8)]),
        # Too narrow, over two units, even where calls may be unaligned.
        (AccessSizes(4, 8), (3, 2), [(0, 4), (4, 4)]),
        (AccessSizes(4, 8, unaligned=True), (3, 2), [(0, 4), (4, 4)]),
        # Unaligned where that is not taken.
        (AccessSizes(1, 8), (3, 4), [(3, 1), (4, 2), (6, 1)]),
        (AccessSizes(1, 8), (1, 8), [(1, 1), (2, 2), (4, 4), (8, 1)]),
        (AccessSizes(2, 8), (1, 8), [(0, 2), (2, 2), (4, 4), (8, 2)]),
        (AccessSizes(2, 4), (1, 4), [(0, 2), (2, 2), (4, 2)]),
        (AccessSizes(4, 4), (2, 8), [(0, 4), (4, 4), (8, 4)]),
        # No size of a processor.
        (ANY_ACCESS, (1, 3), [(1, 1), (2, 2)]),
        (AccessSizes(1, 4), (0, 7), [(0, 4), (4, 2), (6, 1)]),
        (AccessSizes(4, 4), (1, 3), [(0, 4)]),
        (AccessSizes(2, 2, unaligned=True), (1, 3), [(0, 2), (2, 2)]),
        # Beyond the region's end, which is no multiple of the least size.
        (AccessSizes(4, 4), (REGION - 3, 3), [(REGION - 4, 4)]),
    ],
)
def test_load_rule_makes_these_calls(implemented: AccessSizes, access: tuple[int, int], calls) -> None:
    device = Device(implemented)
    device.ops().load(*access)
    assert device.made("read") == calls
    device.calls.clear()
    device.ops().store(access[0], 0, access[1])
    assert device.made("write") == calls


def test_load_unit_beyond_the_region_is_passed_whole() -> None:
    device = Device(AccessSizes(4, 4), size=6)
    assert device.ops().load(5, 1) == 6
    assert device.calls == [("read", 4, 4)]


def test_store_unit_beyond_the_region_writes_back_what_was_read() -> None:
    device = Device(AccessSizes(4, 4), "big", size=6)
    device.ops().store(5, 0xAA, 1)
    assert device.calls == [("read", 4, 4), ("write", 4, 4)]
    assert device.memory[4:8] == bytes([5, 0xAA, 7, 8])


def test_store_over_two_units_finishes_one_before_the_next() -> None:
    device = Device(AccessSizes(4, 4))
    device.ops().store(2, 0xDDCC_BBAA, 4)
    assert device.calls == [("read", 0, 4), ("write", 0, 4), ("read", 4, 4), ("write", 4, 4)]
    assert device.memory[:8] == bytes([1, 2, 0xAA, 0xBB, 0xCC, 0xDD, 7, 8])


# fixed vectors: byte order


@pytest.mark.parametrize(
    ("endian", "largest", "seen"),
    [
        ("little", 4, [(0, 0x11223344, 4)]),
        ("little", 2, [(0, 0x3344, 2), (2, 0x1122, 2)]),
        ("big", 4, [(0, 0x44332211, 4)]),
        ("big", 2, [(0, 0x4433, 2), (2, 0x2211, 2)]),
        ("big", 1, [(0, 0x44, 1), (1, 0x33, 1), (2, 0x22, 1), (3, 0x11, 1)]),
    ],
)
def test_store_byte_order_is_the_devices(endian, largest: int, seen) -> None:
    writes: list[tuple[int, int, int]] = []
    ops = MmioOps(write=lambda *call: writes.append(call), implemented=AccessSizes(1, largest), endian=endian)
    ops.store(0, 0x11223344, 4)
    assert writes == seen
    given_back = {at: value for at, value, _ in seen}
    ops = MmioOps(read=lambda at, size: given_back[at], implemented=AccessSizes(1, largest), endian=endian)
    assert ops.load(0, 4) == 0x11223344


def test_load_big_endian_narrow_takes_the_bytes_at_the_offset() -> None:
    ops = MmioOps(read=lambda at, size: 0x11223344, implemented=AccessSizes(4, 4), endian="big")
    assert [ops.load(at, 1) for at in range(4)] == [0x11, 0x22, 0x33, 0x44]


def test_store_big_endian_narrow_without_read_leaves_zeros() -> None:
    writes: list[tuple[int, int, int]] = []
    ops = MmioOps(write=lambda *call: writes.append(call), implemented=AccessSizes(4, 4), endian="big")
    ops.store(1, 0xAA, 1)
    assert writes == [(0, 0x00AA_0000, 4)]


# what is accepted


@pytest.mark.parametrize(
    ("valid", "access", "accepted"),
    [
        (ANY_ACCESS, (1, 8), True),
        (AccessSizes(), (1, 2), False),
        (AccessSizes(), (2, 2), True),
        (AccessSizes(2, 4), (0, 1), False),
        (AccessSizes(2, 4), (0, 2), True),
        (AccessSizes(2, 4), (0, 4), True),
        (AccessSizes(2, 4), (0, 8), False),
        (AccessSizes(2, 4, unaligned=True), (3, 4), True),
        # Natural pieces: 4 and 2; 2 and 1; 4, 2 and 1; 1 and 2.
        (AccessSizes(2, 4), (0, 6), True),
        (AccessSizes(2, 4), (4, 3), False),
        (AccessSizes(1, 2), (0, 7), False),
        (AccessSizes(1, 2), (1, 3), True),
    ],
)
def test_accepts_rule_gives_this_answer(valid: AccessSizes, access: tuple[int, int], accepted: bool) -> None:
    assert MmioOps(valid=valid).accepts(*access) is accepted


@pytest.mark.parametrize("size", [-1, 0, 9, 16])
def test_accepts_size_of_no_access_is_refused(size: int) -> None:
    assert not MmioOps().accepts(0, size)
    assert not MmioOps().is_direct(0, size)


def test_is_direct_refused_access_is_not() -> None:
    assert not MmioOps(valid=AccessSizes(4, 4)).is_direct(0, 2)
    assert MmioOps(valid=AccessSizes(4, 4)).is_direct(0, 4)


def test_is_direct_big_endian_is_for_bytes_only() -> None:
    assert MmioOps(endian="big").is_direct(3, 1)
    assert not MmioOps(endian="big").is_direct(0, 2)


# missing callbacks, odd results, exceptions


@pytest.mark.parametrize("size", range(1, 9))
def test_load_without_read_gives_all_ones(size: int) -> None:
    assert MmioOps(implemented=AccessSizes(4, 4), endian="big").load(1, size) == (1 << 8 * size) - 1


def test_store_without_write_reads_nothing() -> None:
    device = Device(AccessSizes(4, 4))
    device.ops(write=False).store(1, 0xFF, 1)
    assert device.calls == []


@pytest.mark.parametrize(("result", "value"), [(0x1_2345_6789, 0x2345_6789), (-1, 0xFFFF_FFFF), (-2, 0xFFFF_FFFE)])
def test_load_surplus_bits_of_a_result_are_dropped(result: int, value: int) -> None:
    ops = MmioOps(read=lambda at, size: result)
    assert ops.load(0, 4) == value
    assert MmioOps(read=lambda at, size: result, implemented=AccessSizes(4, 4)).load(0, 8) == value << 32 | value


def test_load_surplus_bits_of_a_piece_stay_out_of_the_next() -> None:
    ops = MmioOps(read=lambda at, size: 0xA00 | at, implemented=AccessSizes(1, 1))
    assert ops.load(0, 4) == 0x0302_0100


def test_store_surplus_bits_of_a_read_are_not_written_back() -> None:
    writes: list[tuple[int, int, int]] = []
    ops = MmioOps(lambda at, size: -1, lambda *call: writes.append(call), implemented=AccessSizes(2, 2), endian="big")
    ops.store(0, 0, 1)
    assert writes == [(0, 0x00FF, 2)]


def test_store_surplus_bits_of_the_value_are_dropped() -> None:
    for implemented in (ANY_ACCESS, AccessSizes(4, 4)):
        device = Device(implemented)
        device.ops().store(4, 0x1_23AA, 1)
        assert device.memory[3:7] == bytes([4, 0xAA, 6, 7])


@pytest.mark.parametrize("result", [None, 1.0, "1", b"1"])
def test_load_result_that_is_no_integer_is_a_type_error(result) -> None:
    with pytest.raises(TypeError):
        MmioOps(read=lambda at, size: result).load(0, 4)


def test_store_callback_that_raises_leaves_earlier_calls_made() -> None:
    device = Device(AccessSizes(1, 2))
    problem = RuntimeError("register 2")

    def write(offset: int, value: int, size: int) -> None:
        if offset == 2:
            raise problem
        device.write(offset, value, size)

    with pytest.raises(RuntimeError) as caught:
        MmioOps(device.read, write, implemented=device.implemented).store(0, 0xDDCC_BBAA_9988_7766, 8)
    assert caught.value is problem
    assert device.calls == [("write", 0, 2)]
    assert device.memory[:4] == bytes([0x66, 0x77, 3, 4])


def test_load_callback_that_raises_ends_the_access() -> None:
    reads: list[int] = []

    def read(offset: int, size: int) -> int:
        reads.append(offset)
        raise LookupError("no such register")

    with pytest.raises(LookupError, match="no such register"):
        MmioOps(read, implemented=AccessSizes(1, 1)).load(0, 4)
    assert reads == [0]


# what cannot be


def test_access_sizes_powers_of_two_in_order_are_taken() -> None:
    for least in POWERS:
        for largest in POWERS:
            if least <= largest:
                assert (AccessSizes(least, largest).min, AccessSizes(least, largest).max) == (least, largest)


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ((0, 4), "min = 0: must be 1, 2, 4 or 8"),
        ((3, 4), "min = 3: must be 1, 2, 4 or 8"),
        ((1, 16), "max = 16: must be 1, 2, 4 or 8"),
        ((1, 4.0), r"max = 4\.0: must be 1, 2, 4 or 8"),
        (("1", 4), "min = '1': must be 1, 2, 4 or 8"),
        ((4, 2), "min = 4 is above max = 2"),
    ],
)
def test_access_sizes_that_cannot_be_are_refused(sizes, problem: str) -> None:
    with pytest.raises(UsageError, match=f"^access sizes: {problem}$"):
        AccessSizes(*sizes)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"read": 0}, "read = 0: must be a function or None"),
        ({"write": b""}, "write = b'': must be a function or None"),
        ({"write_run": "x"}, "write_run = 'x': must be a function or None"),
        ({"valid": (1, 4)}, r"valid = \(1, 4\): must be AccessSizes, such as AccessSizes\(1, 4\)"),
        ({"implemented": None}, r"implemented = None: must be AccessSizes, such as AccessSizes\(1, 4\)"),
        ({"endian": "middle"}, "endian = 'middle': must be 'little' or 'big'"),
    ],
)
def test_mmio_ops_that_cannot_be_are_refused(fields, problem: str) -> None:
    with pytest.raises(UsageError, match=f"^MMIO operations: {problem}$"):
        MmioOps(**fields)


def test_mmio_ops_examples_hold() -> None:
    result = doctest.testmod(mmio)
    assert (result.failed, result.attempted > 4) == (0, True)
