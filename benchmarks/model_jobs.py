"""A guest of loads, stores and adds on the mock, and the same packing and unpacking in a plain loop.

A job returns the seconds that `count` guest operations took on each side. The pages are touched again and again, as a
guest's are, so nearly all operations find them in the vCPU's TLB.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from functools import partial

import accel
from accel.program import Add, GuestProgram, Load, Loop, Op, Store
from accel.testing.simulate import Simulation, simulate

_BASE = 0x1000
#: Places that one turn of the loop goes through, not all in one page, and the distance between two.
_PLACES, _STRIDE = 16, 0x340
#: Operations at each place.
_OPS = 4
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


def run(job: str, count: int) -> dict[str, float]:
    """Do the job. Raises KeyError for an unknown one."""
    return {"seconds": _JOBS[job](count), "peer_seconds": _plain(count)}


def _program(count: int) -> GuestProgram:
    ops: list[Op] = []
    for n in range(_PLACES):
        at = _BASE + n * _STRIDE
        ops += [Store(at, n + 1, 4), Load(at, 4, expect=n + 1), Add(at + 8, 1, 8), Load(at + 16, 8)]
    return GuestProgram([Loop(tuple(ops), _turns(count))])


def _turns(count: int) -> int:
    return max(1, count // (_PLACES * _OPS))


def _guest(count: int, library: Simulation | None = None) -> float:
    machine = (accel if library is None else library.accel).Machine.create("mock", memory="1M")
    with machine:
        machine.load(_program(count))
        started = time.perf_counter()
        machine.run()
        took = time.perf_counter() - started
        written = int.from_bytes(machine.memory.read(_BASE + 8, 8), "little")
        if written != _turns(count):
            raise SystemExit(f"the guest added {written} times, not {_turns(count)}")
    return took


def _repeatable(count: int) -> float:
    return simulate(partial(_guest, count), seed=1, most_seconds=None).value


def _plain(count: int) -> float:
    """Do the same to a bytearray, without a guest."""
    memory = memoryview(bytearray(1 << 20))
    places = [(n + 1, _BASE + n * _STRIDE) for n in range(_PLACES)]
    pack4, unpack4, pack8, unpack8 = _U32.pack_into, _U32.unpack_from, _U64.pack_into, _U64.unpack_from
    errors = 0
    started = time.perf_counter()
    for _ in range(_turns(count)):
        for value, at in places:
            pack4(memory, at, value)
            if unpack4(memory, at)[0] != value:
                errors += 1
            pack8(memory, at + 8, unpack8(memory, at + 8)[0] + 1)
            unpack8(memory, at + 16)
    return time.perf_counter() - started


_JOBS: dict[str, Callable[[int], float]] = {"model": _guest, "model-repeatable": _repeatable}
