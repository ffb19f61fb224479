"""A plugin with many accelerators, each the mock with one mistake: what the conformance suite has to find.

The tests put this file on the path of a process that runs the suite, with an entry point. `FAULTS` has each mistake by
the name of its accelerator. `soundmock` is the mock as it is. As sound are `heldmock`, which holds its vCPUs for every
change, and `elsewhere`, which executes no guest of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import planted_faults as planted
from attrs import evolve, frozen

from accel.backend import Capability
from accel.hookspecs import hookimpl
from accel_mock.plugin import MockAccelerator
from accel_mock.vm import MockVm


@frozen
class Fault:
    """A mistake.

    Attributes:
        vm: Makes it in a new VM.
        vcpu: Makes it in a new vCPU; its second argument is the VM.
        claims: Capabilities that are claimed besides.
        executes: As `Accelerator.executes`.
    """

    vm: Callable[[Any], None] | None = None
    vcpu: Callable[[Any, Any], None] | None = None
    claims: frozenset[Capability] = frozenset()
    executes: frozenset[str] = frozenset({"program"})


FAULTS = {
    "soundmock": Fault(),
    "heldmock": Fault(planted.hold_always),
    "readonlyignored": Fault(planted.with_slots(planted.readonly_ignored)),
    "unmapforgotten": Fault(planted.with_slots(planted.unmap_forgotten)),
    "offsetignored": Fault(planted.with_slots(planted.offset_ignored)),
    "logpagelost": Fault(planted.with_slots(planted.log_page_lost)),
    "loglostwithslot": Fault(planted.with_slots(planted.log_lost_with_the_slot)),
    "holdunasked": Fault(planted.hold_unasked),
    "undodoesnothing": Fault(planted.undo_does_nothing),
    "goneinside": Fault(vcpu=planted.translations_kept),
    "piecewritable": Fault(planted.with_slots(planted.readonly_lost_in_pieces)),
    "movedpart": Fault(planted.with_slots(planted.moved_part_shifted)),
    "logleaks": Fault(planted.with_slots(planted.descriptor_leaked_for_a_log)),
    "kicklostsometimes": Fault(vcpu=planted.kick_lost_sometimes),
    "addresscut": Fault(vcpu=planted.after_run(planted.address_cut)),
    "portdatashared": Fault(vcpu=planted.views_shared),
    "recordshared": Fault(vcpu=planted.views_shared),
    "codekept": Fault(vcpu=planted.code_kept),
    "kicklostoutside": Fault(vcpu=planted.kick_lost_outside),
    "kickkept": Fault(vcpu=planted.kick_kept),
    "kickignored": Fault(vcpu=planted.kick_ignored),
    "kickallatonce": Fault(planted.kick_all_at_once),
    "valuecut": Fault(vcpu=planted.after_run(planted.value_cut)),
    "sizewrong": Fault(vcpu=planted.after_run(planted.size_wrong)),
    "countmissing": Fault(vcpu=planted.after_run(planted.count_missing)),
    "haltasshutdown": Fault(vcpu=planted.after_run(planted.halt_as_shutdown)),
    "replyignored": Fault(vcpu=planted.reply_ignored),
    "recordnarrow": Fault(vcpu=planted.record_narrow),
    "descriptorleaked": Fault(planted.descriptor_leaked),
    "threadleaked": Fault(planted.thread_leaked),
    "vmkept": Fault(planted.kept.append),
    "claimstoomuch": Fault(claims=frozenset({Capability.IRQCHIP})),
    "fewvcpus": Fault(planted.few_vcpus),
    "interruptlineraises": Fault(planted.interrupt_line_raises),
    "oneatatime": Fault(vcpu=planted.one_at_a_time),
    "queuereversed": Fault(planted.queue_reversed),
    "doorbellforall": Fault(planted.doorbell_rings_for_all),
    "elsewhere": Fault(executes=frozenset({"arm64"})),
    "crashes": Fault(vcpu=planted.crash),
    "vmcrashes": Fault(planted.crash_of_vm),
    "keepsinterpreter": Fault(vcpu=planted.keep_the_interpreter),
}


def accelerator(fault_name: str, fault: Fault) -> MockAccelerator:
    """Return the mock with a mistake."""

    class Broken(MockAccelerator):
        name = fault_name
        executes = fault.executes

        def probe(self) -> Any:
            found = super().probe()
            return evolve(found, capabilities=found.capabilities | fault.claims)

        def create_vm(self, config: Any) -> Any:
            vm: Any = MockVm(config)
            create = vm.create_vcpu

            def create_vcpu(index: int) -> Any:
                vcpu: Any = create(index)
                if fault.vcpu is not None:
                    fault.vcpu(vcpu, vm)
                return vcpu

            vm.create_vcpu = create_vcpu
            if fault.vm is not None:
                fault.vm(vm)
            return vm

    return Broken()


@hookimpl
def accel_register_accelerators(register: Callable[[Any], None]) -> None:
    """Register all of them."""
    for name, fault in FAULTS.items():
        register(accelerator(name, fault))
