"""Vm and Vcpu: what people use to run guests with a loop of their own; `Machine` stands on them.

They own what every accelerator has in common: the locks, the gates, the memory and its transactions. A backend
does the rest behind the surface of `accel.backend`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self, TypeVar, cast

from accel.address import ADDRESS_SPACE_SIZE
from accel.arch.x86 import X86State
from accel.backend import Accelerator, VcpuBackend, VmConfig
from accel.blocker import AccelBlocker
from accel.errors import ClosedError, DeviceError, StateError, UsageError
from accel.exits import (
    Debug,
    Exit,
    ExitKind,
    FailEntry,
    Halt,
    InternalError,
    Interrupted,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    OtherExit,
    Shutdown,
    unpack_io,
)
from accel.locks import BIG_LOCK, RING_LOCK, Lock
from accel.memory.address_space import AddressSpace
from accel.memory.served import ServedHistory
from accel.memory.transaction import Atomic, Transactions
from accel.options import parse_options
from accel.program import GuestProgram

T = TypeVar("T")

PORT_COUNT = 1 << 16

#: Exits that carry nothing but a line about what happened.
_DETAILED: dict[int, type[Shutdown] | type[FailEntry] | type[InternalError] | type[Debug]] = {
    ExitKind.SHUTDOWN: Shutdown,
    ExitKind.FAIL_ENTRY: FailEntry,
    ExitKind.INTERNAL_ERROR: InternalError,
    ExitKind.DEBUG: Debug,
}


class OpenAccelerator:
    """An accelerator with its options, ready to create VMs; closes them when it is closed.

    >>> import accel
    >>> with accel.open_accelerator("mock") as mock, mock.create_vm() as vm:
    ...     vm.memory.add(accel.MemoryRegion.ram("ram", "1M"), at=0)

    Raises:
        OptionError: An option is not declared, or its value does not fit.
    """

    def __init__(self, accelerator: Accelerator, options: Mapping[str, object] | None = None) -> None:
        self.name = accelerator.name
        self.accelerator = accelerator
        self.options = parse_options(f"accelerator.{self.name}", accelerator.options, options or {})
        self._vms: list[Vm] = []

    def create_vm(self, *, irqchip: bool = False, pit: bool = False) -> Vm:
        """Create an empty VM.

        Raises:
            BackendError: A call into the accelerator failed.
            CapabilityError: It has no interrupt controller or timer.
        """
        vm = Vm(self.accelerator, VmConfig(self.options, irqchip, pit))
        self._vms.append(vm)
        return vm

    def close(self) -> None:
        """Close the VMs that are left; may be called twice."""
        while self._vms:
            self._vms.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Vm:
    """A virtual machine: memory, ports and vCPUs.

    Attributes:
        big_lock: Guards the region trees, the devices and the VM's state.
        blocker: Holds the vCPUs when a memory change needs it.
        memory: The guest-physical address space.
        io: The port space, 2^16 ports.
        transactions: Where edits of both are made; see `transaction`.
        history: Generations of the memory map, for telling spurious faults.
        vcpus: The vCPUs; immutable, replaced under the big lock.
        coalesced_writes: Guest writes that came through the ring. Guarded by the big lock.
        backend: The accelerator's side.
    """

    def __init__(self, accelerator: Accelerator, config: VmConfig) -> None:
        self.config = config
        options = config.options
        self.big_lock = Lock(BIG_LOCK)
        self.blocker = AccelBlocker(self.big_lock)
        timeout_ms = options.get("inhibit_timeout_ms", 10_000)
        assert isinstance(timeout_ms, int)
        self.transactions = Transactions(
            self.big_lock,
            self.blocker,
            hold=str(options.get("hold", "inhibit")),
            inhibit_timeout=timeout_ms / 1000,
            before_commit=self.drain,
        )
        self.closed = False
        self.coalesced_writes = 0
        self._ring_lock = Lock(RING_LOCK)
        self._draining = False
        self.vcpus: tuple[Vcpu, ...] = ()
        self.backend = accelerator.create_vm(config)
        try:
            self.history = ServedHistory(self.backend.page_size)
            self.memory = AddressSpace("memory", self.transactions, ADDRESS_SPACE_SIZE, self.history)
            self.io = AddressSpace("io", self.transactions, PORT_COUNT)
            self.memory.add_listener(self.backend.memory_listener())
            io_listener = self.backend.io_listener()
            if io_listener is not None:
                self.io.add_listener(io_listener)
        except BaseException:
            self.backend.close()
            raise

    def transaction(self, atomic: Atomic = "address") -> AbstractContextManager[None]:
        """Return the context of a transaction; see `Transactions.transaction`."""
        return self.transactions.transaction(atomic)

    def create_vcpu(self, index: int) -> Vcpu:
        """Create the vCPU with this index.

        Raises:
            UsageError: The index is taken or too high for this VM.
            BackendError: The accelerator refused.
            ClosedError: The VM is closed.
        """
        with self.big_lock:
            if self.closed:
                raise ClosedError("the VM is closed")
            if not 0 <= index < self.backend.max_vcpus or any(one.index == index for one in self.vcpus):
                raise UsageError(
                    f"vCPU index {index} is taken or not in 0 to {self.backend.max_vcpus - 1}, "
                    "which is what this VM can have"
                )
            vcpu = Vcpu(self, index, self.backend.create_vcpu(index))
            self.vcpus = (*self.vcpus, vcpu)
            return vcpu

    def set_irq(self, line: int, level: bool) -> None:
        """Set the level of an interrupt line, from any thread. Raises CapabilityError without irqchip."""
        with self.blocker.vm_call("set_irq"):
            self.backend.set_irq(line, level)

    def drain(self) -> None:
        """Deliver the coalesced writes that wait, in order; takes the big lock if there are any.

        Raises:
            DeviceError: A handler raised.
        """
        ring = self.backend.ring
        if ring is None or ring.indices[0] == ring.indices[1]:
            return
        with self.big_lock:
            if self._draining:
                # A handler edits memory while it is served from here; the rest follows when it returns.
                return
            with self._ring_lock:
                entries = list(ring.pop())
            self._draining = True
            try:
                for address, size, is_port, data in entries:
                    self._deliver(self.io if is_port else self.memory, address, size, data)
            finally:
                self._draining = False

    def _deliver(self, space: AddressSpace, address: int, size: int, data: bytes) -> None:
        self.coalesced_writes += len(data) // size
        try:
            space.store_run(address, size, data)
        except Exception as error:
            section = space.view.find(address)
            name = section.region.name if section is not None else "unassigned"
            raise DeviceError(name, "coalesced write to", address, None, error) from error

    def close(self) -> None:
        """Close the vCPUs and the VM; may be called twice. No vCPU may be running."""
        with self.big_lock:
            if self.closed:
                return
            self.closed = True
            for vcpu in self.vcpus:
                vcpu.close()
            self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Thread(threading.local):
    """The calling thread's native id, which costs a system call to ask for."""

    def __init__(self) -> None:
        self.native_id = threading.get_native_id()


_thread = _Thread()


class _Call:
    """A call that another thread wants made on the vCPU's thread."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.done = threading.Event()
        self.value: object = None
        self.error: BaseException | None = None
        self._function = function

    def make(self) -> None:
        """Make it, and let the other thread go on."""
        try:
            self.value = self._function()
        except BaseException as error:  # noqa: BLE001 - it is raised on the thread that asked
            self.error = error
        self.done.set()


class Vcpu:
    """A virtual CPU. One thread at a time runs it; other threads may `kick` it, or `call` something on it.

    Attributes:
        index: Its number in the VM.
        gate: Its gate at the blocker; passed around every call into the accelerator.
        backend: The accelerator's side.
    """

    def __init__(self, vm: Vm, index: int, backend: VcpuBackend) -> None:
        self.vm = vm
        self.index = index
        self.backend = backend
        self.closed = False
        self.gate = vm.blocker.add_gate(f"vCPU {index}", backend.kick)
        # Wakes the thread that runs it in a loop, or None without one. Both are guarded by `_calls_lock`, a leaf.
        self._wake: Callable[[], None] | None = None
        self._calls: deque[_Call] = deque()
        self._calls_lock = threading.Lock()

    def run(self) -> Exit:
        """Enter the guest until it comes out, and return why.

        A read (`IoIn`, `MmioRead`) is answered with its `reply` before the next run.

        Raises:
            BackendError: The accelerator failed.
            MapLostError: A memory change could not be undone, so the guest must not go on.
            ClosedError: The vCPU is closed.
        """
        return self._exit(self._inside("run", self.backend.run))

    def kick(self) -> None:
        """Make the `run` in progress, or else the next one, return `Interrupted`; any thread."""
        self.backend.kick(self.gate.thread_id)

    def call(self, function: Callable[[], T]) -> T:
        """Return `function()`, made on the thread that runs this vCPU, outside of the guest; any thread.

        If a thread runs it in a loop (a started machine), that thread is kicked out for it, also while it is
        paused; if none does, the call is made here. Use it for state: ``vcpu.call(vcpu.read_state)``.

        Raises:
            LockError: The big lock is held; the vCPU's thread may be waiting for it.
            Exception: Whatever `function` raised.
        """
        call = _Call(function)
        with self._calls_lock:
            wake = self._wake
            if wake is not None and self.gate.thread_id != _thread.native_id:
                self.vm.big_lock.assert_not_held("the vCPU's thread may be waiting for it; call outside of it")
                self._calls.append(call)
            else:
                wake = None
        if wake is None:
            return function()
        wake()
        call.done.wait()
        if call.error is not None:
            raise call.error
        return cast(T, call.value)

    def run_calls(self) -> None:
        """Make the calls that other threads asked for; on the vCPU's thread, outside of the guest."""
        while self._calls:
            self._calls.popleft().make()

    @property
    def has_calls(self) -> bool:
        """Whether a call waits to be made."""
        return bool(self._calls)

    def bind(self, wake: Callable[[], None]) -> None:
        """Note that the calling thread runs this vCPU in a loop that makes calls when `wake` was called."""
        with self._calls_lock:
            self.gate.thread_id = _thread.native_id
            self._wake = wake

    def unbind(self) -> None:
        """Note that the calling thread runs it no more, and make the calls that are left."""
        with self._calls_lock:
            self._wake = None
        self.run_calls()

    def read_state(self) -> X86State:
        """Return registers and mode, after completing the access of the last exit; on the vCPU's thread.

        Raises:
            StateError: That access has another part, which `run` returns next.
        """

        def read() -> X86State:
            if self.backend.finish() != ExitKind.INTERRUPTED:
                raise StateError("the last access needs one more exit before state can be read; call run first")
            return self.backend.read_state()

        return self._inside("read_state", read)

    def write_state(self, state: X86State) -> None:
        """Set registers and mode; on the vCPU's thread."""
        self._inside("write_state", lambda: self.backend.write_state(state))

    def load_program(self, program: GuestProgram) -> None:
        """Start a guest program, on an accelerator that executes those; on the vCPU's thread."""
        self._inside("load_program", lambda: self.backend.load_program(program))

    def close(self) -> None:
        """Release the vCPU; may be called twice."""
        if not self.closed:
            self.closed = True
            self.vm.blocker.remove_gate(self.gate)
            self.backend.close()

    def _inside(self, operation: str, call: Callable[[], T]) -> T:
        if self.closed:
            raise ClosedError(f"vCPU {self.index} is closed")
        gate = self.gate
        gate.operation = operation
        gate.thread_id = _thread.native_id
        gate.enter()
        try:
            return call()
        finally:
            gate.leave()

    def _exit(self, kind: int) -> Exit:
        record = self.backend.record
        if kind == ExitKind.IO:
            is_out, size, port, count = unpack_io(record[0])
            io_data = self.backend.io_data
            if is_out:
                return IoOut(port, size, count, bytes(io_data[: size * count]))
            return IoIn(port, size, count, lambda value: io_data.__setitem__(slice(size * count), value))
        if kind == ExitKind.MMIO:
            size = record[2] & 0xFFFFFFFF
            if record[2] >> 32:
                return MmioWrite(record[0], size, record[1] & (1 << 8 * size) - 1)
            return MmioRead(record[0], size, lambda value: record.__setitem__(1, value))
        if kind == ExitKind.HALT:
            return Halt()
        if kind == ExitKind.INTERRUPTED:
            return Interrupted()
        if kind in _DETAILED:
            return _DETAILED[kind](self.backend.describe())
        return OtherExit(record[0], self.backend.describe())
