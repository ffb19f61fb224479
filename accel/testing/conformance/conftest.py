"""What the tests of the suite share: lanes for vCPUs, and how long to wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from accel.machine import Machine
from accel.testing.claims import Claims, claims_of
from accel.testing.conformance.lane import Lane, Lanes
from accel.testing.machines import MachineFactory

_HERE = Path(__file__).parent


@pytest.fixture
def claims(accelerator_name: str) -> Claims:
    """What the accelerator claims."""
    return claims_of(accelerator_name)


@pytest.fixture
def patience(pytestconfig: pytest.Config) -> float:
    """Longest wait, in seconds, for what has to happen."""
    return float(pytestconfig.getoption("accel_timeout"))


@pytest.fixture
def lane(machine: MachineFactory, patience: float) -> Iterator[Lanes]:
    """The lane of a vCPU of a machine: `lane(one)`, `lane(one, 1)`; ended before the machines are closed."""
    made: dict[int, Lane] = {}

    def make(one: Machine, index: int = 0) -> Lane:
        vcpu = one.vm.vcpus[index]
        if id(vcpu) not in made:
            made[id(vcpu)] = Lane(vcpu, patience)
        return made[id(vcpu)]

    yield make
    for one in made.values():
        one.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have pytest-timeout, where it is, end a test that hangs in spite of all deadlines, and go on with the next."""
    if config.pluginmanager.hasplugin("timeout"):
        limit = 60 + 3 * float(config.getoption("accel_timeout"))
        for item in items:
            if item.path.parent == _HERE:
                item.add_marker(pytest.mark.timeout(limit, method="signal"))
