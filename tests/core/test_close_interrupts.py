"""Ctrl-C while a VM or a vCPU is closed, wherever it comes: all is released, or nothing, and it is closed again."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType

import pytest

import accel
import accel_mock
from accel import blocker

#: Where calls are interrupted: what closing calls, but not locks, which are C but for their validation in tests.
_PLACES = (blocker.__file__, accel.memory.__path__[0], accel_mock.__path__[0])


def interrupted_at(number: int, call: Callable[[], None]) -> bool:
    """Make `call`, with SIGINT as it begins the function of that number in `_PLACES`; return whether it got there."""
    begun = 0

    def trace(frame: FrameType, event: str, argument: object) -> None:
        nonlocal begun
        if frame.f_code.co_filename.startswith(_PLACES):
            begun += 1
            if begun == number:
                signal.raise_signal(signal.SIGINT)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return begun >= number


def noted(monkeypatch: pytest.MonkeyPatch, backend: object, closed: list[object]) -> None:
    """Have a backend's `close` note its calls."""
    real = backend.close  # type: ignore[attr-defined]

    def close() -> None:
        closed.append(backend)
        real()

    monkeypatch.setattr(backend, "close", close)


@pytest.mark.parametrize("what", ["vm", "vcpu"])
def test_close_interrupted_at_any_call_releases_all_of_it_in_the_end(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    number, more = 0, True
    while more:
        number += 1
        with accel.open_accelerator("mock") as mock, mock.create_vm() as vm:
            vcpu, closed = vm.create_vcpu(0), list[object]()
            one: accel.Vm | accel.Vcpu = vm if what == "vm" else vcpu
            for backend in (vm.backend, vcpu.backend):
                noted(monkeypatch, backend, closed)
            more = interrupted_at(number, one.close)
            assert one.closed == (one.backend in closed), f"call {number}"
            one.close()
            vm.close()
        assert sorted(map(id, closed)) == sorted(map(id, (vm.backend, vcpu.backend))), f"call {number}"
    assert number > 6
