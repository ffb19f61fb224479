"""Exceptions through the guest's interrupt table: what a CPU does, and Unicorn leaves to others."""

from __future__ import annotations

from collections.abc import Callable

from accel.arch.x86 import X86State
from accel_unicorn.guest_memory import GuestMemory


def deliver(state: X86State, vector: int, code: int, memory: GuestMemory) -> X86State | None:
    return None


def system_call(state: X86State, read_msr: Callable[[int], int]) -> X86State:
    return state
