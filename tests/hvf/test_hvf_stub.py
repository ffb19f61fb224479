"""The hvf stub: it registers, and it never pretends."""

import sys

import pytest

from accel.backend import Accelerator, VmConfig
from accel.errors import CapabilityError
from accel_hvf_stub.plugin import HvfAccelerator, accel_register_accelerators


def test_hvf_stub_registers_one_accelerator_for_arm64() -> None:
    found: list[Accelerator] = []
    accel_register_accelerators(found.append)
    assert [(one.name, one.executes) for one in found] == [("hvf", {"arm64"})]


@pytest.mark.parametrize(("host", "reason"), [("linux", "macOS only"), ("darwin", "is a stub")])
def test_hvf_stub_is_unavailable_with_the_reason_of_this_host(
    monkeypatch: pytest.MonkeyPatch, host: str, reason: str
) -> None:
    monkeypatch.setattr(sys, "platform", host)
    available = HvfAccelerator().probe()
    assert not available.ok
    assert reason in available.reason
    with pytest.raises(CapabilityError, match=reason):
        HvfAccelerator().create_vm(VmConfig())
