"""One thread per vCPU: run, dispatch the exit, and look after each kick at what is wanted.

The loop is the path of every guest exit. It calls no plugin hook, makes no object and formats nothing; what it
needs it has in local names. The gate is entered for the call into the accelerator and nothing else, so a vCPU
whose exit is being handled may wait for the big lock without holding up a memory change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from accel.backend_checks import ContractError, check_kind
from accel.errors import AccelError, ClosedError, DeviceError, GuestCrashError
from accel.exits import ExitKind, unpack_io
from accel.gate import NEVER
from accel.memory import guest_access
from accel.memory.address_space import AddressSpace
from accel.mmio_dispatch import MmioDispatch
from accel.port_dispatch import PortDispatch
from accel.result import VcpuResult, exit_names
from accel.run_control import RunControl
from accel.vcpu import Vcpu

#: Bytes of a memory access at most.
_LARGEST = 8

_CRASHES = {
    ExitKind.SHUTDOWN: "shutdown",
    ExitKind.INTERNAL_ERROR: "internal-error",
    ExitKind.FAIL_ENTRY: "fail-entry",
    ExitKind.DEBUG: "debug",
    ExitKind.OTHER: "unknown-exit",
}


class VcpuThread:
    """Runs one vCPU until it halts, crashes or is told to stop.

    Args:
        vcpu: What to run; nobody else runs it meanwhile.
        control: The run it is part of.
        kick_all: Kicks all vCPUs of the run, once this one has ended it.

    Attributes:
        exits: Counts by ExitKind. Owned by the thread; stable once it is joined.
        spurious: Spurious faults that the view served, by address. Owned by the thread.
        unserved: Spurious faults that ended the guest, by address. Owned by the thread.
    """

    def __init__(self, vcpu: Vcpu, control: RunControl, kick_all: Callable[[], None]) -> None:
        self.vcpu = vcpu
        self.exits = [0] * len(ExitKind)
        self.spurious: dict[int, int] = {}
        self.unserved: dict[int, int] = {}
        self._control = control
        self._kick_all = kick_all
        self._ports = PortDispatch(vcpu.vm.io, vcpu.backend.io_data, vcpu.vm.big_lock)
        self._devices = MmioDispatch(vcpu.vm.memory, vcpu.backend.record, vcpu.vm.big_lock)
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"vcpu-{vcpu.index}", daemon=True)

    def start(self) -> None:
        """Start the thread; returns once `Vcpu.call` makes calls on it.

        A call made elsewhere after that would meet the thread in the accelerator: KVM lets it wait until the guest
        comes out, which may be never.
        """
        self._thread.start()
        self._bound.wait()

    def join(self) -> None:
        """Wait until the thread has ended; returns at once if the host could not start it."""
        if self._thread.ident is not None:
            self._thread.join()

    def is_current(self) -> bool:
        """Return whether the caller is this thread."""
        return threading.current_thread() is self._thread

    @property
    def spurious_count(self) -> int:
        """Spurious faults so far; needs the big lock while the thread runs."""
        return sum(self.spurious.values()) + sum(self.unserved.values())

    def result(self) -> VcpuResult:
        """Return what it counted; call it after `join`."""
        return VcpuResult(self.vcpu.index, exit_names(self.exits), dict(self.spurious), dict(self.unserved))

    def _main(self) -> None:
        vcpu = self.vcpu
        try:
            try:
                vcpu.bind(self._wake)
            finally:
                self._bound.set()
            vcpu.take_over()
            vcpu.backend.prepare_thread()
            if self._attend():
                self._loop()
        except BaseException as error:  # noqa: BLE001 - it is raised to whoever waits for the run
            self._control.fail(self._reason(error))
        finally:
            vcpu.gate.leave()
            vcpu.gate.entered = NEVER
            vcpu.unbind()
            self._ports.clear()
            self._devices.clear()
            self._control.leave(vcpu.index)
            self._kick_all()

    def _reason(self, error: BaseException) -> BaseException:
        """Return what ends the run: if somebody has closed the vCPU, that, since the error only comes of it."""
        vcpu = self.vcpu
        if not vcpu.closed or isinstance(error, ClosedError):
            return error
        closed = ClosedError("the VM is closed" if vcpu.vm.closed else f"vCPU {vcpu.index} is closed")
        closed.__cause__ = error
        return closed

    def _loop(self) -> None:
        vcpu = self.vcpu
        vm, gate, record = vcpu.vm, vcpu.gate, vcpu.backend.record
        run, enter, leave, step_out = vcpu.backend.run, gate.enter, gate.leave, gate.step_out
        history, io, ports, counts = vm.history, vm.io, self._ports, self.exits
        handlers = ports.handlers
        ring = vm.backend.ring.indices if vm.backend.ring is not None else None
        kind_io, kind_mmio, kind_kicked = int(ExitKind.IO), int(ExitKind.MMIO), int(ExitKind.INTERRUPTED)
        gate.operation = "run"
        while True:
            enter()
            if vcpu.closed:
                # It was while this thread waited at the gate or was outside; what `run` would call is gone.
                raise ClosedError(f"vCPU {vcpu.index} is closed")
            gate.entered = history.completed
            kind = run()
            exited = history.started
            if kind == kind_kicked:
                step_out()
            else:
                leave()
            try:
                counts[kind] += 1
            except (IndexError, TypeError):
                check_kind(kind)
                raise
            if ring is not None and ring[0] != ring[1]:
                vm.drain()
            if kind == kind_io:
                if ports.view is not io.view:
                    ports.clear()
                word = record[0]
                handler = handlers.get(word) or ports.build(word)
                try:
                    handler()
                except Exception as error:
                    raise self._port_error(word, error) from error
            elif kind == kind_mmio:
                self._mmio(exited)
            elif not self._rare(kind, exited):
                return

    def _mmio(self, exited: int) -> None:
        """Serve a memory access that came out, by its device or from the view."""
        record, vm = self.vcpu.backend.record, self.vcpu.vm
        address, shape = record[0], record[2]
        handler = self._devices.find(address, shape)
        if handler is None and not 0 < shape & 0xFFFF_FFFF <= _LARGEST:
            raise ContractError(
                f"the exit record has an access of {shape & 0xFFFF_FFFF} bytes at {address:#x}; 1 to 8 can be"
            )
        # The view was looked at before `started`: if no change began between the entry and now, it was in force all
        # the time, and a device that it shows is no spurious fault. Otherwise the history has to tell.
        if handler is None or not self.vcpu.gate.entered == exited == vm.history.started:
            self._judge(exited, address, shape)
        try:
            if handler is not None:
                handler()
            else:
                self._general(address, shape)
        except Exception as error:
            access = "write at" if shape >> 32 else "read at"
            raise self._device_error(vm.memory, access, address, error) from error

    def _general(self, address: int, shape: int) -> None:
        """Serve an access that is not for one device alone, from the view."""
        record, memory = self.vcpu.backend.record, self.vcpu.vm.memory
        size = shape & 0xFFFF_FFFF
        if shape >> 32:
            guest_access.store(memory, address, record[1] & (1 << 8 * size) - 1, size)
        else:
            record[1] = guest_access.load(memory, address, size)

    def _judge(self, exited: int, address: int, shape: int) -> None:
        """Count the access if it is a spurious fault."""
        vm = self.vcpu.vm
        size, is_write = shape & 0xFFFF_FFFF, bool(shape >> 32)
        with vm.big_lock:
            if vm.history.is_spurious(self.vcpu.gate.entered, exited, address, size, is_write=is_write):
                self.spurious[address] = self.spurious.get(address, 0) + 1

    def _rare(self, kind: int, exited: int) -> bool:
        """Deal with an exit that is neither a port nor memory; return whether to go on."""
        if kind == ExitKind.INTERRUPTED:
            return self._attend()
        if kind == ExitKind.HALT:
            return False
        if kind == ExitKind.DIRTY_RING_FULL:
            self.vcpu.empty_dirty_rings()
            return True
        check_kind(kind)
        self._note_unserved(kind, exited)
        reason = _CRASHES.get(ExitKind(kind), "unknown-exit")
        self._control.crash(GuestCrashError(self.vcpu.index, reason, self._describe()))
        return False

    def _attend(self) -> bool:
        """Do what others want after a kick; return whether to go on."""
        vcpu = self.vcpu
        while True:
            vcpu.run_calls()
            if not self._control.attend(vcpu.index, self._has_calls):
                return False
            if not vcpu.has_calls:
                return True

    def _has_calls(self) -> bool:
        return self.vcpu.has_calls

    def _wake(self) -> None:
        """Bring the thread to `_attend`, from wherever it is."""
        self._control.poke()
        self.vcpu.kick()

    def _describe(self) -> str:
        try:
            return self.vcpu.backend.describe()
        except AccelError as error:
            return f"nothing more is known ({error})"

    def _note_unserved(self, kind: int, exited: int) -> None:
        """Count a crash at an address that RAM served all the time: the unprotected change's worst case."""
        if exited == self.vcpu.gate.entered:
            # No change began or was under way since the entry, so there was no gap to fall into.
            return
        try:
            address = self.vcpu.backend.fault_address() if kind == ExitKind.INTERNAL_ERROR else None
        except AccelError:
            return
        vm = self.vcpu.vm
        with vm.big_lock:
            if address is not None and vm.history.is_spurious(
                self.vcpu.gate.entered, exited, address, 1, is_write=False
            ):
                self.unserved[address] = self.unserved.get(address, 0) + 1

    def _port_error(self, word: int, error: Exception) -> DeviceError:
        is_out, _, port, _ = unpack_io(word)
        return self._device_error(self.vcpu.vm.io, "write to port" if is_out else "read of port", port, error)

    def _device_error(self, space: AddressSpace, access: str, address: int, error: Exception) -> DeviceError:
        section = space.view.find(address)
        name = section.region.name if section is not None else "unassigned"
        return DeviceError(name, access, address, self.vcpu.index, error)
