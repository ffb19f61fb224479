"""Ready-made guest programs for tests and demos; they run on every accelerator that has RAM where they reach.

Pure values, above `program`. Those that end with a verdict write it to an exit port: the error count, so that
0 means that the guest read nothing but what it expected.
"""

from __future__ import annotations

from typing import Literal

from accel.address import PAGE_SIZE, AddressRange
from accel.errors import AddressError
from accel.program import ERRORS, MAX_OPS, RETURN_BYTE, Add, Fetch, GuestProgram, Halt, Load, Loop, Op, Out, Store, text

#: Port of the debug console.
CONSOLE_PORT = 0xE9
#: Port of the debug exit device.
EXIT_PORT = 0xF4
#: Most places that `touch` can fit into a program: two operations each, and a few more.
MAX_PLACES = (MAX_OPS - 3) // 2


def hello(
    port: int = CONSOLE_PORT,
    message: bytes = b"hello from the guest\n",
    *,
    end: Literal["exit", "halt", "spin"] = "exit",
    exit_port: int = EXIT_PORT,
) -> GuestProgram:
    """Write `message` to `port`, byte by byte, and then write 0 to `exit_port`, halt at once, or spin."""
    endings: dict[str, tuple[Op, ...]] = {"exit": (Out(exit_port, 0),), "halt": (), "spin": (Loop((), None),)}
    return GuestProgram((*text(port, message), *endings[end], Halt()))


def touch(
    window: AddressRange,
    rounds: int,
    *,
    pattern: int = 0x5A00_0000,
    stride: int = PAGE_SIZE,
    exit_port: int = EXIT_PORT,
) -> GuestProgram:
    """In each round store 4 bytes every `stride` bytes of `window`, then read all back; report the errors.

    Each place has a value of its own (`pattern` plus its number), so that memory which shows at the wrong
    address is an error too. The last place is the last whole one inside `window`.

    Raises:
        AddressError: `window` holds no place, or more than `MAX_PLACES`.
    """
    addresses = range(window.start, window.end - 3, stride)
    if not 0 < len(addresses) <= MAX_PLACES:
        raise AddressError(
            f"{window} by {stride:#x} is {len(addresses)} places to touch, not 1 to {MAX_PLACES}; use another stride"
        )
    places = [(address, pattern + n & 0xFFFF_FFFF) for n, address in enumerate(addresses)]
    body = [Store(address, value) for address, value in places]
    checks = [Load(address, expect=value) for address, value in places]
    return GuestProgram((Loop((*body, *checks), rounds), Out(exit_port, ERRORS), Halt()))


def poll(
    address: int,
    expect: int,
    *,
    size: Literal[1, 2, 4, 8] = 4,
    rounds: int | None = None,
    exit_port: int = EXIT_PORT,
) -> GuestProgram:
    """Read `address` over and over, for ever or `rounds` times; then report how often it was not `expect`."""
    return GuestProgram((Loop((Load(address, size, expect),), rounds), Out(exit_port, ERRORS), Halt()))


def smp_count(counter: int, count: int, *, size: Literal[1, 2, 4, 8] = 8) -> GuestProgram:
    """On each vCPU add one to the shared `counter`, `count` times, atomically; then halt."""
    return GuestProgram((Loop((Add(counter, 1, size),), count), Halt()))


def call(address: int, rounds: int | None = None, *, exit_port: int = EXIT_PORT) -> GuestProgram:
    """Put a return instruction at `address` and execute it over and over; then write 0 to `exit_port`."""
    return GuestProgram((Store(address, RETURN_BYTE, 1), Loop((Fetch(address),), rounds), Out(exit_port, 0), Halt()))
