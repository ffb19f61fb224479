"""Turns: how a vCPU that is Python code lets other threads go on where threads are cooperative, so that a run repeats.

Ordinary threads take turns by themselves, at moments that nobody can repeat. A simulation (`accel.testing.simulate`)
has one thread go at a time, up to its next wait or lock; a vCPU that only computes comes to neither. So an accelerator
whose vCPUs run in this process asks for turns: it calls `take` every so many operations of the guest, with how many it
made, and gets how many to make before the next call.

Lowest layer. In an ordinary run `take` is None, and costs nothing if it is looked at where a program is loaded.
"""

from __future__ import annotations

from collections.abc import Callable

#: Set on a simulation's own copy of this module; never anywhere else.
take: Callable[[int], int] | None = None
