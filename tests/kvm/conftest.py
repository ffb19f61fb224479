"""Guests on real KVM: by bare requests, with a free signal, for what lies under the classes; and through them."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import pytest

import accel
from accel.address import PAGE_SIZE, AddressRange
from accel.arch.x86_boot import plan_boot
from accel.errors import BackendError
from accel.memory.dirty import DirtyClient
from accel_kvm import abi, kick, slots
from accel_kvm import ioctl as ioctl_module
from accel_kvm.ioctl import ioctl
from accel_kvm.memory_listener import KvmMemoryListener

GPA = 0x1000
COUNTER = 0xFF0

#: 16-bit code, run at 0x1000. `count` is `1: incw (0x1ff0); jmp 1b`: the word is `RawGuest.counter`.
CODE = {"count": bytes.fromhex("ff06f01f ebfa"), "halt": b"\xf4"}


class RawGuest:
    """One page of memory and one vCPU in real mode, about to execute `code`."""

    def __init__(self, code: bytes) -> None:
        self.system_fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self.vm_fd = ioctl(self.system_fd, abi.KVM_CREATE_VM, 0, "KVM_CREATE_VM")
        ioctl(self.vm_fd, abi.KVM_SET_TSS_ADDR, 0xFFFB_D000, "KVM_SET_TSS_ADDR")
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.memory[: len(code)] = code
        self._memory_export = ctypes.c_char.from_buffer(self.memory)
        self.hva = ctypes.addressof(self._memory_export)
        region = abi.KvmUserspaceMemoryRegion(0, 0, GPA, mmap.PAGESIZE, self.hva)
        ioctl(self.vm_fd, abi.KVM_SET_USER_MEMORY_REGION, region, "KVM_SET_USER_MEMORY_REGION")
        self.vcpu_fd = ioctl(self.vm_fd, abi.KVM_CREATE_VCPU, 0, "KVM_CREATE_VCPU")
        size = ioctl(self.system_fd, abi.KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE")
        self._page = mmap.mmap(self.vcpu_fd, size)
        self.run = abi.KvmRun.from_buffer(self._page)
        self._enter_at(GPA)

    def _enter_at(self, rip: int) -> None:
        sregs = abi.KvmSregs()
        ioctl(self.vcpu_fd, abi.KVM_GET_SREGS, sregs, "KVM_GET_SREGS")
        sregs.cs.base = sregs.cs.selector = 0
        ioctl(self.vcpu_fd, abi.KVM_SET_SREGS, sregs, "KVM_SET_SREGS")
        ioctl(self.vcpu_fd, abi.KVM_SET_REGS, abi.KvmRegs(rip=rip, rflags=2), "KVM_SET_REGS")

    @property
    def counter(self) -> int:
        return int.from_bytes(self.memory[COUNTER : COUNTER + 2], "little")

    def regs(self) -> abi.KvmRegs:
        regs = abi.KvmRegs()
        ioctl(self.vcpu_fd, abi.KVM_GET_REGS, regs, "KVM_GET_REGS")
        return regs

    def close(self) -> None:
        for fd in (self.vcpu_fd, self.vm_fd, self.system_fd):
            os.close(fd)


@pytest.fixture
def raw_guest() -> Iterator[Callable[[str], RawGuest]]:
    """Make guests that execute one of `CODE`; they are closed when the test ends."""
    guests: list[RawGuest] = []

    def make(code: str) -> RawGuest:
        guests.append(RawGuest(CODE[code]))
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


@pytest.fixture(params=[signal.SIGURG, signal.SIGUSR2, signal.SIGRTMIN + 7], ids=["SIGURG", "SIGUSR2", "SIGRTMIN+7"])
def kick_signal(request: pytest.FixtureRequest) -> Iterator[int]:
    """A signal without a handler; what the kernel had for it before is put back afterwards."""
    number = int(request.param)
    before = kick._Sigaction()
    assert kick._sigaction(number, None, before) == 0
    # By way of SIG_IGN, which drops what is pending: a joined thread may still be on its way out with a kick
    # to be delivered, and the default action would end the process.
    signal.signal(number, signal.SIG_IGN)
    signal.signal(number, signal.SIG_DFL)
    yield number
    signal.signal(number, signal.SIG_IGN)
    assert kick._sigaction(number, before, None) == 0


ENTRY = 0x8000


@attrs.define(eq=False)
class Guest:
    """A VM of the plugin with 1 MiB of RAM at 0, and its vCPU 0, about to execute the code at 0x8000."""

    vm: accel.Vm
    vcpu: accel.Vcpu
    ram: accel.MemoryRegion
    start: accel.X86State

    def restart(self, code: str | None = None) -> None:
        """Go back to the entry point, with other code there if some is given."""
        if code is not None:
            self.ram.write(ENTRY, bytes.fromhex(code))
        self.vcpu.write_state(self.start)

    def load(self, address: int) -> int | None:
        """Return the byte that the guest loads in protected mode, or None if that exits."""
        self.restart(f"a0{address.to_bytes(4, 'little').hex()} e660 f4")  # mov address, %al; out %al, $0x60; hlt
        access = self.vcpu.run()
        if isinstance(access, accel.IoOut):
            return access.data[0]
        assert access == accel.MmioRead(address, 1, None)
        return None

    def store(self, address: int, value: int) -> bool:
        """Have the guest store a byte in protected mode; return whether a slot took it."""
        # mov $value, %al; mov %al, address; hlt
        self.restart(f"b0{value:02x} a2{address.to_bytes(4, 'little').hex()} f4")
        access = self.vcpu.run()
        assert access in (accel.Halt(), accel.MmioWrite(address, 1, value))
        return access == accel.Halt()

    def word(self, address: int) -> int:
        """Return a 32-bit word of the first megabyte."""
        return int.from_bytes(self.ram.read(address, 4), "little")

    def dirty_pages(self, region: accel.MemoryRegion, client: DirtyClient = DirtyClient.VGA) -> list[int]:
        """Return the numbers of the pages of `region` that were written since the last time."""
        return [
            page
            for window in self.vm.dirty_log.collect(region, client).ranges()
            for page in range(window.start // PAGE_SIZE, window.end // PAGE_SIZE)
        ]

    @contextmanager
    def running(self, until: type[accel.exits.Exit] | None = None) -> Iterator[list[accel.exits.Exit]]:
        """Run the guest on a thread during the block; with `until`, up to an exit of that kind."""
        exits: list[accel.exits.Exit] = []
        stop = threading.Event()

        def loop() -> None:
            while not stop.is_set() and not (until and exits and isinstance(exits[-1], until)):
                exits.append(self.vcpu.run())

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield exits
            if until:
                thread.join(60)
        finally:
            stop.set()
            self.vcpu.kick()
            thread.join(60)
            assert not thread.is_alive()
        # The thread may have seen that it is to stop before the kick came, which then is there for the next run: one
        # that is made again takes it away.
        self.vcpu.kick()
        assert self.vcpu.run() == accel.Interrupted()

    @property
    def listener(self) -> KvmMemoryListener:
        """The plugin's memory listener."""
        return next(one for one in self.vm.memory.listeners if isinstance(one, KvmMemoryListener))


@pytest.fixture
def open_vm() -> Iterator[Callable[..., accel.Vm]]:
    """Make empty VMs with the options given; they are closed when the test ends."""
    opened: list[accel.OpenAccelerator] = []

    def make(*, irqchip: bool = False, **options: object) -> accel.Vm:
        opened.append(accel.open_accelerator("kvm", options={"kvm": options}))
        return opened[-1].create_vm(irqchip=irqchip)

    yield make
    for accelerator in opened:
        accelerator.close()


@pytest.fixture
def boot(open_vm: Callable[..., accel.Vm]) -> Callable[..., Guest]:
    """Make guests that execute `code`, in hex: `boot("f4", mode="long64", plan="replace")`."""

    def make(code: str, *, mode: str = "protected32", irqchip: bool = False, **options: object) -> Guest:
        vm = open_vm(irqchip=irqchip, **options)
        ram = accel.MemoryRegion.ram("ram", "1M")
        vm.memory.add(ram, at=0)
        plan = plan_boot(
            entry=ENTRY,
            mode=accel.BootMode(mode),
            cpus=1,
            occupied=[AddressRange.sized(ENTRY, 0x1000)],
            ram=[AddressRange(0, ram.size)],
        )
        for address, data in plan.segments:
            ram.write(address, data)
        start = plan.state(0)
        assert start is not None
        guest = Guest(vm, vm.create_vcpu(0), ram, start)
        guest.restart(code)
        return guest

    return make


@pytest.fixture(params=[0, 4096], ids=["bitmaps", "rings"])
def ring_size(request: pytest.FixtureRequest) -> int:
    """How written pages are noted: entries of each vCPU's dirty ring, 0 for a bitmap for each slot."""
    return int(request.param)


@pytest.fixture
def filled() -> Callable[..., accel.MemoryRegion]:
    """Make RAM that is full of one byte, also beyond its size: `filled("ram", 0x11, 0x1000, 0x2000)`."""

    def make(name: str, byte: int, size: int = PAGE_SIZE, max_size: int | None = None) -> accel.MemoryRegion:
        region = accel.MemoryRegion.ram(name, max_size or size, max_size)
        region.write(0, bytes([byte]) * (max_size or size))
        region.resize(size)
        return region

    return make


@attrs.frozen
class SlotCall:
    """A KVM_SET_USER_MEMORY_REGION that a listener made."""

    slot: int
    gpa: int
    size: int
    flags: int
    errno: int = 0


@pytest.fixture
def slot_calls(monkeypatch: pytest.MonkeyPatch) -> list[SlotCall]:
    """What memory listeners ask of the kernel; each call goes through."""
    seen: list[SlotCall] = []

    def watched(fd: int, request: int, region: abi.KvmUserspaceMemoryRegion, operation: str) -> int:
        assert request == abi.KVM_SET_USER_MEMORY_REGION
        call = SlotCall(region.slot, region.guest_phys_addr, region.memory_size, region.flags)
        try:
            result = ioctl(fd, request, region, operation)
        except BackendError as error:
            seen.append(attrs.evolve(call, errno=error.errno))
            raise
        seen.append(call)
        return result

    monkeypatch.setattr(slots, "ioctl", watched)
    return seen


class Faults:
    """Lies between the plugin and the kernel, and lets calls that change a VM fail without making them.

    Attributes:
        calls: The requests since `reset`, those that fail too.
        errnos: What the call with a number, counted from 0, fails with.
        before_call: Called with the request.
    """

    WATCHED = frozenset(
        (
            abi.KVM_SET_USER_MEMORY_REGION,
            abi.KVM_GET_DIRTY_LOG,
            abi.KVM_RESET_DIRTY_RINGS,
            abi.KVM_IOEVENTFD,
            abi.KVM_REGISTER_COALESCED_MMIO,
            abi.KVM_UNREGISTER_COALESCED_MMIO,
        )
    )

    def __init__(self, call: Callable[[int, int, int], int]) -> None:
        self._call = call
        self.before_call: Callable[[int], None] = lambda request: None
        self.reset()

    def reset(self, errnos: dict[int, int] | None = None) -> None:
        self.calls: list[int] = []
        self.errnos = errnos or {}

    def ioctl(self, fd: int, request: int, value: int) -> int:
        if request in self.WATCHED:
            self.calls.append(request)
            self.before_call(request)
            errno = self.errnos.get(len(self.calls) - 1)
            if errno is not None:
                ctypes.set_errno(errno)
                return -1
        return self._call(fd, request, value)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """What to fail, below everything that the plugin does with an errno."""
    layer = Faults(ioctl_module.raw_ioctl)
    monkeypatch.setattr(ioctl_module, "raw_ioctl", layer.ioctl)
    return layer
