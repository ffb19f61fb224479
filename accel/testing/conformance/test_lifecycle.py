"""Lifecycle: probing, creating and closing, VMs beside each other, indexes of vCPUs, options."""

from __future__ import annotations

from threading import Event

import pytest

from accel.backend import Availability, Capability, VcpuBackend, VmBackend
from accel.errors import AccelError, CapabilityError, ClosedError, OptionError, UsageError
from accel.exits import IoOut
from accel.memory.listener import MemoryListener
from accel.plugins import find_accelerator, open_accelerator
from accel.program import GuestProgram, Load, Loop, Out, Store
from accel.testing.claims import Claims
from accel.testing.conformance.lane import Lanes, play
from accel.testing.conformance.look import finish
from accel.testing.conformance.verdict import due, expect, refused
from accel.testing.machines import MachineFactory

pytestmark = pytest.mark.accelerators()
runs_guests = pytest.mark.accelerators(executes=("program", "x86"))

PORT = 0x80
#: In the RAM that each machine has, beyond where programs lie.
RAM = 0x30_0000


def test_lifecycle_probe_says_what_it_offers(accelerator_name: str) -> None:
    """`probe` returns an Availability, the same each time, with capabilities that are known."""
    accelerator = find_accelerator(accelerator_name)
    first, second = accelerator.probe(), accelerator.probe()
    expect(isinstance(first, Availability), f"`probe` returned {first!r}")
    expect(first == second, f"`probe` returned {first}, and then {second}")
    expect(first.ok or first.reason, "`probe` says that it cannot be used, without a reason")
    unknown = [one for one in first.capabilities if not isinstance(one, Capability)]
    expect(not unknown, f"`probe` claims {unknown}, which are no `Capability`")


def test_lifecycle_vm_offers_what_the_probe_claims(accelerator_name: str) -> None:
    """What `probe` claims, a VM has: its `capabilities` are the same."""
    claimed = find_accelerator(accelerator_name).probe().capabilities
    with open_accelerator(accelerator_name) as opened, opened.create_vm() as vm:
        offered = vm.backend.capabilities
    expect(
        claimed == offered,
        f"`probe` claims {_names(claimed - offered)} that the VM does not offer, and the VM offers "
        f"{_names(offered - claimed)} that `probe` does not claim",
    )


def _names(capabilities: frozenset[Capability]) -> str:
    return ", ".join(sorted(map(str, capabilities))) or "nothing"


def test_lifecycle_vm_has_what_the_surface_asks_for(accelerator_name: str) -> None:
    """A VM and its vCPU have the attributes and the return values that `accel.backend` describes."""
    with open_accelerator(accelerator_name) as opened, opened.create_vm() as vm:
        backend = vm.backend
        expect(isinstance(backend, VmBackend), f"`create_vm` returned {backend!r}")
        expect(type(backend.max_vcpus) is int and backend.max_vcpus >= 1, f"`max_vcpus` is {backend.max_vcpus!r}")
        size = backend.page_size
        expect(type(size) is int and size >= 4096 and not size & (size - 1), f"`page_size` is {size!r}")
        expect(isinstance(vm.memory.listeners[0], MemoryListener), "`memory_listener` returned no MemoryListener")
        figures = backend.memory_figures()
        wrong = {name: value for name, value in figures.items() if not isinstance(value, (int, float))}
        expect(not wrong, f"`memory_figures` has {wrong}, which are no numbers")
        expect(isinstance(backend.host(), str), f"`host` returned {backend.host()!r}")
        vcpu = vm.create_vcpu(0).backend
        expect(isinstance(vcpu, VcpuBackend), f"`create_vcpu` returned {vcpu!r}")
        expect(isinstance(vcpu.describe(), str), f"`describe` returned {vcpu.describe()!r} before any run")
        place = vcpu.fault_address()
        expect(place is None or type(place) is int, f"`fault_address` returned {place!r} before any run")


def test_lifecycle_close_may_be_called_twice_and_ends_all_use(machine: MachineFactory) -> None:
    """A machine that never ran is closed without an error, twice, and its vCPUs cannot be used after that."""
    one = machine()
    one.close()
    one.close()
    with refused(ClosedError, "`run` of a vCPU that is closed"):
        one.vm.vcpus[0].run()


def test_lifecycle_vm_without_vcpus_opens_and_closes(accelerator_name: str) -> None:
    """A VM needs no vCPU, and no memory, to be created and closed."""
    with open_accelerator(accelerator_name) as opened:
        for _ in range(5):
            vm = opened.create_vm()
            vm.close()
            vm.close()


@runs_guests
def test_lifecycle_guest_runs_and_halts(machine: MachineFactory, lane: Lanes) -> None:
    """A machine is created, loaded, runs its guest to the end, and is closed."""
    one = machine(Store(RAM, 0x1234), Out(PORT, 5))
    vcpu = lane(one)
    due(vcpu.run(), IoOut, "at a write to a port", port=PORT, data=b"\5")
    expect(one.memory.read(RAM, 4) == b"\x34\x12\0\0", "the host does not find what the guest stored in RAM")
    play(vcpu)
    one.close()


@runs_guests
def test_lifecycle_guest_can_be_loaded_and_run_again(machine: MachineFactory, patience: float) -> None:
    """A machine whose guest has halted takes another program, which starts at its first operation."""
    one, seen = machine(), []
    one.port(PORT)(lambda access: seen.append(access.value))
    for number in range(3):
        one.load(GuestProgram([Out(PORT, number), Out(PORT, 0x10 + number)]))
        finish(one, patience)
    expect(seen == [0, 0x10, 1, 0x11, 2, 0x12], f"three programs of two writes each wrote {seen}")


@runs_guests
def test_lifecycle_vms_beside_each_other_have_memory_of_their_own(machine: MachineFactory, lane: Lanes) -> None:
    """Many VMs can be there at once, and no guest sees another one's memory."""
    machines = [machine(Store(RAM, n), Out(PORT, n)) for n in range(1, 9)]
    for number, one in enumerate(machines, 1):
        due(lane(one).run(), IoOut, f"in machine {number} of 8", data=bytes((number,)))
    for number, one in enumerate(machines, 1):
        found = int.from_bytes(one.memory.read(RAM, 4), "little")
        expect(found == number, f"machine {number} of 8 stored {number}, and its memory has {found}")


def test_lifecycle_vcpus_can_be_created_up_to_the_greatest_number(accelerator_name: str) -> None:
    """A VM takes `max_vcpus` vCPUs, by any index below that and in any order."""
    with open_accelerator(accelerator_name) as opened, opened.create_vm() as vm:
        most = vm.backend.max_vcpus
        for index in sorted({0, 1, 2, 3, most - 1} & set(range(most)), reverse=True):
            expect(vm.create_vcpu(index).index == index, f"vCPU {index} of {most} has another index")
        with refused(UsageError, f"`create_vcpu({most})` with max_vcpus={most}"):
            vm.create_vcpu(most)


def test_lifecycle_options_that_are_not_declared_are_refused(accelerator_name: str) -> None:
    """An option that the accelerator does not declare is an OptionError."""
    with refused(OptionError, "an option that is not declared"):
        open_accelerator(accelerator_name, options={accelerator_name: {"no_such_option": 1}})


def test_lifecycle_each_choice_of_an_option_works_or_is_refused(accelerator_name: str, claims: Claims) -> None:
    """Each value of each declared choice makes a VM, or is refused with an error of accel."""
    for option in claims.options:
        for choice in option.choices:
            text = f"option {option.name}={choice}"
            try:
                options = {accelerator_name: {option.name: choice}}
                with open_accelerator(accelerator_name, options=options) as opened:
                    opened.create_vm().close()
            except CapabilityError as error:
                expect(choice != option.default, f"{text} is the default, and refused: {error}")
            except AccelError as error:
                expect(str(error), f"{text} is refused without a word of why")


@runs_guests
def test_lifecycle_close_ends_a_run(machine: MachineFactory, patience: float) -> None:
    """A machine that is closed while its guest runs brings it out first; closing does not hang."""
    one = machine(Out(PORT, 0), Loop((Load(RAM),), None))
    began = Event()
    one.port(PORT)(lambda access: began.set())
    one.start()
    expect(began.wait(patience), "a started guest does not come to its first write")
    one.close()
