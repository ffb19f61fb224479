"""Saying what an accelerator did wrong: each check gives one sentence for people who did not write the test.

The rule itself is the first line of the test's text, so that a report can put both side by side. Layer: below the tests
of the suite and what runs them.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import attrs

from accel.errors import AccelError
from accel.exits import Exit

T = TypeVar("T", bound=Exit)
E = TypeVar("E", bound=BaseException)


class Violation(AssertionError):
    """An accelerator breaks a rule; the text says what it did."""


class Stuck(Violation):
    """A call into an accelerator did not come back in time. The thread that made it is lost."""


def expect(holds: object, did: str) -> None:
    """Raise Violation, which says what the accelerator did, unless `holds`."""
    if not holds:
        raise Violation(did)


def due(found: Exit, kind: type[T], when: str, **fields: object) -> T:
    """Return the exit that a vCPU came out with, which has to be of this kind and have these fields.

    Raises:
        Violation: It is another; the message begins with `when`.
    """
    if type(found) is not kind or any(getattr(found, name) != value for name, value in fields.items()):
        raise Violation(f"{when} the vCPU came out with {shown(found)}; due was {_shown(kind.__name__, fields)}")
    return found


def shown(found: Exit) -> str:
    """Return an exit as text, numbers in hex."""
    names = [one.name for one in attrs.fields(type(found)) if not one.name.startswith("_")]
    return _shown(type(found).__name__, {name: getattr(found, name) for name in names})


def _shown(name: str, fields: dict[str, Any]) -> str:
    values = (f"{key}={value:#x}" if type(value) is int else f"{key}={value!r}" for key, value in fields.items())
    return f"{name}({', '.join(values)})" if fields else name


@contextmanager
def _refused(kind: type[BaseException], call: str) -> Any:
    try:
        yield
    except kind as error:
        expect(str(error), f"{call} raised {type(error).__name__} without a word of why")
    except Exception as error:
        raise Violation(f"{call} raised {described(error)}; due was {kind.__name__}") from error
    else:
        raise Violation(f"{call} went through; due was {kind.__name__}")


def refused(kind: type[BaseException], call: str) -> AbstractContextManager[None]:
    """Return a context that has to end with an error of this kind, which says why.

    Args:
        kind: The exception.
        call: What is called, for the message.
    """
    context: Callable[..., AbstractContextManager[None]] = _refused
    return context(kind, call)


def described(error: BaseException) -> str:
    """Return an exception with where it was raised, on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AccelError) or not frames:
        return text
    last = frames[-1]
    return f"{text} (in {last.name}, {os.path.basename(last.filename)}:{last.lineno})"


def sentence(error: BaseException) -> str:
    """Return what the accelerator did, if a test of the suite ended with `error`."""
    return str(error) if isinstance(error, Violation) else f"raised {described(error)}"
