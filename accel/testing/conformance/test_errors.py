"""Errors: what is not offered is refused, in words, by an error of accel; and none of another kind gets out."""

from __future__ import annotations

import pytest

from accel.arch.x86 import X86State
from accel.backend import HOLD_NEEDS, Capability, VmConfig
from accel.errors import AccelError, CapabilityError
from accel.exits import Exit, FailEntry, InternalError, Shutdown
from accel.machine import Machine
from accel.plugins import find_accelerator, open_accelerator
from accel.program import GuestProgram, Out
from accel.testing.claims import Claims
from accel.testing.conformance.lane import Lanes
from accel.testing.conformance.verdict import Violation, described, expect, refused, shown
from accel.testing.machines import MachineFactory

pytestmark = pytest.mark.accelerators()


def lacks(claims: Claims, capability: Capability) -> None:
    """Skip a test about what is refused without a capability, if it is claimed."""
    if capability in claims.capabilities:
        pytest.skip(f"{claims.name} claims {capability}; this is about those that do not")


def test_errors_interrupt_line_without_interrupt_controller(machine: MachineFactory) -> None:
    """Without interrupt controllers in the VM, setting an interrupt line is a CapabilityError."""
    with refused(CapabilityError, "`set_irq` of a VM without interrupt controllers"):
        machine().vm.set_irq(4, True)


@pytest.mark.parametrize("what", ["irqchip", "pit"])
def test_errors_interrupt_controller_that_is_not_claimed(accelerator_name: str, claims: Claims, what: str) -> None:
    """Who asks for an interrupt controller or a timer that is not claimed gets a CapabilityError."""
    lacks(claims, Capability(what))
    with refused(CapabilityError, f"creating a VM with {what}"), open_accelerator(accelerator_name) as opened:
        opened.create_vm(irqchip=True, pit=what == "pit")


def test_errors_kick_all_that_is_not_claimed(machine: MachineFactory, claims: Claims) -> None:
    """Without `KICK_ALL_VCPUS`, `kick_all` and `resume_all` are CapabilityErrors."""
    lacks(claims, Capability.KICK_ALL_VCPUS)
    vm = machine().vm
    with vm.big_lock:
        with refused(CapabilityError, "`kick_all`"):
            vm.backend.kick_all(1.0)
        with refused(CapabilityError, "`resume_all`"):
            vm.backend.resume_all()


@pytest.mark.parametrize("hold", HOLD_NEEDS)
def test_errors_hold_that_is_not_claimed(accelerator_name: str, claims: Claims, hold: str) -> None:
    """A hold that needs a capability which is not claimed is refused when the VM is created."""
    lacks(claims, HOLD_NEEDS[hold])
    if hold not in claims.choices("hold"):
        pytest.skip(f"{claims.name} declares no option hold={hold}")
    options = {accelerator_name: {"hold": hold}}
    with refused(CapabilityError, f"hold={hold}"), open_accelerator(accelerator_name, options=options) as opened:
        opened.create_vm()


def test_errors_registers_of_what_executes_no_x86(machine: MachineFactory, claims: Claims) -> None:
    """Who executes no x86 has no x86 registers: `read_state` and `write_state` are CapabilityErrors."""
    if "x86" in claims.executes:
        pytest.skip(f"{claims.name} executes x86")
    vcpu = machine().vm.vcpus[0].backend
    with refused(CapabilityError, "`read_state`"):
        vcpu.read_state()
    with refused(CapabilityError, "`write_state`"):
        vcpu.write_state(X86State())


def test_errors_program_for_what_executes_none(machine: MachineFactory, claims: Claims) -> None:
    """Who executes no programs refuses one with a CapabilityError."""
    if "program" in claims.executes:
        pytest.skip(f"{claims.name} executes programs")
    vcpu = machine().vm.vcpus[0].backend
    with refused(CapabilityError, "`load_program`"):
        vcpu.load_program(GuestProgram([Out(0x80, 1)]))


@pytest.mark.accelerators(executes="program")
def test_errors_running_without_a_program(machine: MachineFactory, lane: Lanes) -> None:
    """A vCPU without a program comes out with a failure, or its `run` is an error of accel; it does not hang."""
    vcpu = lane(machine())
    try:
        found: Exit = vcpu.run("a run without a program")
    except AccelError:
        return
    except Exception as error:
        raise Violation(f"a run without a program raised {described(error)}") from error
    expect(
        isinstance(found, (FailEntry, InternalError, Shutdown)),
        f"a run without a program came out with {shown(found)}; due was FailEntry",
    )


def test_errors_dry_run_that_is_not_offered(accelerator_name: str) -> None:
    """Who offers no dry run refuses one with a CapabilityError."""
    accelerator = find_accelerator(accelerator_name)
    if accelerator.dry_run:
        pytest.skip(f"{accelerator_name} offers dry runs")
    with refused(CapabilityError, "`create_dry_vm`"):
        accelerator.create_dry_vm(VmConfig())


def test_errors_too_many_vcpus(accelerator_name: str, claims: Claims) -> None:
    """A machine with more vCPUs than `max_vcpus` is refused, and the message has the number."""
    most = claims.max_vcpus
    with refused(AccelError, f"a machine with {most + 1} vCPUs, where `max_vcpus` is {most},"):
        Machine.create(accelerator_name, memory="4M", cpus=most + 1).close()
