"""ioctl through libc: results, arguments, errno, repeats."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys

import pytest

from accel.errors import BackendError
from accel_kvm import abi
from accel_kvm import ioctl as ioctl_module
from accel_kvm.ioctl import ioctl, raise_errno

#: The kernel looks at the low 32 bits of a request, `ioctl` at all of them: KVM_RUN, but repeated on EINTR.
KVM_RUN_IN_DISGUISE = abi.KVM_RUN | 1 << 32


def test_ioctl_bad_descriptor_names_operation_and_errno() -> None:
    with pytest.raises(BackendError, match=r"^KVM_CREATE_VM failed: EBADF") as caught:
        ioctl(-1, abi.KVM_CREATE_VM, 0, "KVM_CREATE_VM")
    assert caught.value.operation == "KVM_CREATE_VM"
    assert caught.value.errno == errno.EBADF


def test_ioctl_descriptor_of_another_kind_says_so() -> None:
    with open("/dev/null", "rb") as null, pytest.raises(BackendError, match=r"ENOTTY.*not of its kind"):
        ioctl(null.fileno(), abi.KVM_GET_API_VERSION, 0, "KVM_GET_API_VERSION")


def test_raise_errno_detail_replaces_the_general_advice() -> None:
    with pytest.raises(BackendError, match=r"^X failed: EIO \(.*\); slot 3$"):
        raise_errno("X", errno.EIO, "slot 3")


def test_ioctl_escape_hatch_takes_any_request_and_object() -> None:
    """FIONREAD, which nothing here wraps, on a pipe."""
    fionread = 0x541B
    reader, writer = os.pipe()
    try:
        os.write(writer, b"12345")
        count = (ctypes.c_int * 1)()
        assert ioctl(reader, fionread, count, "FIONREAD") == 0
        assert count[0] == 5
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.kvm
def test_ioctl_returns_what_the_kernel_returns() -> None:
    with open("/dev/kvm", "rb", buffering=0) as system:
        version = ioctl(system.fileno(), abi.KVM_GET_API_VERSION, 0, "KVM_GET_API_VERSION")
    assert version == abi.KVM_API_VERSION


@pytest.fixture
def interrupted(raw_guest, monkeypatch: pytest.MonkeyPatch):
    """A guest that halts, whose KVM_RUN the kernel interrupts three times; and the results of each call."""
    guest = raw_guest("halt")
    guest.run.immediate_exit = 1
    results: list[int] = []

    def watched(*arguments: int) -> int:
        results.append(ioctl_module._libc.ioctl(*arguments))
        if len(results) == 3:
            guest.run.immediate_exit = 0
        return results[-1]

    monkeypatch.setattr(ioctl_module, "raw_ioctl", watched)
    return guest, results


@pytest.mark.kvm
def test_ioctl_run_interrupted_is_raised_and_not_repeated(interrupted) -> None:
    guest, results = interrupted
    with pytest.raises(BackendError) as caught:
        ioctl(guest.vcpu_fd, abi.KVM_RUN, 0, "KVM_RUN")
    assert caught.value.errno == errno.EINTR
    assert results == [-1]


@pytest.mark.kvm
def test_ioctl_other_request_interrupted_is_repeated(interrupted) -> None:
    guest, results = interrupted
    assert ioctl(guest.vcpu_fd, KVM_RUN_IN_DISGUISE, 0, "KVM_RUN") == 0
    assert results == [-1, -1, -1, 0]
    assert guest.run.exit_reason == abi.KVM_EXIT_HLT


FORKING = """
import errno, os, sys
from accel.errors import BackendError
from accel_kvm import abi
from accel_kvm.ioctl import ioctl

system = os.open("/dev/kvm", os.O_RDWR)
vm = ioctl(system, abi.KVM_CREATE_VM, 0, "KVM_CREATE_VM")
vcpu = ioctl(vm, abi.KVM_CREATE_VCPU, 0, "KVM_CREATE_VCPU")
child = os.fork()
if child == 0:
    try:
        ioctl(vcpu, abi.KVM_RUN, 0, "KVM_RUN")
    except BackendError as error:
        print(error, flush=True)
        os._exit(0 if error.errno == errno.EIO else 1)
    os._exit(2)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.kvm
def test_ioctl_in_a_forked_child_says_whose_vm_it_is() -> None:
    command = [sys.executable, "-c", FORKING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "another process's" in done.stdout
