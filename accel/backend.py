"""The surface that an accelerator plugin implements: `Accelerator`, `VmBackend`, `VcpuBackend`.

It is small on purpose. Everything that accelerators have in common (region tree, views, transactions,
holding vCPUs, gates, threads, devices) is the core's; a backend creates VMs and vCPUs, enters the guest, and
brings one memory listener that maps RAM. The core never names a backend: it finds them through the hook
``accel_register_accelerators``.

Locking, for all methods unless they say otherwise: `VmBackend` methods are called under the big lock or
inside the VM's gate; `VcpuBackend` methods are called inside the vCPU's gate, by one thread at a time.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Protocol

from attrs import Factory, field, frozen

from accel.address import PAGE_SIZE
from accel.arch.x86 import X86State
from accel.errors import CapabilityError
from accel.exits import ExitKind
from accel.memory.listener import MemoryListener
from accel.options import Option
from accel.program import GuestProgram


class Capability(enum.StrEnum):
    """What an accelerator may offer beyond RAM and vCPUs; probed, never deduced from a version."""

    READONLY_MEMORY = "readonly-memory"
    COALESCED_PIO = "coalesced-pio"
    COALESCED_MMIO = "coalesced-mmio"
    IOEVENTFD = "ioeventfd"
    DIRTY_LOG = "dirty-log"
    #: Can note written pages in a ring of each vCPU instead (`VmBackend.empty_dirty_rings`).
    DIRTY_RING = "dirty-ring"
    IRQCHIP = "irqchip"
    PIT = "pit"
    #: Brings all vCPUs out and keeps them out by itself (`VmBackend.kick_all`).
    KICK_ALL_VCPUS = "kick-all-vcpus"
    #: Changes any number of slots in one step that guests see whole (`SlotUpdate`, `at_once`).
    REGION_LIST = "region-list"


@frozen
class Availability:
    """Whether an accelerator can be used here and now, and why not."""

    ok: bool
    reason: str = ""
    capabilities: frozenset[Capability] = frozenset()
    details: Mapping[str, str] = field(factory=dict)


@frozen
class RecordedCall:
    """A call into the accelerator that was noted instead of being made; see `VmBackend.take_calls`.

    What it says is the same in each run: no host addresses, no file descriptors.

    Attributes:
        name: The function or ioctl.
        arguments: By name, in the order in which they are shown. Addresses, sizes and flags as integers, or as text
            where that says more.
        result: What it gave, such as the name of the code for success.
    """

    name: str
    arguments: Mapping[str, int | str]
    result: str


#: What an accelerator must offer for a ``hold``.
HOLD_NEEDS = {"kick-all": Capability.KICK_ALL_VCPUS, "region-list": Capability.REGION_LIST}

#: The option of accelerators that have dirty rings.
DIRTY_RING_OPTION = Option(
    "dirty_ring_size",
    "int",
    0,
    "note written pages in a ring of so many entries for each vCPU, a power of two; 0 for a bitmap for each slot",
    minimum=0,
    maximum=1 << 16,
)

#: The options of every slot-like accelerator. `Vm` reads ``hold`` and ``inhibit_timeout_ms``, the listener
#: reads ``plan``; and ``hold``, if its VM has `Capability.REGION_LIST`: for ``region-list`` it brings `SlotUpdate`
#: the call that applies a plan at once.
MEMORY_OPTIONS = (
    Option(
        "hold",
        "choice",
        "inhibit",
        "how vCPUs are kept from seeing half of a memory change; unsafe holds nobody, kick-all and region-list "
        "leave it to accelerators that can",
        choices=("inhibit", "unsafe", "kick-all", "region-list"),
    ),
    Option(
        "plan",
        "choice",
        "least",
        "least leaves slots that stay right alone; replace deletes and re-adds each changed section",
        choices=("least", "replace"),
    ),
    Option(
        "inhibit_timeout_ms",
        "int",
        10_000,
        "longest wait for vCPUs to come out before a memory change gives up",
        minimum=1,
    ),
)


@frozen
class VmConfig:
    """What a VM is created with.

    Attributes:
        options: A value for each option that the accelerator declares.
        irqchip: Create interrupt controllers in the accelerator. Where a VM does not claim `Capability.IRQCHIP`, the
            core closes it and refuses; the accelerator need not look.
        pit: Create the interval timer in the accelerator; needs `irqchip`. Refused like that without `Capability.PIT`.
    """

    options: Mapping[str, object] = Factory(dict)
    irqchip: bool = False
    pit: bool = False


class Accelerator(ABC):
    """One way to run guests, as registered by a plugin. Creating the object must be cheap and open nothing."""

    #: The name people select it by.
    name: ClassVar[str]
    #: One line for `accelctl list`.
    summary: ClassVar[str] = ""
    #: What its vCPUs execute: ``x86`` machine code, ``program`` (a `GuestProgram`).
    executes: ClassVar[frozenset[str]]
    #: Where nobody names an accelerator, those with a higher priority are tried first.
    priority: ClassVar[int] = 0
    #: The options it declares.
    options: ClassVar[tuple[Option, ...]] = ()
    #: Whether its vCPUs run in this process and take turns (`accel.turns`), so that its runs can be repeated.
    takes_turns: ClassVar[bool] = False
    #: Whether it can tell which calls a memory map would make without making them: it has `create_dry_vm`.
    dry_run: ClassVar[bool] = False

    @abstractmethod
    def probe(self) -> Availability:
        """Return whether it can be used, with the reason; must not raise and must leave nothing open.

        Called on a thread of its own and waited for, by default 5 seconds (`accel.probing`).
        """

    @abstractmethod
    def create_vm(self, config: VmConfig) -> VmBackend:
        """Create an empty VM.

        Raises:
            BackendError: A call failed.
            CapabilityError: `config` asks for something it does not offer.
        """

    def create_dry_vm(self, config: VmConfig) -> VmBackend:
        """Create a VM that notes the calls that it would make (`VmBackend.take_calls`), for a `dry_run`.

        It opens nothing and works on every host, whatever `probe` says. Its listener plans and refuses as that of a
        real VM. Its vCPUs never run; the core does not create any.

        Raises:
            CapabilityError: It cannot tell; `dry_run` says so too.
        """
        raise CapabilityError(f"{self.name} offers no dry run: it cannot tell its calls without making them")


class CoalescedRing(Protocol):
    """Guest writes that the accelerator queued instead of leaving the guest for each.

    Attributes:
        indices: A view of two 32-bit words that differ while entries wait; readable without a lock.
    """

    indices: memoryview

    def pop(self) -> Iterable[tuple[int, int, bool, bytes]]:
        """Take out all entries, oldest first: `(address, size, is_port, data)`.

        Runs of one-byte writes to one address may come as one entry of size 1 with longer data. Called
        under the ring's lock.
        """


class VmBackend(ABC):
    """A VM inside the accelerator."""

    #: What this VM offers; probed on the VM itself where the accelerator answers there.
    capabilities: frozenset[Capability] = frozenset()
    #: Greatest number of vCPUs.
    max_vcpus: int = 1
    #: Granule in which RAM can be mapped.
    page_size: int = PAGE_SIZE
    #: The ring of coalesced writes, once a vCPU exists and if there is one.
    ring: CoalescedRing | None = None

    @abstractmethod
    def create_vcpu(self, index: int) -> VcpuBackend:
        """Create the vCPU with this index. Raises BackendError."""

    @abstractmethod
    def memory_listener(self) -> MemoryListener:
        """Return the listener that maps RAM; the core registers it with the memory space."""

    def io_listener(self) -> MemoryListener | None:
        """Return a listener for the port space, or None."""
        return None

    def set_irq(self, line: int, level: bool) -> None:
        """Set the level of an interrupt line; any thread.

        Raises:
            CapabilityError: There is no interrupt controller in the accelerator.
            UsageError: There is no such line.
        """
        raise CapabilityError("this VM has no interrupt controller; create it with irqchip")

    def kick_all(self, timeout: float) -> None:
        """Bring every vCPU out of the guest and let none in until `resume_all`; with `KICK_ALL_VCPUS` only.

        When it returns no vCPU executes guest code. A `VcpuBackend.run` that is called or in progress meanwhile
        either returns ``INTERRUPTED`` or waits inside until `resume_all`, and then goes on; a kick frees one that
        waits, so that it returns without having executed anything. Every other call works as ever. Called under the
        big lock and the slots locks, never nested.

        Args:
            timeout: Longest wait, in seconds.

        Raises:
            InhibitTimeoutError: A vCPU did not come out; all go on.
            BackendError: The call failed; all go on.
        """
        raise CapabilityError("this accelerator cannot kick all vCPUs by itself; use hold=inhibit")

    def resume_all(self) -> None:
        """Let the vCPUs go on after `kick_all`. Must not fail."""
        raise CapabilityError("this accelerator cannot kick all vCPUs by itself; use hold=inhibit")

    def empty_dirty_rings(self) -> None:
        """Merge what is in the dirty rings into the logs of its slots, so that vCPUs can go on; with `DIRTY_RING` only.

        Called under the big lock after a vCPU has come out with ``DIRTY_RING_FULL``; vCPUs may run. See
        `accel.memory.dirty_rings`.

        Raises:
            BackendError: The accelerator failed; nothing is lost.
        """
        raise CapabilityError("this accelerator has no dirty rings, so none can be full")

    def memory_figures(self) -> Mapping[str, float]:
        """Return figures of its memory for reports, such as `SlotPlanner.figures`; read without a lock."""
        return {}

    def take_calls(self) -> Sequence[RecordedCall]:
        """Return the calls that changed memory since the last time, in order, and forget them; of a dry VM only."""
        return ()

    def host(self) -> str:
        """Return the flavour of host it runs on, for reports."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """Release everything; called once, after the vCPUs are closed."""


class VcpuBackend(ABC):
    """A vCPU inside the accelerator."""

    #: The exit record (see `accel.exits`): a view of at least three native 64-bit words.
    record: memoryview
    #: Data of port accesses, as bytes.
    io_data: memoryview

    @abstractmethod
    def run(self) -> int:
        """Enter the guest until it comes out; return an `ExitKind`.

        An interrupted call (`kick`) returns ``INTERRUPTED`` and has taken back the kick before it returns. It may
        return that without a kick too: a signal can come late, or from a debugger.
        The data for a read exit is in `record` or `io_data` when `run` is called again.

        Raises:
            BackendError: The call failed for another reason than a kick.
        """

    @abstractmethod
    def kick(self, thread_id: int) -> None:
        """Make the `run` in progress, or else the next one, return ``INTERRUPTED``.

        Called from any thread, with or without any lock; `thread_id` is the native id of the thread that
        runs the vCPU. Must not block.
        """

    def prepare_thread(self) -> None:
        """Get the calling thread ready to run the vCPU; called once on each thread before its first `run`."""

    def finish(self) -> int:
        """Complete the access of the last exit without executing on, so that state can be read.

        Returns ``INTERRUPTED`` once nothing is left to complete, or the kind of a further exit that the same
        access needs (one that crosses a page), to be served before the next call. The default suits
        backends whose state is complete at each exit.
        """
        return ExitKind.INTERRUPTED

    def read_state(self) -> X86State:
        """Return registers and mode. Raises CapabilityError if it does not execute x86."""
        raise CapabilityError("this accelerator has no x86 registers")

    def write_state(self, state: X86State) -> None:
        """Set registers and mode. Raises CapabilityError if it does not execute x86.

        A vCPU that sleeps in a halt goes on from there at the next `run`; one that waits for INIT and SIPI waits on.
        """
        raise CapabilityError("this accelerator has no x86 registers")

    def load_program(self, program: GuestProgram) -> None:
        """Start a `GuestProgram` at its first operation. Raises CapabilityError if it executes none."""
        raise CapabilityError("this accelerator does not run guest programs itself")

    def describe(self) -> str:
        """Return a line about the last exit and where the guest stands, for error messages."""
        return ""

    def fault_address(self) -> int | None:
        """Return the guest-physical address that the last failed exit is about, where it can be known."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release everything; called once, by any thread, while nobody runs it."""
