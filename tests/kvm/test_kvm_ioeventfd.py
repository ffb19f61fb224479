"""Doorbells on real KVM: which writes ring and do not exit, where they move to, and what KVM refuses."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator

import pytest

import accel
from accel import Halt, IoOut, MmioRead, MmioWrite
from accel.errors import BackendError
from accel.memory import guest_access
from accel.memory.ioeventfd import IoEventFd
from accel_kvm import abi, ioeventfd
from accel_kvm.ioctl import ioctl

pytestmark = pytest.mark.kvm

PORT = 0x600
ADDRESS = 0x30_0000


class Bell:
    """An eventfd."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)

    def rung(self) -> int:
        """Return how often it was rung since the last time."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


@pytest.fixture
def bell() -> Iterator[Callable[[], Bell]]:
    """Make eventfds."""
    made: list[Bell] = []

    def make() -> Bell:
        made.append(Bell())
        return made[-1]

    yield make
    for one in made:
        one.close()


class Place:
    """Ports or memory with a device at them, and how a guest writes there.

    Attributes:
        at: Where the device begins.
        device: The device, of 16 bytes.
        space: Where it is.
    """

    def __init__(self, vm: accel.Vm, kind: str) -> None:
        self.is_port = kind == "ports"
        self.at = PORT if self.is_port else ADDRESS
        self.space = vm.io if self.is_port else vm.memory
        self.device = accel.MemoryRegion.mmio("device", 16)
        self.space.add(self.device, at=self.at)

    def write(self, offset: int, value: int, size: int = 4) -> str:
        """Return code that writes once."""
        at, load = self.at + offset, f"b8{value.to_bytes(4, 'little').hex()}"  # mov $value, %eax
        if self.is_port:  # mov $at, %dx; out %al/%ax/%eax, %dx
            return f"{load} 66ba{at.to_bytes(2, 'little').hex()} {({1: 'ee', 2: '66ef', 4: 'ef'})[size]}"
        return f"{load} {({1: 'a2', 2: '66a3', 4: 'a3'})[size]}{at.to_bytes(4, 'little').hex()}"  # mov %a, at

    def exit(self, offset: int, value: int, size: int = 4) -> accel.exits.Exit:
        """Return the exit of such a write."""
        if self.is_port:
            return IoOut(self.at + offset, size, 1, value.to_bytes(size, "little"))
        return MmioWrite(self.at + offset, size, value)


@pytest.fixture(params=["ports", "memory"])
def place(request: pytest.FixtureRequest) -> str:
    """Where the doorbells are."""
    return request.param


@pytest.fixture
def run(boot) -> Callable[..., list[accel.exits.Exit]]:
    """Have a guest execute code up to its end, and return the exits before that."""

    def run(guest, *code: str) -> list[accel.exits.Exit]:
        guest.restart("".join(code) + "f4")
        exits = []
        while not isinstance(access := guest.vcpu.run(), Halt):
            exits.append(access)
        return exits

    return run


def test_doorbell_rings_for_its_writes_without_an_exit_and_leaves_the_others_alone(boot, bell, run, place) -> None:
    guest, one = boot("f4"), bell()
    there = Place(guest.vm, place)
    there.device.add_eventfd(4, one.fd, size=4)
    assert run(guest, *(there.write(4, value) for value in (0, 1, 0xFFFF_FFFF))) == []
    assert one.rung() == 3
    others = [(0, 1, 4), (8, 1, 4), (4, 1, 2), (4, 1, 1), (5, 1, 1)]
    assert run(guest, *(there.write(*other) for other in others)) == [there.exit(*other) for other in others]
    assert one.rung() == 0
    again = there.write(4, 1)
    assert run(guest, *[again] * 100) == []
    assert one.rung() == 100


def test_doorbell_with_a_value_rings_for_that_value_only(boot, bell, run, place) -> None:
    guest, one, two = boot("f4"), bell(), bell()
    there = Place(guest.vm, place)
    with guest.vm.transaction():
        there.device.add_eventfd(0, one.fd, size=2, match=0)
        there.device.add_eventfd(0, two.fd, size=2, match=0xABCD)
    writes = [0xABCD, 0, 1, 0xABCD]
    assert run(guest, *(there.write(0, value, 2) for value in writes)) == [there.exit(0, 1, 2)]
    assert (one.rung(), two.rung()) == (1, 2)
    there.device.remove_eventfd(0, one.fd, size=2, match=0)
    assert run(guest, *(there.write(0, value, 2) for value in writes)) == [there.exit(0, 0, 2), there.exit(0, 1, 2)]
    assert (one.rung(), two.rung()) == (0, 2)


def test_doorbell_of_any_size_rings_for_all_sizes_at_its_place(boot, bell, run, place) -> None:
    guest, one = boot("f4"), bell()
    there = Place(guest.vm, place)
    there.device.add_eventfd(8, one.fd)
    assert run(guest, *(there.write(8, 7, size) for size in (1, 2, 4))) == []
    assert one.rung() == 3
    assert run(guest, there.write(9, 7, 1)) == [there.exit(9, 7, 1)]


def test_doorbell_of_any_size_in_memory_is_never_one_that_a_read_could_ring(boot, bell, monkeypatch, place) -> None:
    """KVM on Intel's processors takes every access for a write where the size is given as 0 (its fast MMIO bus)."""
    sizes = []

    def watched(fd: int, request: int, call: abi.KvmIoeventfd, operation: str) -> int:
        sizes.append(call.len)
        return ioctl(fd, request, call, operation)

    monkeypatch.setattr(ioeventfd, "ioctl", watched)
    guest, one = boot("f4"), bell()
    there = Place(guest.vm, place)
    there.device.add_eventfd(8, one.fd)
    there.device.remove_eventfd(8, one.fd)
    assert sizes == ([0, 0] if there.is_port else [1, 2, 4, 8, 1, 2, 4, 8])


def test_doorbell_of_any_size_rings_for_eight_bytes_and_lets_reads_through(boot, bell) -> None:
    guest, one = boot("f4", mode="long64"), bell()
    there = Place(guest.vm, "memory")
    there.device.add_eventfd(8, one.fd)
    place = (ADDRESS + 8).to_bytes(8, "little").hex()
    guest.restart(f"48a3{place} 48a1{place} f4")  # movabs %rax, place; movabs place, %rax; hlt
    assert guest.vcpu.run() == MmioRead(ADDRESS + 8, 8, None)
    assert one.rung() == 1


def test_doorbell_of_any_size_at_a_port_without_the_capability_is_rung_by_the_core(boot, bell, run) -> None:
    guest, one, two = boot("f4"), bell(), bell()
    for listener in guest.vm.io.listeners:
        listener._any_size = False
    there = Place(guest.vm, "ports")
    with guest.vm.transaction():
        there.device.add_eventfd(0, one.fd)
        there.device.add_eventfd(8, two.fd, size=4)
    assert run(guest, there.write(0, 7), there.write(8, 7)) == [there.exit(0, 7)]
    assert (one.rung(), two.rung()) == (0, 1)
    guest_access.store(there.space, there.at, 7, 4)  # what whoever serves the exit does
    assert one.rung() == 1
    there.device.remove_eventfd(0, one.fd)


def test_doorbell_without_the_capability_is_rung_by_the_core(boot, bell, run, faults, place) -> None:
    guest, one = boot("f4"), bell()
    for space in (guest.vm.memory, guest.vm.io):
        for listener in space.listeners:
            listener._capabilities -= {accel.Capability.IOEVENTFD}
    there = Place(guest.vm, place)
    there.device.add_eventfd(4, one.fd, size=4)
    assert run(guest, there.write(4, 7)) == [there.exit(4, 7)]
    guest_access.store(there.space, there.at + 4, 7, 4)
    assert one.rung() == 1
    there.device.remove_eventfd(4, one.fd, size=4)
    assert abi.KVM_IOEVENTFD not in faults.calls


@pytest.mark.parametrize("how", ["remove", "hide", "cover", "take out"])
def test_doorbell_that_is_gone_lets_the_writes_through_to_the_handler(boot, bell, run, place, how) -> None:
    guest, one = boot("f4"), bell()
    there = Place(guest.vm, place)
    there.device.add_eventfd(4, one.fd, size=4)
    match how:
        case "remove":
            there.device.remove_eventfd(4, one.fd, size=4)
        case "hide":
            there.device.set_enabled(False)
        case "cover":
            there.space.add(accel.MemoryRegion.mmio("plain", 4), at=there.at + 4, priority=1)
        case _:
            there.space.remove(there.device)
    assert run(guest, there.write(4, 1)) == [there.exit(4, 1)]
    assert one.rung() == 0


def test_doorbell_moves_with_its_region(boot, bell, run, place) -> None:
    guest, one = boot("f4"), bell()
    there = Place(guest.vm, place)
    there.device.add_eventfd(4, one.fd, size=4)
    there.device.move(there.at + 0x20)
    assert run(guest, there.write(4, 1), there.write(0x24, 1)) == [there.exit(4, 1)]
    assert one.rung() == 1
    there.device.move(there.at + 4)  # over where it was before
    assert run(guest, there.write(4, 1), there.write(8, 1), there.write(0x24, 1)) == [
        there.exit(4, 1),
        there.exit(0x24, 1),
    ]
    assert one.rung() == 1


def test_doorbell_of_a_region_that_is_resized_costs_no_call(boot, bell, run, faults, place) -> None:
    guest, one = boot("f4"), bell()
    there = Place(guest.vm, place)
    there.device.add_eventfd(4, one.fd, size=4)
    there.device.add_coalescing(8, 4)
    faults.reset()
    there.device.resize(12)
    assert faults.calls == []
    assert run(guest, there.write(4, 1), there.write(8, 1)) == []
    assert one.rung() == 1
    assert there.space.listeners[0]._gone == there.space.listeners[0]._come == {}


def test_doorbell_given_another_eventfd_rings_that_one_once_all_of_the_change_is_made(
    boot, bell, run, faults, place
) -> None:
    guest, one, two = boot("f4"), bell(), bell()
    there = Place(guest.vm, place)
    there.device.add_eventfd(4, one.fd, size=4)

    def change() -> None:
        with guest.vm.transaction():
            there.device.remove_eventfd(4, one.fd, size=4)
            there.device.add_eventfd(4, two.fd, size=4)
            there.device.add_eventfd(8, two.fd, size=4)

    faults.reset({2: errno.ENOMEM})
    with pytest.raises(BackendError):
        change()
    assert run(guest, there.write(4, 1)) == []
    assert (one.rung(), two.rung()) == (1, 0)
    change()
    assert run(guest, there.write(4, 1)) == []
    assert (one.rung(), two.rung()) == (0, 1)


def test_doorbells_that_kvm_takes_for_one_are_refused_by_name(boot, bell, run, place, monkeypatch) -> None:
    """The core refuses them within one region; what KVM says where it finds one that the core does not know of."""
    monkeypatch.setattr(IoEventFd, "collides", lambda one, other: False)
    guest, one, two = boot("f4"), bell(), bell()
    there = Place(guest.vm, place)
    there.device.add_eventfd(4, one.fd)
    where = f"{'port' if there.is_port else 'address'} {there.at + 4:#x}"
    with pytest.raises(BackendError) as caught:
        there.device.add_eventfd(4, two.fd, size=2, match=0x11)
    assert (caught.value.errno, caught.value.listener, caught.value.step) == (
        errno.EEXIST,
        there.space.listeners[0].name,
        "apply",
    )
    assert f"doorbell at {where} (2 bytes, value 0x11, fd {two.fd}) of region 'device'" in str(caught.value)
    assert "another doorbell would ring for some of the same writes" in str(caught.value)
    assert [eventfd.fd for eventfd in there.device.eventfds] == [one.fd]
    assert run(guest, there.write(4, 0x11, 2)) == []
    assert (one.rung(), two.rung()) == (1, 0)


def test_doorbell_whose_fd_is_no_eventfd_is_refused_and_the_others_of_the_change_too(
    boot, bell, run, place, monkeypatch
) -> None:
    """The core refuses it where it can see what the fd is (in /proc)."""
    monkeypatch.setattr(IoEventFd, "check_fd", lambda one: None)
    guest, one = boot("f4"), bell()
    there = Place(guest.vm, place)

    def change() -> None:
        with open("/dev/null", "rb") as null, guest.vm.transaction():
            there.device.add_eventfd(0, one.fd, size=4)
            there.device.add_eventfd(8, null.fileno())

    with pytest.raises(BackendError, match=re.escape("(any size, fd " if there.is_port else "(1 bytes, fd ")) as caught:
        change()
    assert caught.value.errno == errno.EINVAL
    assert "is no open eventfd" in str(caught.value)
    assert there.device.eventfds == ()
    assert run(guest, there.write(0, 1)) == [there.exit(0, 1)]
    assert one.rung() == 0


def test_doorbell_whose_eventfd_was_closed_too_early_says_so_and_stays(boot, bell, run, place) -> None:
    guest, one = boot("f4"), bell()
    there = Place(guest.vm, place)
    fd = one.fd
    there.device.add_eventfd(4, fd, size=4)
    keep = os.dup(fd)
    one.close()
    with pytest.raises(BackendError, match=r"EBADF .*keep it open until the doorbell is removed"):
        there.space.remove(there.device)
    assert run(guest, there.write(4, 1)) == []
    os.dup2(keep, fd)
    os.close(keep)
    one.fd = fd
    there.space.remove(there.device)
    assert one.rung() == 1


def test_doorbell_of_eight_bytes_compares_all_of_them(boot, bell) -> None:
    guest, one = boot("f4", mode="long64"), bell()
    there = Place(guest.vm, "memory")
    there.device.add_eventfd(8, one.fd, size=8, match=0x8877_6655_4433_2211)
    code = ""
    for value in (0x8877_6655_4433_2211, 0x1177_6655_4433_2211):  # movabs $value, %rax; movabs %rax, ADDRESS + 8
        code += f"48b8{value.to_bytes(8, 'little').hex()} 48a3{(ADDRESS + 8).to_bytes(8, 'little').hex()}"
    guest.restart(code + "f4")
    assert guest.vcpu.run() == MmioWrite(ADDRESS + 8, 8, 0x1177_6655_4433_2211)
    assert guest.vcpu.run() == Halt()
    assert one.rung() == 1
