"""The pytest plugin of accel: tests that run on accelerators, the project's own conformance suite and anyone's.

It is a module by itself, and imports nothing of accel until a test uses what it brings: pytest loads it in every
project of an environment that has accel, and is not to be slower or noisier for it.

- ``--accel NAME`` says on which accelerators such tests run.
- The fixture `machine` makes machines on one of them, and closes them; `accelerator_name` is its name.
- The marker ``accelerators(...)`` says for one test on which it runs, or what it needs of them.

``docs/how-to/check-an-accelerator.md`` shows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from accel.testing.machines import MachineFactory

_MARKER = (
    "accelerators(*names, capabilities=(), executes=(), vcpus=1): run the test, which uses the fixture machine or "
    "accelerator_name, on these accelerators, or on those of --accel; skip it on one that does not offer what is needed"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("accel", "tests on accelerators")
    group.addoption(
        "--accel",
        action="append",
        default=[],
        metavar="NAMES",
        help="run tests that use the fixture machine on these accelerators, such as kvm,mock; may be repeated",
    )
    group.addoption(
        "--accel-timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="longest wait for what a guest or an accelerator is to do (default: 10)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; with ``--accel``, see whether there are such accelerators and one can be used."""
    config.addinivalue_line("markers", _MARKER)
    if config.getoption("accel"):
        from accel.testing.choosing import given

        given(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once on each accelerator that is chosen for it."""
    if "accelerator_name" in metafunc.fixturenames:
        from accel.testing.choosing import parametrize

        parametrize(metafunc)


@pytest.fixture
def accelerator_name(request: pytest.FixtureRequest) -> str:
    """The name of the accelerator that the test runs on; skips the test if that does not offer what it needs."""
    from accel.testing.choosing import check_offers

    check_offers(request)
    return str(request.param)


@pytest.fixture
def machine(accelerator_name: str, pytestconfig: pytest.Config) -> Iterator[MachineFactory]:
    """Makes machines on the accelerator that the test runs on, and closes them: `machine(cpus=2)`."""
    from accel.testing.machines import MachineFactory

    factory = MachineFactory(accelerator_name, pytestconfig.getoption("accel_timeout"))
    yield factory
    factory.close()
