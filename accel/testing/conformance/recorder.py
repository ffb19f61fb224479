"""In the process that runs the tests: tells the one that started it what happens, one JSON document a line.

A pytest plugin that `session` names; never loaded otherwise. A test after which a thread is stuck in the accelerator
ends the process once that is told: the rest goes on in a new one, without a vCPU that spins beside it. A test that
hangs with everything that could end it is ended by faulthandler, which needs nothing of Python.
"""

from __future__ import annotations

import faulthandler
import json
import os
from collections.abc import Generator
from typing import Any

import pytest

from accel.testing.conformance.verdict import Stuck, sentence

#: What the process exits with where it leaves a stuck thread behind.
STUCK_CODE = 75


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `session` gives."""
    parser.addoption("--accel-record", type=int, help="file descriptor to write to")
    parser.addoption("--accel-limit", type=float, help="seconds after which a test is ended with the process")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to tell."""
    config.pluginmanager.register(Recorder(config), "accel-recorder")


class Recorder:
    """Tells of each test that it starts and how it ends."""

    def __init__(self, config: pytest.Config) -> None:
        self._descriptor: int = config.getoption("accel_record")
        self._limit: float = config.getoption("accel_limit")
        self._end: dict[str, Any] = {}
        # While tests run, what is written to standard error is captured.
        self._words = os.dup(2)

    def _tell(self, **event: object) -> None:
        data = json.dumps(event).encode() + b"\n"
        while data:
            data = data[os.write(self._descriptor, data) :]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Tell which tests there are."""
        self._tell(tests=[_about(item) for item in session.items])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Tell that a test begins, and how it ended."""
        self._tell(start=item.nodeid)
        self._end = {"end": item.nodeid, "outcome": "passed", "text": "", "detail": "", "seconds": 0.0}
        faulthandler.dump_traceback_later(self._limit, exit=True, file=self._words)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._tell(**self._end)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note how one phase of a test ended; the first that did not go well is what counts."""
        report = yield
        self._end["seconds"] += report.duration
        if report.passed or self._end["outcome"] != "passed":
            return report
        assert call.excinfo is not None
        error = call.excinfo.value
        if report.skipped:
            self._end |= {"outcome": "skipped", "text": getattr(error, "msg", None) or str(error)}
        else:
            did = sentence(error)
            if report.when == "teardown":
                did = f"when everything was closed after the test, it {did}" if did.startswith("raised") else did
            self._end |= {"outcome": "failed", "text": did, "detail": report.longreprtext}
            if isinstance(error, Stuck):
                self._tell(**self._end)
                os._exit(STUCK_CODE)
        return report


def _about(item: pytest.Item) -> dict[str, str]:
    """Return what people read of a test: its group, its name without the accelerator's, and the rule it is about."""
    assert isinstance(item, pytest.Function)
    group = item.path.stem.removeprefix("test_")
    name = item.originalname.removeprefix("test_").removeprefix(f"{group}_")
    if hasattr(item, "callspec"):
        case = item.callspec.id.replace(str(item.callspec.params.get("accelerator_name")), "", 1).strip("-")
        name += f"[{case}]" if case else ""
    text = (item.function.__doc__ or "").partition("\n\n")[0]
    return {"id": item.nodeid, "group": group, "name": name, "rule": " ".join(text.split())}
