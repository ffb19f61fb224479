"""What all tests share: lock validation, the rule that KVM tests run where KVM is usable, and its summary.

A test that needs a program or file of the system says so with ``@pytest.mark.needs("gcc", …)``: it is skipped with
that reason where one is missing, and fails where ``CI`` is set, since CI installs them all.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ["ACCEL_LOCKDEP"] = "1"

# No test asserts a time, also not by Hypothesis's limits for an example and for drawing one, which a host that stalls
# once exceeds; a failure prints how to repeat it.
settings.register_profile("any-host", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("any-host")

GUESTS = Path(__file__).parent.parent / "examples" / "guests"

_ran_on_kvm: set[str] = set()


def _kvm_problem() -> str:
    """Return why KVM cannot be used here, or an empty string."""
    from accel_kvm.plugin import KvmAccelerator

    available = KvmAccelerator().probe()
    return "" if available.ok else available.reason


def pytest_configure(config: pytest.Config) -> None:
    # As in a shell's background job, or under nohup: tests that interrupt themselves need the usual handlers.
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    config.stash[_PROBLEM] = _kvm_problem()
    config.stash[_LINES] = []


_PROBLEM = pytest.StashKey[str]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    problem = config.stash[_PROBLEM]
    chosen = config.getoption("markexpr")
    kept = []
    for item in items:
        if item.get_closest_marker("soak") and "soak" not in str(chosen):
            continue
        if problem and item.get_closest_marker("kvm"):
            item.add_marker(pytest.mark.skip(reason=f"needs KVM: {problem}"))
        elif missing := _missing(item):
            item.stash[_MISSING] = missing
            if "CI" not in os.environ:
                item.add_marker(pytest.mark.skip(reason=f"needs {missing}, which is not installed"))
        kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


_MISSING = pytest.StashKey[str]()


def _missing(item: pytest.Item) -> str:
    """Return what a test needs of the system and does not find, or an empty string."""
    needed = [name for marker in item.iter_markers("needs") for name in marker.args]
    return ", ".join(name for name in needed if not (Path(name).exists() if "/" in name else shutil.which(name)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if missing := item.stash.get(_MISSING, ""):
        pytest.fail(f"needs {missing}; .ci/run has to install it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if item.get_closest_marker("kvm"):
        if report.skipped and not item.config.stash[_PROBLEM] and _MISSING not in item.stash:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped although KVM is usable here: {report.longrepr}"
        elif call.when == "call" and report.passed:
            _ran_on_kvm.add(item.nodeid)
    return report


_LINES = pytest.StashKey[list[str]]()


#: What people set for their own terminal and runs; it would change what commands print.
_PERSONAL = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


@pytest.fixture(scope="session", autouse=True)
def _usual_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name in _PERSONAL or (name.startswith("ACCEL_") and name != "ACCEL_LOCKDEP"):
                patch.delenv(name)
        # A probe that has to wait for a busy host is no failure.
        patch.setenv("ACCEL_PROBE_TIMEOUT", "60")
        yield


@pytest.fixture
def summarize(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Take a line for the summary at the end."""
    return pytestconfig.stash[_LINES].append


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell whoever started this process, if the tests are spread over several, what the summary is to say."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["ran_on_kvm"] = sorted(_ran_on_kvm)
        output["lines"] = session.config.stash[_LINES]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear it."""
    output = getattr(node, "workeroutput", {})
    _ran_on_kvm.update(output.get("ran_on_kvm", ()))
    node.config.stash[_LINES].extend(output.get("lines", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[_LINES]:
        terminalreporter.write_line(line)
    problem = config.stash[_PROBLEM]
    count = len(_ran_on_kvm)
    text = f"real KVM: {count} tests passed on /dev/kvm" if not problem else f"real KVM: none ran; {problem}"
    terminalreporter.write_line(text)


@pytest.fixture
def guests() -> Path:
    """The folder with the example guests' images."""
    return GUESTS
