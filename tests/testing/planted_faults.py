"""The mistakes: functions that make one in a VM or a vCPU of the mock; `broken_accelerators` has the list."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from array import array
from collections.abc import Callable
from itertools import count
from types import MethodType
from typing import Any

from attrs import evolve

from accel.errors import BackendError
from accel.exits import ExitKind
from accel.program import Fetch, GuestProgram

# memory


def with_slots(change: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return what changes the table of slots of a VM."""

    def patch(vm: Any) -> None:
        make = vm.memory_listener

        def memory_listener() -> Any:
            listener = make()
            change(listener.slots)
            return listener

        vm.memory_listener = memory_listener

    return patch


def readonly_ignored(slots: Any) -> None:
    create = slots.create
    slots.create = lambda slot: create(evolve(slot, readonly=False))


def unmap_forgotten(slots: Any) -> None:
    delete, install = slots.delete, slots._memslots._install

    def forget(slot: Any) -> None:
        number = slots._number_at[slot.gpa]
        table = slots._memslots.table
        delete(slot)
        # vCPUs go on with the set that has it, under a number of its own.
        old = table.numbered(number)
        install(slots._memslots.table.with_slot(evolve(old, number=30_000 + number)))

    slots.delete = forget


def offset_ignored(slots: Any) -> None:
    create = slots.create
    slots.create = lambda slot: create(evolve(slot, hva=slot.block.address))


def readonly_lost_in_pieces(slots: Any) -> None:
    create = slots.create
    slots.create = lambda slot: create(evolve(slot, readonly=slot.readonly and not slot.offset))


def moved_part_shifted(slots: Any) -> None:
    create, places = slots.create, {}

    def shifted(slot: Any) -> Any:
        moved = places.setdefault((slot.offset, slot.size), slot.gpa) != slot.gpa
        return create(evolve(slot, hva=slot.hva - 0x1000) if moved and slot.offset else slot)

    slots.create = shifted


def descriptor_leaked_for_a_log(slots: Any) -> None:
    toggle = slots.toggle

    def leak(old: Any, new: Any) -> None:
        os.open(os.devnull, os.O_RDONLY)
        toggle(old, new)

    slots.toggle = leak


def log_page_lost(slots: Any) -> None:
    take = slots._memslots.take_dirty

    def take_dirty(number: int, slot: Any) -> bytearray:
        taken = bytearray(take(number, slot))
        value = int.from_bytes(taken, "little")
        if value:
            value &= ~(1 << value.bit_length() - 1)
        return bytearray(value.to_bytes(len(taken), "little"))

    slots._memslots.take_dirty = take_dirty


def log_lost_with_the_slot(slots: Any) -> None:
    collect = slots.collect

    def only_when_asked(slot: Any) -> None:
        if sys._getframe(1).f_code.co_name == "log_sync":
            collect(slot)

    slots.collect = only_when_asked


def with_updates(change: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return what changes each update of memory that a VM prepares."""

    def patch(vm: Any) -> None:
        make = vm.memory_listener

        def memory_listener() -> Any:
            listener = make()
            prepare = listener.prepare

            def changed() -> Any:
                update = prepare()
                if update is not None:
                    change(update)
                return update

            listener.prepare = changed
            return listener

        vm.memory_listener = memory_listener

    return patch


@with_updates
def hold_unasked(update: Any) -> None:
    update.needs_hold = update.needs_hold_unless_last = False


@with_updates
def hold_always(update: Any) -> None:
    """No mistake: whoever maps and unmaps in an engine that cannot run meanwhile has to."""
    update.needs_hold = True


@with_updates
def undo_does_nothing(update: Any) -> None:
    update.undo = lambda: None


# kicks


def kick_lost_outside(vcpu: Any, vm: Any) -> None:
    kick, run, inside = vcpu.kick, vcpu.run, threading.Event()

    def entered() -> int:
        inside.set()
        try:
            return run()
        finally:
            inside.clear()

    vcpu.run = entered
    vcpu.kick = lambda thread_id: kick(thread_id) if inside.is_set() else None


def kick_kept(vcpu: Any, vm: Any) -> None:
    run = vcpu.run

    def again() -> int:
        kind = run()
        if kind == ExitKind.INTERRUPTED and not getattr(vcpu, "spent", False):
            vcpu.spent = True
            vcpu.kick(0)
        else:
            vcpu.spent = False
        return kind

    vcpu.run = again


def kick_ignored(vcpu: Any, vm: Any) -> None:
    vcpu.kick = lambda thread_id: None


def kick_lost_sometimes(vcpu: Any, vm: Any) -> None:
    kick, numbers = vcpu.kick, count(1)
    vcpu.kick = lambda thread_id: kick(thread_id) if next(numbers) % 100 else None


def kick_all_at_once(vm: Any) -> None:
    vm.kick_all = lambda timeout: None
    vm.resume_all = lambda: None


# exits


def after_run(change: Callable[[Any, int], int]) -> Callable[[Any, Any], None]:
    """Return what changes the exits of a vCPU."""

    def patch(vcpu: Any, vm: Any) -> None:
        run = vcpu.run
        vcpu.run = lambda: change(vcpu, run())

    return patch


def value_cut(vcpu: Any, kind: int) -> int:
    if kind == ExitKind.MMIO:
        vcpu.record[1] &= 0xFFFF_FFFF
    return kind


def size_wrong(vcpu: Any, kind: int) -> int:
    if kind == ExitKind.MMIO and vcpu.record[2] & 0xFF == 8:
        vcpu.record[2] -= 4
    return kind


def count_missing(vcpu: Any, kind: int) -> int:
    if kind == ExitKind.IO:
        vcpu.record[0] &= 0xFFFF_FFFF
    return kind


def halt_as_shutdown(vcpu: Any, kind: int) -> int:
    return ExitKind.SHUTDOWN if kind == ExitKind.HALT else kind


def reply_ignored(vcpu: Any, vm: Any) -> None:
    run = vcpu.run

    def forgetful() -> int:
        vcpu.io_data[:4] = bytes(4)
        return run()

    vcpu.run = forgetful


def address_cut(vcpu: Any, kind: int) -> int:
    if kind == ExitKind.MMIO:
        vcpu.record[0] &= 0xFFFF_FFFF
    return kind


def views_shared(vcpu: Any, vm: Any) -> None:
    vcpu.record, vcpu.io_data = vm.__dict__.setdefault("views", (vcpu.record, vcpu.io_data))


class _NeverForgets(dict[int, Any]):
    def clear(self) -> None:
        pass


def translations_kept(vcpu: Any, vm: Any) -> None:
    vcpu.readable, vcpu.writable = _NeverForgets(), _NeverForgets()


def code_kept(vcpu: Any, vm: Any) -> None:
    load, known = vcpu.load_program, set()

    def remember(program: Any) -> None:
        load(GuestProgram([op for op in program.ops if not (isinstance(op, Fetch) and op.address in known)]))
        known.update(op.address for op in program.ops if isinstance(op, Fetch))

    vcpu.load_program = remember


def record_narrow(vcpu: Any, vm: Any) -> None:
    run, wide = vcpu.run, vcpu.record
    vcpu.record = memoryview(array("I", (0, 0, 0, 0)))

    def copied() -> int:
        narrow, vcpu.record = vcpu.record, wide
        kind = run()
        vcpu.record = narrow
        for index in range(3):
            narrow[index] = wide[index] & 0xFFFF_FFFF
        return kind

    vcpu.run = copied


# life


def descriptor_leaked(vm: Any) -> None:
    os.open(os.devnull, os.O_RDONLY)


def thread_leaked(vm: Any) -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


kept: list[Any] = []


def few_vcpus(vm: Any) -> None:
    create = vm.create_vcpu

    def create_vcpu(index: int) -> Any:
        if index > 2:
            raise BackendError("vCPU creation", 28)
        return create(index)

    vm.create_vcpu = create_vcpu


def interrupt_line_raises(vm: Any) -> None:
    def set_irq(line: int, level: bool) -> None:
        raise KeyError(line)

    vm.set_irq = set_irq


# threads


def one_at_a_time(vcpu: Any, vm: Any) -> None:
    run = vcpu.run
    turn = vm.__dict__.setdefault("turn", threading.Lock())

    def serial() -> int:
        with turn:
            return run()

    vcpu.run = serial


def crash(vcpu: Any, vm: Any) -> None:
    vcpu.describe = lambda: os.kill(os.getpid(), signal.SIGSEGV)


def crash_of_vm(vm: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def keep_the_interpreter(vcpu: Any, vm: Any) -> None:
    vcpu.describe = lambda: ctypes.PyDLL(None).sleep(1000)


# extras


def queue_reversed(vm: Any) -> None:
    pop = vm.ring.pop
    vm.ring.pop = MethodType(lambda ring: list(pop())[::-1], vm.ring)


def doorbell_rings_for_all(vm: Any) -> None:
    bells = vm._doorbells

    def ring(address: int, data: bytes, *, is_port: bool) -> bool:
        for bell in bells.bells[is_port].get(address, ()):
            bell._own.ring()
            return True
        return False

    bells.ring = ring
