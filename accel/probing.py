"""Asking accelerators whether they can be used here, so that none can hold anybody up.

A probe opens devices, loads libraries and may be anyone's code. Each is asked on a thread of its own, and waited for
with a limit (``ACCEL_PROBE_TIMEOUT``). What does not answer in time stays on its thread, which is a daemon and ends
with the process; it is not asked again while it is there. A probe that holds the GIL for ever cannot be helped.

The thread costs about 0.1 ms, once when an accelerator is opened; no guest's exit comes by here. Where runs repeat
(`accel.turns`), probes are called directly: a limit is of no use on a clock that is not real.

Layer: below `plugins`, which says whose probe it was.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Sequence

from accel import turns
from accel.backend import Accelerator, Availability
from accel.errors import UsageError
from accel.plugin_checks import availability_problem, described

#: Longest wait for a probe, in seconds.
TIMEOUT_VARIABLE = "ACCEL_PROBE_TIMEOUT"
TIMEOUT = 5.0

Answer = Availability | str
"""What a probe says, or what is wrong with it."""


class _Question:
    """A probe on its way. `answer` is written by its thread before that ends, and read after."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.answer: Answer | None = None
        self.thread = threading.Thread(target=self.ask, name=f"probe-{accelerator.name}", daemon=True)

    def ask(self) -> None:
        """Ask, on whichever thread."""
        self.answer = _answer(self.accelerator)


#: Questions that were not answered in time, by identity of the accelerator, which they keep alive. Any thread; each
#: access is one operation of the dict, and two that ask at once ask twice at worst.
_unanswered: dict[int, _Question] = {}


def ask(accelerators: Sequence[Accelerator]) -> list[Answer]:
    """Ask all of them at the same time; return an answer for each, or in words what is wrong with its probe.

    Raises:
        UsageError: ``ACCEL_PROBE_TIMEOUT`` is no number of seconds.
    """
    limit = _limit()
    if turns.take is not None:
        return [_answer(one) for one in accelerators]
    questions = [_question(one) for one in accelerators]
    deadline = time.monotonic() + limit
    return [_wait(question, deadline, limit) for question in questions]


def _question(accelerator: Accelerator) -> _Question:
    question = _unanswered.get(id(accelerator))
    if question is not None and question.thread.is_alive():
        return question
    _unanswered.pop(id(accelerator), None)
    question = _Question(accelerator)
    try:
        question.thread.start()
    except RuntimeError:
        # The host has no more threads, and an answer without a limit is better than none.
        question.ask()
    return question


def _wait(question: _Question, deadline: float, limit: float) -> Answer:
    if question.thread.is_alive() and id(question.accelerator) not in _unanswered:
        # Also where the answer is there: nothing is left behind of a probe that answers.
        question.thread.join(max(0.0, deadline - time.monotonic()))
    if question.answer is not None:
        return question.answer
    _unanswered[id(question.accelerator)] = question
    return f"its probe did not answer within {limit:g} s; {TIMEOUT_VARIABLE} sets another limit"


def _answer(accelerator: Accelerator) -> Answer:
    try:
        found = accelerator.probe()
    except BaseException as error:  # a plugin may raise anything, and Ctrl-C goes to the main thread
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        return f"its probe failed: {described(error, type(accelerator).__module__)}"
    return availability_problem(found) or found


def _limit() -> float:
    given = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        limit = float(given or TIMEOUT)
    except ValueError:
        limit = math.nan
    # Longer than about 292 years no lock can wait.
    if not 0 < limit <= threading.TIMEOUT_MAX:
        raise UsageError(f"{TIMEOUT_VARIABLE} = {given!r}: must be a number of seconds, above 0")
    return limit
