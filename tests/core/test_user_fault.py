"""User faults: pages come when they are touched, no host access hangs, and commits hold the vCPUs first."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import accel
from accel import locks
from accel.address import PAGE_SIZE
from accel.errors import (
    AddressError,
    BackendError,
    CapabilityError,
    ClosedError,
    RegionError,
    StateError,
    UsageError,
    UserFaultError,
)
from accel.memory import userfaultfd
from accel.memory.ram_block import RamBlock
from accel.memory.user_fault import handled_blocks


def _problem() -> str:
    """Return why this user cannot have user faults here, or an empty string."""
    try:
        userfaultfd.UserFaultFd(0, 0, PAGE_SIZE).close()
    except CapabilityError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(_problem()), reason=_problem())

PATIENCE = 60
ROOT = Path(accel.__file__).parent.parent


def ram(pages: int = 16, **options: object) -> accel.MemoryRegion:
    return accel.MemoryRegion.ram("ram", pages * PAGE_SIZE, **options)


def filled(offset: int) -> bytes:
    """Return a page of its own number, from 1 on."""
    return bytes([1 + offset // PAGE_SIZE]) * PAGE_SIZE


class Asked:
    """A resolve that notes what it is asked for."""

    def __init__(self, give: Callable[[int], bytes | None] = filled) -> None:
        self.offsets: list[int] = []
        self._give = give

    def __call__(self, offset: int) -> bytes | None:
        self.offsets.append(offset)
        return self._give(offset)


class Gate:
    """A resolve that says when it is asked, and waits to be let go."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.open = threading.Event()

    def __call__(self, offset: int) -> bytes:
        self.asked.set()
        assert self.open.wait(PATIENCE)
        return filled(offset)


_memcpy = ctypes.CDLL(None).memcpy
_memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def touch(region: accel.MemoryRegion, offset: int) -> int:
    """Read a byte as a guest does: by its address, without the interpreter's lock."""
    byte = ctypes.c_ubyte()
    _memcpy(ctypes.addressof(byte), region.host_memory().address + offset, 1)
    return byte.value


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.001)


def leftovers() -> tuple[int, set[str]]:
    gc.collect()  # what earlier tests left
    return len(os.listdir("/proc/self/fd")), {one.name for one in threading.enumerate()}


def files_of(worker: Any) -> list[str]:
    """Return the files whose functions a thread is in."""
    frame, found = sys._current_frames().get(worker._thread.ident), []
    while frame is not None:
        found.append(frame.f_code.co_filename)
        frame = frame.f_back
    return found


# pages


@pytest.mark.parametrize("backing", [None, accel.Backing.memfd()], ids=["anonymous", "memfd"])
def test_user_faults_page_comes_when_it_is_touched_and_what_is_there_stays(backing, spawn) -> None:
    region, asked = ram(backing=backing), Asked()
    region.write(3 * PAGE_SIZE, b"loaded")
    before = leftovers()
    with accel.UserFaults(region, asked):
        assert spawn(lambda: touch(region, 2 * PAGE_SIZE + 7)).join() == 3
        assert region.read(3 * PAGE_SIZE, 7) == b"loaded\0"
        assert region.read(5 * PAGE_SIZE - 1, 2) == b"\x05\x06"
        region.write(2 * PAGE_SIZE, b"x")
        assert region.read(2 * PAGE_SIZE, 2) == b"x\x03"
        assert asked.offsets == [2 * PAGE_SIZE, 4 * PAGE_SIZE, 5 * PAGE_SIZE]
    assert leftovers() == before
    assert region.read(2 * PAGE_SIZE, 2) == b"x\x03"
    assert region.read(9 * PAGE_SIZE, 1) == b"\0"


def test_user_faults_run_of_pages_fills_what_is_missing_only() -> None:
    region, asked = ram(), Asked(lambda offset: b"".join(filled(offset + n * PAGE_SIZE) for n in range(5)))
    for page in (2, 3):
        region.write(page * PAGE_SIZE, b"mine")
    with accel.UserFaults(region, asked):
        assert region.read(0, 1) == b"\x01"
        found = [region.read(n * PAGE_SIZE, 4) for n in range(5)]
        assert found == [b"\x01" * 4, b"\x02" * 4, b"mine", b"mine", b"\x05" * 4]
        assert asked.offsets == [0]


@pytest.mark.parametrize("answer", [bytearray(filled(0)), memoryview(filled(0)), None])
def test_user_faults_resolve_may_give_any_bytes_or_none_for_zeros(answer) -> None:
    region = ram()
    with accel.UserFaults(region, lambda offset: answer):
        assert region.read(0, 2) == (b"\0\0" if answer is None else b"\x01\x01")


def test_user_faults_part_leaves_the_rest_alone(spawn) -> None:
    region, asked = ram(), Asked()
    with accel.UserFaults(region, asked, offset=4 * PAGE_SIZE, size="8K"):
        assert [region.read(page * PAGE_SIZE, 1)[0] for page in range(3, 7)] == [0, 5, 6, 0]
        assert region.read(0, region.size)[4 * PAGE_SIZE] == 5
        assert spawn(lambda: touch(region, 8 * PAGE_SIZE)).join() == 0
    assert asked.offsets == [4 * PAGE_SIZE, 5 * PAGE_SIZE]


def test_user_faults_two_who_wait_for_one_page_both_go_on_and_it_is_asked_for_once(spawn) -> None:
    region, gate = ram(), Gate()
    asked = Asked(gate)
    with accel.UserFaults(region, asked):
        workers = [spawn(lambda: touch(region, PAGE_SIZE)) for _ in range(3)]
        assert gate.asked.wait(PATIENCE)
        workers.append(spawn(lambda: region.read(PAGE_SIZE, 1)[0]))
        gate.open.set()
        assert [worker.join() for worker in workers] == [2] * 4
    assert asked.offsets == [PAGE_SIZE]


def test_user_faults_page_that_another_mapping_brings_lets_the_guest_go_on_without_resolve(spawn) -> None:
    region, gate = ram(backing=accel.Backing.memfd()), Gate()
    asked, tids = Asked(gate), []

    def guest() -> int:
        tids.append(threading.get_native_id())
        return touch(region, PAGE_SIZE)

    with accel.UserFaults(region, asked), mmap.mmap(region.block.fd, region.size) as elsewhere:
        host = spawn(lambda: region.read(0, 1))
        assert gate.asked.wait(PATIENCE)
        worker = spawn(guest)
        # The kernel's own word that it waits for the page.
        until(lambda: tids and "userfault" in Path(f"/proc/self/task/{tids[0]}/wchan").read_text())
        elsewhere[PAGE_SIZE] = 0x77
        gate.open.set()
        assert (host.join(), worker.join()) == (b"\x01", 0x77)
    assert asked.offsets == [0]


def test_user_faults_many_missing_pages_come_for_one_access() -> None:
    region, asked = ram(600), Asked(lambda offset: b"\x07" * PAGE_SIZE)
    with accel.UserFaults(region, asked):
        assert region.read(0, region.size) == b"\x07" * region.size
    assert asked.offsets == list(range(0, region.size, PAGE_SIZE))


# the interpreter's lock

_ACCESSES = {
    "read": "assert vm.memory.read(0x1000, 2) == b'\\x01\\x01'",
    "read across sections": "assert vm.memory.read(0x7fff, 2) == b'\\x01\\x01'",
    "read_into": "vm.memory.read_into(0x1000, bytearray(4))",
    "write": "vm.memory.write(0x1001, b'x'); assert vm.memory.read(0x1000, 2) == b'\\x01x'",
    "write as guest": "vm.memory.write(0x1001, b'x', as_guest=True)",
    "load": "assert vm.memory.load(0x1000, 4) == 0x01010101",
    "store": "vm.memory.store(0x1000, 5, 8)",
    "copy": "vm.memory.copy(0x1000, 0x3000, 0x1000)",
    "ram_view": "assert bytes(vm.memory.ram_view(0x1ffe, 4)) == b'\\x01' * 4",
    "region read": "assert region.read(0x1000, 1) == b'\\x01'",
    "region write": "region.write(0x1001, b'x')",
    "region clear": "region.clear(0x1000, 0x3000); assert region.read(0x1000, 1) == b'\\0'",
    "region view": "assert region.view()[0x4000] == 1",
    "resident bytes": "assert region.block.resident_bytes() == 0",
    "guest load": "assert accel.memory.guest_access.load(vm.memory, 0x1fff, 2) == 0x0101",
    "guest store": "accel.memory.guest_access.store(vm.memory, 0x1fff, 5, 2)",
    "mapping it": "vm.memory.remove(region); vm.memory.add(region, 0x20000); vm.memory.read(0x21000, 1)",
}

_SCRIPT = """
import accel, accel.memory.guest_access
with accel.open_accelerator("mock") as mock, mock.create_vm() as vm:
    region, other = accel.MemoryRegion.ram("ram", "32K"), accel.MemoryRegion.ram("other", "32K")
    with accel.UserFaults(region, lambda offset: b"\\1" * 4096), accel.UserFaults(other, lambda offset: b"\\1" * 4096):
        {setup}
        {access}
"""


@pytest.mark.parametrize("access", _ACCESSES)
def test_user_faults_host_access_to_missing_pages_does_not_hang_the_process(access: str) -> None:
    """The mock maps memory by memoryviews, so it has all pages; a space without an accelerator has none."""
    setup = 'space = vm.create_address_space("bus", accel.MemoryRegion.container("bus"))'
    text = _ACCESSES[access]
    if access != "mapping it":
        setup += "; space.add(region, 0); space.add(other, 0x8000)"
        text = text.replace("vm.memory", "space")
    else:
        setup += "; vm.memory.add(region, 0)"
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(setup=setup, access=text)],
        timeout=PATIENCE,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_user_faults_memory_that_somebody_views_is_refused() -> None:
    region = ram()
    view = region.view(0x1000, 4).toreadonly()[1:2]
    with pytest.raises(StateError, match="somebody has a memoryview of the memory of 'ram'"):
        accel.UserFaults(region, filled)
    assert region.block.user_faults is None
    assert not handled_blocks()
    before = leftovers()
    del view
    with accel.UserFaults(region, filled):
        view = region.view(0x1000, 4)
        assert bytes(view) == b"\x02" * 4
    assert leftovers() == before
    with pytest.raises(StateError, match="somebody has a memoryview"):
        accel.UserFaults(region, filled)
    assert leftovers() == before


def test_user_faults_memory_that_somebody_takes_a_view_of_just_now_is_refused_or_has_its_pages(
    spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that is made in the middle of `RamBlock.span` counts the memoryview, or is asked for its pages."""
    region, made = ram(), []

    class Slot:
        """Makes the handler on another thread just after this one asked for the first time whether there is one."""

        def __get__(self, block: RamBlock, kind: object) -> object:
            handler = block.__dict__["user_faults"]
            if not made and threading.current_thread() is threading.main_thread():
                made.append(None)
                made[0] = spawn(lambda: accel.UserFaults(region, filled))
                made[0]._thread.join(PATIENCE)
            return handler

        def __set__(self, block: RamBlock, handler: object) -> None:
            block.__dict__["user_faults"] = handler

    monkeypatch.setattr(RamBlock, "user_faults", Slot(), raising=False)
    view = region.view()
    missing = userfaultfd.missing_pages(region.block.address, len(view), PAGE_SIZE)
    assert isinstance(made[0].error, StateError) or not missing
    del view
    if made[0].error is None:
        made[0].result.close()


def test_user_faults_closed_while_somebody_takes_a_view_lets_him_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler goes once `RamBlock.span` has asked for the first time whether there is one."""
    region = ram()
    faults = accel.UserFaults(region, filled)

    class Slot:
        def __get__(self, block: RamBlock, kind: object) -> object:
            handler = block.__dict__["user_faults"]
            if handler is not None and sys._getframe(1).f_code.co_name == "span":
                faults.close()
            return handler

        def __set__(self, block: RamBlock, handler: object) -> None:
            block.__dict__["user_faults"] = handler

    monkeypatch.setattr(RamBlock, "user_faults", Slot(), raising=False)
    assert region.read(0, 1) == b"\x00"


def test_user_faults_of_released_memory_are_refused() -> None:
    """What is at its address now may be anybody's."""
    region = ram()
    region.release()
    before = leftovers()
    with pytest.raises(ClosedError, match="the host memory of 'ram' is released"):
        accel.UserFaults(region, filled)
    assert leftovers() == before
    assert not handled_blocks()


# what is refused


def test_user_faults_memory_with_a_handler_is_neither_released_nor_discarded_nor_handled_twice() -> None:
    region = ram()
    with accel.UserFaults(region, filled):
        with pytest.raises(StateError, match="has a user-fault handler already; close that one first"):
            accel.UserFaults(region, filled)
        with pytest.raises(StateError, match="serves its pages; close that first"):
            region.release()
        with pytest.raises(StateError, match="serves its pages; close that first"):
            region.block.discard(0, PAGE_SIZE)
        assert region.read(0, 1) == b"\x01"
    region.release()
    with pytest.raises(ClosedError):
        region.read(0, 1)


@pytest.mark.parametrize(("offset", "size"), [(1, None), (0, 100), (0, 0), (-PAGE_SIZE, None), (0, "128K")])
def test_user_faults_part_that_does_not_fit_is_refused(offset, size) -> None:
    before = leftovers()
    with pytest.raises(AddressError, match=r"RAM 'ram': offset .* are not whole pages of 4K inside 0x10000 bytes"):
        accel.UserFaults(ram(), filled, offset=offset, size=size)
    assert leftovers() == before


def test_user_faults_file_or_container_is_refused(tmp_path) -> None:
    backing = accel.Backing.file(str(tmp_path / "ram"), create=True)
    with pytest.raises(UsageError, match="are for anonymous memory or a memfd, and this is a file"):
        accel.UserFaults(ram(backing=backing), filled)
    with pytest.raises(RegionError, match="no bytes of its own"):
        accel.UserFaults(accel.MemoryRegion.container("all"), filled)


def test_user_faults_memory_of_a_closed_vm_is_refused() -> None:
    region = ram()
    with accel.open_accelerator("mock") as mock, mock.create_vm() as vm:
        vm.memory.add(region, 0)
    with pytest.raises(ClosedError):
        accel.UserFaults(region, filled)


_SECCOMP = """
import ctypes, struct
libc = ctypes.CDLL(None)
# load the call's number; if it is userfaultfd's, return the errno; else allow.
program = b"".join(struct.pack("=HBBI", *one) for one in (
    (0x20, 0, 0, 0), (0x15, 0, 1, 323), (0x06, 0, 0, 0x50000 + {number}), (0x06, 0, 0, 0x7FFF0000)))
filter = ctypes.create_string_buffer(program)
prog = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(filter)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, prog) == 0
"""


def _in_process(setup: str) -> str:
    script = setup + (
        "\nimport accel\n"
        "try:\n"
        "    with accel.UserFaults(accel.MemoryRegion.ram('ram', '64K'), lambda offset: None): print('serves')\n"
        "except accel.AccelError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=PATIENCE, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True
    )
    return done.stdout


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter has the call's number on x86-64")
def test_user_faults_kernel_without_it_is_a_capability_error() -> None:
    said = _in_process(_SECCOMP.format(number=errno.ENOSYS))
    assert said.startswith("CapabilityError this kernel is built without userfaultfd (ENOSYS)")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter has the call's number on x86-64")
@pytest.mark.needs("/dev/userfaultfd")
@pytest.mark.parametrize("room", [0, 1])
def test_user_faults_without_a_free_descriptor_are_refused_and_leave_none(room: int) -> None:
    region, before = ram(), leftovers()
    free = os.dup(0)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + room, limits[1]))
    try:
        with pytest.raises(BackendError, match="EMFILE"):
            accel.UserFaults(region, filled)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert leftovers() == before
    assert not handled_blocks()
    with accel.UserFaults(region, filled):
        assert region.read(0, 1) == b"\x01"


def test_user_faults_call_that_is_not_permitted_goes_by_the_device() -> None:
    if not os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
        pytest.skip("this user cannot open /dev/userfaultfd")
    assert _in_process(_SECCOMP.format(number=errno.EPERM)) == "serves\n"


def test_user_faults_user_without_the_right_is_told_what_to_do() -> None:
    if os.geteuid() or Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0":
        pytest.skip("needs root, to be somebody else, on a host that keeps userfaultfd from others")
    # Everything is imported before: others may not be able to read it.
    said = _in_process("import os, accel; accel.UserFaults, accel.MemoryRegion; os.setgroups([]); os.setuid(65534)")
    assert said.startswith("CapabilityError userfaultfd is not for this user (EPERM)")
    assert "vm.unprivileged_userfaultfd=1" in said


# pages that do not come


def test_user_faults_resolve_that_raises_is_an_error_for_the_host_and_the_next_access_asks_again() -> None:
    answers = [ValueError("not yet"), None]

    def resolve(offset: int) -> bytes:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return filled(offset)

    region = ram()
    with accel.UserFaults(region, resolve) as faults:
        with pytest.raises(UserFaultError, match="page 0x1000 of 'ram' did not come, as resolve raised ValueError: n"):
            region.read(0x1000, 1)
        assert faults.failed == {}
        assert region.read(0x1000, 1) == b"\x02"


def test_user_faults_exception_that_somebody_keeps_is_no_memoryview() -> None:
    region = ram()
    with accel.UserFaults(region, lambda offset: b"short"), pytest.raises(UserFaultError) as kept:
        region.read(0, 1)
    assert kept.tb is not None
    with accel.UserFaults(region, filled):
        assert region.read(0, 1) == b"\x01"


def test_user_faults_resolve_that_raises_keeps_the_guest_waiting_until_retry(spawn) -> None:
    broken = [True]

    def resolve(offset: int) -> bytes:
        if broken[0]:
            raise SystemExit("the other side is gone")
        return filled(offset)

    region = ram()
    with accel.UserFaults(region, resolve) as faults:
        worker = spawn(lambda: touch(region, PAGE_SIZE))
        until(lambda: faults.failed)
        error = faults.failed[PAGE_SIZE]
        assert (error.region, error.offset, type(error.__cause__)) == ("ram", PAGE_SIZE, SystemExit)
        assert worker.result is None
        broken[0] = False
        faults.retry()
        assert worker.join() == 2
        until(lambda: not faults.failed)


@pytest.mark.parametrize("answer", [b"", b"x", bytes(PAGE_SIZE + 1), bytes(17 * PAGE_SIZE), "text"])
def test_user_faults_resolve_that_gives_no_whole_pages_is_an_error(answer) -> None:
    region = ram()
    with (
        accel.UserFaults(region, lambda offset: answer),
        pytest.raises(UserFaultError, match=r"did not come, as resolve (gave|raised TypeError)"),
    ):
        region.read(0, 1)


def test_user_faults_resolve_that_does_not_return_is_an_error_and_close_can_be_tried_again(spawn) -> None:
    region, gate, before = ram(), Gate(), leftovers()
    faults = accel.UserFaults(region, gate, timeout=0.05)
    # By a guest, who waits for as long as it takes until `resolve` is called.
    guest = spawn(lambda: touch(region, PAGE_SIZE))
    assert gate.asked.wait(PATIENCE)
    with pytest.raises(UserFaultError, match=r"page 0x1000 .* did not come within 0.05 s; resolve\(0x1000\) has not"):
        region.read(0x1000, 1)
    with pytest.raises(StateError, match=r"resolve\(0x1000\) of 'ram' did not return within 0.05 s"):
        faults.close()
    assert guest.join() == 0
    assert region.read(0x1000, 1) == b"\0"
    gate.open.set()
    until(lambda: faults._resolver._thread.join(PATIENCE) is None)
    faults.close()
    assert leftovers() == before
    assert region.read(0x1000, 1) == b"\0"


def test_user_faults_resolve_that_needs_a_missing_page_itself_is_told() -> None:
    region = ram()
    with (
        accel.UserFaults(region, lambda offset: region.read(offset + PAGE_SIZE, PAGE_SIZE)),
        pytest.raises(UserFaultError, match=r"page 0x0 .* resolve raised UserFaultError: page 0x1000 of 'ram' is"),
    ):
        region.read(0, 1)


def test_user_faults_close_lets_everybody_go_on_with_zeros(spawn) -> None:
    region, gate = ram(), Gate()
    faults = accel.UserFaults(region, gate, timeout=10 * PATIENCE)
    workers = [spawn(lambda: touch(region, PAGE_SIZE))]
    assert gate.asked.wait(PATIENCE)
    workers += [spawn(lambda: touch(region, 2 * PAGE_SIZE)), spawn(lambda: region.read(3 * PAGE_SIZE, 1)[0])]
    closing = spawn(faults.close)
    assert [worker.join() for worker in workers] == [0, 0, 0]
    gate.open.set()
    closing.join()
    faults.close()
    assert region.read(PAGE_SIZE, 1) == b"\0"


def test_user_faults_page_that_comes_in_the_middle_of_close_is_no_error(spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes no page any more then, and the host access reads the zeros that are there."""
    region, asked, answer, moved = ram(), threading.Event(), threading.Event(), threading.Event()

    def resolve(offset: int) -> bytes:
        asked.set()
        assert answer.wait(PATIENCE)
        return filled(offset)

    faults = accel.UserFaults(region, resolve)
    resolver = faults._resolver

    class Watched:
        """The resolver's lock, and a note of that its thread wants it."""

        lock = resolver._lock

        def __enter__(self) -> None:
            if threading.current_thread() is resolver._thread:
                moved.set()
            self.lock.acquire()

        def __exit__(self, *error: object) -> None:
            self.lock.release()

    def unregister(fd: userfaultfd.UserFaultFd) -> None:
        real(fd)
        answer.set()
        assert moved.wait(PATIENCE)

    def read() -> bytes:
        try:
            return region.read(0, 1)
        finally:
            moved.set()

    real = userfaultfd.UserFaultFd.unregister
    monkeypatch.setattr(resolver, "_lock", Watched())
    monkeypatch.setattr(userfaultfd.UserFaultFd, "unregister", unregister)
    reader = spawn(read)
    assert asked.wait(PATIENCE)
    faults.close()
    assert reader.join() == b"\0"


def test_user_faults_resolve_cannot_close_its_handler() -> None:
    region, raised = ram(), []

    def resolve(offset: int) -> bytes:
        with pytest.raises(StateError, match="resolve cannot close its handler"):
            faults.close()
        raised.append(offset)
        return filled(offset)

    with accel.UserFaults(region, resolve) as faults:
        assert region.read(0, 1) == b"\x01"
    assert raised == [0]


# locks and commits


def test_user_faults_resolver_takes_no_lock_and_comes_whoever_holds_which(open_mock) -> None:
    vm = open_mock()
    space = vm.create_address_space("bus", accel.MemoryRegion.container("bus"))
    region, held = ram(), []
    space.add(region, 0)

    def resolve(offset: int) -> bytes:
        held.append(list(locks._held.what))
        return filled(offset)

    with (
        accel.UserFaults(region, resolve, timeout=PATIENCE),
        vm.big_lock,
        locks.Lock(locks.DEVICE_LOCK),
        vm._ring_lock,
        locks.Lock(locks.SLOTS_LOCK),
        vm.blocker.gates_lock,
    ):
        assert space.read(PAGE_SIZE, 1) == b"\x02"
    assert held == [[]]


@pytest.fixture
def open_mock():
    opened = []

    def make(**options: object) -> accel.Vm:
        opened.append(accel.open_accelerator("mock", options={"mock": options}))
        return opened[-1].create_vm()

    yield make
    for one in opened:
        one.close()


@pytest.mark.parametrize("options", [{}, {"hold": "unsafe"}, {"plan": "replace"}], ids=str)
def test_user_faults_commit_that_changes_an_accelerator_holds_while_a_view_shows_the_memory(open_mock, options) -> None:
    vm, region = open_mock(**options), ram()
    vm.memory.add(ram(), at=0x100_0000)
    inhibits = lambda: vm.blocker.stats.inhibits  # noqa: E731
    at = iter(range(0x200_0000, 0x300_0000, 0x10_0000))
    with accel.UserFaults(region, filled):
        vm.memory.add(ram(), next(at))
        assert inhibits() == 0, "no view shows the memory yet"
        vm.memory.add(region, 0)
        assert inhibits() == 1
        grown = ram(1, max_size="64K")
        vm.memory.add(grown, next(at))
        grown.resize("8K")
        assert inhibits() == 3
        vm.io.add(accel.MemoryRegion.mmio("ports", 8), 0)
        assert inhibits() == 3, "no accelerator has anything to do"
        vm.memory.remove(region)
        assert inhibits() == 4
        vm.memory.add(ram(), next(at))
        assert inhibits() == 4
        vm.memory.add(region, 0)
        assert inhibits() == 5
    vm.memory.add(ram(), next(at))
    assert inhibits() == 5


def test_user_faults_registering_waits_for_the_commit_that_is_under_way(open_mock, spawn) -> None:
    vm, region = open_mock(), ram()
    space = vm.create_address_space("bus", accel.MemoryRegion.container("bus"))
    space.add(region, 0)
    made: list[accel.UserFaults] = []
    with vm.transaction():
        worker = spawn(lambda: made.append(accel.UserFaults(region, filled)))
        until(lambda: locks.__file__ in files_of(worker))
        assert not handled_blocks()
    worker.join()
    assert handled_blocks() == {region.block}
    made[0].close()


# the call


def test_missing_pages_agree_with_what_was_touched() -> None:
    block = RamBlock("ram", 40 * PAGE_SIZE)
    there = {3, 4, 39}
    for page in there:
        block.view[page * PAGE_SIZE] = 1
    missing = userfaultfd.missing_pages(block.address, block.max_size, PAGE_SIZE)
    assert missing == [block.address + page * PAGE_SIZE for page in range(40) if page not in there]
    assert userfaultfd.missing_pages(block.address + 3 * PAGE_SIZE, PAGE_SIZE, PAGE_SIZE) == []
    assert userfaultfd.missing_pages(block.address, PAGE_SIZE, PAGE_SIZE) == [block.address]
    found = userfaultfd.missing_pages(block.address, block.max_size, 8 * PAGE_SIZE)
    assert found == [block.address + n * 8 * PAGE_SIZE for n in range(5)]
    assert mmap.PAGESIZE == PAGE_SIZE
