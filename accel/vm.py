"""Vm: what people use to run guests with a loop of their own; `Machine` stands on it.

It owns what every accelerator has in common: the locks, the gates, the memory and its transactions. A backend
does the rest behind the surface of `accel.backend`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Self

from accel.address import ADDRESS_SPACE_SIZE
from accel.backend import HOLD_NEEDS, Accelerator, Capability, VmConfig
from accel.backend_checks import check_listener, check_vcpu, check_vm
from accel.blocker import AccelBlocker
from accel.errors import CapabilityError, ClosedError, DeviceError, UsageError
from accel.interrupts import interrupts_held_back
from accel.locks import BIG_LOCK, RING_LOCK, Lock
from accel.memory import guest_access
from accel.memory.address_space import AddressSpace
from accel.memory.dirty_sync import DirtySync
from accel.memory.region import MemoryRegion
from accel.memory.served import ServedHistory
from accel.memory.transaction import Atomic, Transactions
from accel.options import parse_options
from accel.vcpu import Vcpu

PORT_COUNT = 1 << 16
_CONTROLLERS = {Capability.IRQCHIP: "interrupt controllers", Capability.PIT: "interval timer"}


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
        """Close the VMs that are left; may be called twice. Raises InhibitTimeoutError as `Vm.close` does."""
        while self._vms:
            self._vms[-1].close()
            self._vms.pop()

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
        dirty_log: Which pages were written, for those who asked.
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
        self.dirty_log = DirtySync(self.transactions)
        self.closed = False
        self.coalesced_writes = 0
        self._ring_lock = Lock(RING_LOCK)
        # What was taken out of the ring and is not delivered yet, and whether a thread is at it; under the big lock.
        self._undelivered: deque[tuple[int, int, bool, bytes]] = deque()
        self._draining = False
        self.vcpus: tuple[Vcpu, ...] = ()
        self.backend = accelerator.create_vm(config)
        check_vm(self.backend)
        try:
            self._require_controllers(accelerator.name)
            self._choose_hold(str(options.get("hold", "inhibit")))
            self.history = ServedHistory(self.backend.page_size)
            self.memory = AddressSpace(
                "memory",
                self.transactions,
                MemoryRegion.container("memory", ADDRESS_SPACE_SIZE),
                self.history,
                fixed=True,
            )
            self.io = AddressSpace("io", self.transactions, MemoryRegion.container("io", PORT_COUNT), fixed=True)
            listener = self.backend.memory_listener()
            check_listener(listener, "memory_listener")
            self.memory.add_listener(listener)
            io_listener = self.backend.io_listener()
            if io_listener is not None:
                check_listener(io_listener, "io_listener")
                self.io.add_listener(io_listener)
        except BaseException:
            self.backend.close()
            raise

    def _require_controllers(self, name: str) -> None:
        """Refuse interrupt controllers and a timer that the accelerator does not claim, whatever it made of them."""
        wanted = ((self.config.irqchip, Capability.IRQCHIP), (self.config.pit, Capability.PIT))
        for is_wanted, capability in wanted:
            if is_wanted and capability not in self.backend.capabilities:
                raise CapabilityError(
                    f"accelerator '{name}' has no {_CONTROLLERS[capability]}; create the VM without {capability}"
                )

    def _choose_hold(self, hold: str) -> None:
        needed = HOLD_NEEDS.get(hold)
        if needed is not None and needed not in self.backend.capabilities:
            raise CapabilityError(
                f"hold={hold} needs '{needed}', which this accelerator does not offer; use hold=inhibit"
            )
        if hold == "kick-all":
            self.transactions.hold_vcpus = self._all_kicked

    @contextmanager
    def _all_kicked(self, timeout: float) -> Iterator[None]:
        self.backend.kick_all(timeout)
        try:
            yield
        finally:
            self.backend.resume_all()

    def transaction(self, atomic: Atomic = "address") -> AbstractContextManager[None]:
        """Return the context of a transaction; see `Transactions.transaction`."""
        return self.transactions.transaction(atomic)

    def create_address_space(self, name: str, root: MemoryRegion) -> AddressSpace:
        """Create another space, such as what a device sees through its bus; close it with `AddressSpace.close`.

        In a transaction it shows nothing before that ends, and never comes to be if that fails.

        Raises:
            UsageError: There is one of this name.
            RegionError: `root` belongs to another VM.
            StateError: The calling thread is inside a transaction of another VM.
            ClosedError: The VM is closed.
        """
        self.transactions.check_thread()
        with self.big_lock:
            if any(space.name == name for space in self.transactions.spaces):
                raise UsageError(f"address space '{name}' exists already; choose another name")
            return AddressSpace(name, self.transactions, root)

    @property
    def inhibit_timeout(self) -> float:
        """Longest wait for the vCPUs to come out, for a change or a close, in seconds; can be set at any time."""
        return self.transactions.inhibit_timeout

    @inhibit_timeout.setter
    def inhibit_timeout(self, seconds: float) -> None:
        self.transactions.inhibit_timeout = seconds

    @property
    def address_spaces(self) -> tuple[AddressSpace, ...]:
        """All spaces: memory, ports, and those that were created."""
        return self.transactions.spaces

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
            backend = self.backend.create_vcpu(index)
            check_vcpu(backend)
            vcpu = Vcpu(self, index, backend)
            self.vcpus = (*self.vcpus, vcpu)
            return vcpu

    def set_irq(self, line: int, level: bool) -> None:
        """Set the level of an interrupt line, from any thread.

        Raises:
            CapabilityError: The VM has no interrupt controllers.
            UsageError: They have no such line.
        """
        with self.blocker.vm_call("set_irq"):
            self.backend.set_irq(line, level)

    def drain(self) -> None:
        """Deliver the coalesced writes that wait, in order; takes the big lock if there are any.

        Does nothing if the VM is closed, or being closed by another thread. An interrupt (Ctrl-C) leaves the rest for
        the next call.

        Raises:
            DeviceError: A handler raised; the first if several did. What other devices were written behind that was
                delivered all the same.
        """
        ring = self.backend.ring
        try:
            if ring is None or (ring.indices[0] == ring.indices[1] and not self._undelivered):
                return
        except ValueError:
            return  # closed since: the ring is unmapped
        with self.big_lock:
            if self._draining or self.closed:
                # A handler edits memory while it is served from here; the rest follows when it returns.
                return
            with interrupts_held_back(), self._ring_lock:
                self._undelivered.extend(ring.pop())
            failed: DeviceError | None = None
            try:
                self._draining = True
                while self._undelivered:
                    try:
                        self._deliver(*self._undelivered.popleft())
                    except DeviceError as error:
                        failed = failed or error
            finally:
                self._draining = False
            if failed is not None:
                raise failed

    @property
    def delivering(self) -> bool:
        """Whether the calling thread is delivering coalesced writes: it is in a device's handler."""
        return self._draining and self.big_lock.held()

    def _deliver(self, address: int, size: int, is_port: bool, data: bytes) -> None:
        space = self.io if is_port else self.memory
        self.coalesced_writes += len(data) // size
        try:
            guest_access.store_run(space, address, size, data)
        except Exception as error:
            section = space.view.find(address)
            name = section.region.name if section is not None else "unassigned"
            raise DeviceError(name, "coalesced write to", address, None, error) from error

    def close(self) -> None:
        """Bring every vCPU out, and close them and the VM; may be called twice.

        A transaction that is open on the calling thread fails at its end.

        Raises:
            InhibitTimeoutError: A vCPU did not come out; nothing is closed, and close may be retried.
            StateError: Called by a memory listener that is told of a change.
        """
        with self.big_lock:
            if self.closed:
                return
            self.transactions.check_idle()
            # An interrupt (Ctrl-C) is let through while it waits for the vCPUs, and then only once all is closed.
            with (
                interrupts_held_back(),
                self.blocker.inhibit(self.inhibit_timeout),
                ExitStack() as stack,  # all of it, whatever raises
            ):
                self.closed = True
                # Whoever waits outside, or comes later, hears of it instead of calling into what is gone.
                self.blocker.close()
                # From the last to the first: memory is let go of once the accelerator shows it no more.
                stack.callback(self.transactions.close)
                stack.callback(self.backend.close)
                for vcpu in self.vcpus:
                    stack.callback(vcpu.close)
                for space in self.address_spaces:
                    stack.callback(space.abandon)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
