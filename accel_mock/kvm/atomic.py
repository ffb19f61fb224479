"""What a processor does in one instruction: read and write at once.

Lowest layer. To an interleaving explorer a method with this decorator is one step; in an ordinary run a mutex keeps
others out. Never call anything that waits from inside.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_instruction = threading.RLock()


def atomically(method: Callable[P, R]) -> Callable[P, R]:
    """Return `method` as one step; a leaf, from any thread."""

    @functools.wraps(method)
    def one_step(*args: P.args, **kwargs: P.kwargs) -> R:
        with _instruction:
            return method(*args, **kwargs)

    return one_step
