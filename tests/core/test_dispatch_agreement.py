"""The handlers that dispatch builds against the general way of an access: same results, same calls, same locks.

Two stages of one make get the same accesses and the same edits in between. In one they go as exits through
`PortDispatch` and `MmioDispatch`, which live through all of it; in the other through `guest_access`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from random import Random

from attrs import evolve, frozen
from hypothesis import event, given, settings
from hypothesis import strategies as st

from accel.exits import pack_io
from accel.locks import DEVICE_LOCK, Lock
from accel.memory import guest_access
from accel.memory.mmio import ANY_ACCESS, AccessSizes, MmioOps
from accel.memory.region import MemoryRegion
from accel.mmio_dispatch import MmioDispatch
from accel.port_dispatch import PortDispatch


@frozen
class Made:
    """What a region is made of, and where its windows onto it stand."""

    kind: str
    at: int
    size: int
    valid: AccessSizes
    implemented: AccessSizes
    endian: str
    callbacks: str
    own_lock: bool
    readonly: bool


def sizes(random: Random) -> AccessSizes:
    """Return rules of access; those that refuse nearly everything are legal, but of little use."""
    if random.random() < 0.6:
        return random.choice([ANY_ACCESS, AccessSizes(1, 4), AccessSizes(1, 8)])
    low, high = sorted(random.choices([1, 2, 4, 8], k=2))
    return AccessSizes(low, high, unaligned=random.random() < 0.5)


def make_up(random: Random) -> Made:
    """Return a region of some kind."""
    return Made(
        random.choice(["mmio", "mmio", "mmio", "flash", "ram", "rom"]),
        random.randrange(0x28),
        random.choice([32, 24, 16, 8, 4, 2, 1]),
        sizes(random),
        sizes(random),
        random.choice(["little", "big"]),
        random.choice(["rw", "rw", "rw", "r", "w", "", "rwrun", "wrun"]),
        random.random() < 0.3,
        random.random() < 0.2,
    )


def value(random: Random) -> int:
    """Return what may be written; 3 rings."""
    return random.choice([3, random.getrandbits(64)])


class World:
    """One stage, with what its devices were called for and how often its doorbells rang."""

    def __init__(self, stage, made: list[Made], fd: int) -> None:
        self.stage = stage
        self.calls: list[tuple[object, ...]] = []
        self.made = made
        self.fd = fd
        with stage.transaction():
            self.regions = [self._region(number, one) for number, one in enumerate(made)]
            for one, region in zip(made, self.regions, strict=True):
                # Ports are windows from offset 1 on, so that offsets differ from addresses in both spaces.
                stage.memory.add(MemoryRegion.alias("window", region, readonly=one.readonly), one.at)
                stage.io.add(MemoryRegion.alias("window", region, min(1, one.size - 1)), one.at)

    def _region(self, number: int, one: Made) -> MemoryRegion:
        name = f"region {number}"
        contents = bytes((number * 64 + at) & 0xFF for at in range(one.size))
        if one.kind == "ram":
            region = MemoryRegion.ram(name, one.size)
            region.write(0, contents)
            return region
        if one.kind == "rom":
            return MemoryRegion.rom(name, contents)
        memory = bytearray(contents) + bytes(8)
        lock = Lock(DEVICE_LOCK) if one.own_lock else None

        def note(*call: object) -> None:
            big = self.stage.big_lock.held()
            self.calls.append((number, *call, lock is not None and lock.held(), big))

        def read(offset: int, size: int) -> int:
            note("read", offset, size)
            # More than was asked for, which is cut.
            return int.from_bytes(memory[offset : offset + size], one.endian) | 0xA5 << 8 * size

        def write(offset: int, value: int, size: int) -> None:
            note("write", offset, value, size)
            memory[offset : offset + size] = value.to_bytes(size, one.endian)

        ops = MmioOps(
            read if one.callbacks.startswith("r") else None,
            write if "w" in one.callbacks else None,
            (lambda offset, data: note("run", offset, data)) if one.callbacks.endswith("run") else None,
            one.valid,
            one.implemented,
            one.endian,
        )
        if one.kind == "flash":
            return MemoryRegion.rom_device(name, contents, ops=ops, lock=lock)
        return MemoryRegion.mmio(name, one.size, ops=ops, lock=lock)

    def edit(self, what: str, number: int, offset: int) -> None:
        """Change something about one of the regions."""
        region = self.regions[number]
        if what == "hide":
            region.set_enabled(not region.enabled)
        elif what == "move":
            self.stage.memory.root.children[number].move(offset)
            self.stage.io.root.children[number].move(offset + 1)
        elif what == "romd" and self.made[number].kind == "flash":
            region.set_romd(not region.romd)
        elif what == "bell" and self.made[number].kind == "mmio":
            if region.eventfds:
                one = region.eventfds[0]
                region.remove_eventfd(one.offset, one.fd, one.size, one.match)
            else:
                size = (0, 1, 2, 4)[offset % 4]
                offset = min(offset, region.size - 1)
                if offset + size <= region.size:
                    region.add_eventfd(offset, self.fd, size, 3 if size and offset % 2 else None)

    def rung(self) -> int:
        """Return how often its doorbells rang since the last time."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0


class ByHandlers(World):
    """Accesses come as exits."""

    def __init__(self, *made) -> None:
        super().__init__(*made)
        self.data = memoryview(bytearray(4096))
        self.record = memoryview(bytearray(32)).cast("Q")
        self.ports = PortDispatch(self.stage.io, self.data, self.stage.big_lock)
        self.devices = MmioDispatch(self.stage.memory, self.record, self.stage.big_lock)
        self.fast = 0

    def memory(self, is_write: bool, address: int, size: int, value: int) -> int:
        value &= (1 << 8 * size) - 1
        # What lies above the bytes of a write means nothing.
        self.record[0], self.record[1] = address, (value | 0xEE << 8 * size) & (1 << 64) - 1 if is_write else 0
        handler = self.devices.find(address, size | is_write << 32)
        self.fast += handler is not None
        if handler is not None:
            handler()
        elif is_write:
            guest_access.store(self.stage.memory, address, value, size)
        else:
            self.record[1] = guest_access.load(self.stage.memory, address, size)
        return 0 if is_write else self.record[1]

    def port(self, is_write: bool, port: int, size: int, values: list[int]) -> bytes:
        count = len(values)
        items = b"".join((value & (1 << 8 * size) - 1).to_bytes(size, "little") for value in values)
        self.data[: size * count + 1] = (items if is_write else bytes(size * count)) + b"\xcc"
        word = pack_io(is_out=is_write, size=size, port=port, count=count)
        if self.ports.view is not self.stage.io.view:
            self.ports.clear()
        (self.ports.handlers.get(word) or self.ports.build(word))()
        assert self.data[size * count] == 0xCC
        return b"" if is_write else bytes(self.data[: size * count])


class ByAccess(World):
    """Accesses go the general way."""

    def memory(self, is_write: bool, address: int, size: int, value: int) -> int:
        if is_write:
            guest_access.store(self.stage.memory, address, value & (1 << 8 * size) - 1, size)
            return 0
        return guest_access.load(self.stage.memory, address, size)

    def port(self, is_write: bool, port: int, size: int, values: list[int]) -> bytes:
        found = b""
        for value in values:
            if is_write:
                guest_access.store(self.stage.io, port, value & (1 << 8 * size) - 1, size)
            else:
                found += guest_access.load(self.stage.io, port, size).to_bytes(size, "little")
        return found


def steps(random: Random, made: list[Made]):
    """Yield what is done next, as a method of `World` and its arguments: accesses near the regions, and edits."""
    bells: dict[int, tuple[int, int]] = {}
    for _ in range(40):
        number = random.randrange(len(made))
        one = made[number]
        near = max(0, one.at + random.choice([random.randint(-3, 8), random.randint(0, one.size + 2)]))
        kind = random.choice(["memory"] * 4 + ["port"] * 3 + ["edit"] * 2 + ["ring"] * 2)
        if kind == "memory":
            size = random.choice([1, 2, 4, 8, random.randint(1, 8)])
            yield "memory", random.random() < 0.5, near, size, value(random)
        elif kind == "port":
            values = [value(random) for _ in range(random.choice([1, 1, 3]))]
            yield "port", random.random() < 0.5, near, random.choice([1, 2, 4]), values
        elif kind == "edit":
            what, offset = random.choice(["bell", "bell", "romd", "hide", "move"]), random.randrange(9)
            bells[number] = (min(offset, one.size - 1), (0, 1, 2, 4)[offset % 4])
            yield "edit", what, number, offset
        elif number in bells:
            offset, size = bells[number]
            if random.random() < 0.5:
                yield "memory", True, one.at + offset, size or 4, 3
            else:
                yield (
                    "port",
                    True,
                    max(0, one.at + offset - min(1, one.size - 1)),
                    size or 4,
                    [3] * random.choice([1, 2]),
                )


@settings(max_examples=100)
@given(st.randoms(use_true_random=True))
def test_dispatch_and_guest_access_agree(make_stage, random: Random) -> None:
    made = [make_up(random) for _ in range(random.randint(2, 4))]
    with ExitStack() as stack:
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        for fd in fds:
            stack.callback(os.close, fd)
        fast, slow = ByHandlers(make_stage(), made, fds[0]), ByAccess(make_stage(), made, fds[1])
        rung = 0
        for kind, *access in steps(random, made):
            found = [getattr(world, kind)(*access) for world in (fast, slow)]
            assert found[0] == found[1], (kind, access)
            assert fast.calls == slow.calls, (kind, access)
            bells = [world.rung() for world in (fast, slow)]
            assert bells[0] == bells[1], (kind, access)
            rung += bells[0]
            for one, two in ((fast.stage.memory, slow.stage.memory), (fast.stage.io, slow.stage.io)):
                assert one.unassigned == two.unassigned, (kind, access)
        assert [one.block and bytes(one.block.view) for one in fast.regions] == [
            one.block and bytes(one.block.view) for one in slow.regions
        ]
        event(f"handlers: {fast.fast > 0}, calls: {len(fast.calls) > 2}, bells: {rung > 0}")


@settings(max_examples=150)
@given(st.randoms(use_true_random=True))
def test_queued_writes_and_guest_access_agree(make_stage, random: Random) -> None:
    """A run of queued writes does what the writes do one by one; a device that takes runs gets the same bytes."""
    made = [make_up(random) for _ in range(2)]
    if random.random() < 0.7:
        made[1] = evolve(made[1], kind="mmio", callbacks="rwrun")
    port, size = max(0, made[1].at + random.randrange(-1, 6)), random.choice([1, 1, 2, 4])
    values = [value(random) & 0xFF for _ in range(random.randint(1, 5))]
    bell = random.randrange(4)
    with ExitStack() as stack:
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        for fd in fds:
            stack.callback(os.close, fd)
        queued, slow = World(make_stage(), made, fds[0]), ByAccess(make_stage(), made, fds[1])
        for world in (queued, slow):
            world.edit("bell", 1, bell)
        data = b"".join(one.to_bytes(size, "little") for one in values)
        guest_access.store_run(queued.stage.io, port, size, data)
        slow.port(True, port, size, values)
        assert queued.rung() == slow.rung()
        assert queued.stage.io.unassigned == slow.stage.io.unassigned
        if queued.calls and queued.calls[0][1] == "run":
            # `implemented` and the byte order are about single writes.
            ((_, _, _, run, *locks),) = queued.calls
            assert run == data
            assert all(call[-2:] == tuple(locks) for call in slow.calls)
        else:
            assert queued.calls == slow.calls
        event("run" if queued.calls and queued.calls[0][1] == "run" else "writes")
