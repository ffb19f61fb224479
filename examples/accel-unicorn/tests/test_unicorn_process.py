"""What becomes of the process: interrupts (Ctrl-C) in a run, the end with guests inside, too little memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

import accel

SPIN = b"\xeb\xfe"


def in_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=110, check=False
    )


@contextmanager
def interrupts(pause: float) -> Iterator[None]:
    """Send this thread Ctrl-C again and again; it is raised in the accelerator's frames only."""
    over, main = threading.Event(), threading.get_ident()

    def interrupt(_number: int, frame: FrameType | None) -> None:
        if frame is not None and "accel_unicorn" in frame.f_code.co_filename:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)

    def send() -> None:
        while not over.wait(pause):
            signal.pthread_kill(main, signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGINT, before)


def test_interrupts_in_runs_lose_no_exit_and_keep_no_turn(bench):
    one = bench(b"\xfe\xc0\xe6\x42\xeb\xfa", mode="long64", cpus=2)  # inc al; out 0x42, al; jmp back
    backend = one.vcpu.backend
    seen = interrupted = 0
    with interrupts(0.0005):
        while interrupted < 200:
            try:
                kind = backend.run()
            except KeyboardInterrupt:
                interrupted += 1
                continue
            seen += 1
            assert (kind, backend.io_data[0]) == (accel.ExitKind.IO, seen & 0xFF)
    assert not backend._turn.owner
    one.machine.memory.add(accel.MemoryRegion.ram("more", "4K"), at=0x1000_0000)


def test_interrupt_in_a_spin_is_raised_once_it_comes_out_and_the_next_run_goes_on(bench):
    one = bench(SPIN, mode="long64")
    main = threading.get_ident()

    def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        one.vcpu.kick()

    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):  # at the latest in the next run, if it came before this one
        thread.start()
        while True:
            one.vcpu.run()
            thread.join()
    thread.join()
    one.vcpu.kick()
    assert one.vcpu.run() == accel.Interrupted()


def test_interrupt_while_another_vcpu_has_the_turn_leaves_the_line(bench):
    one = bench(SPIN, mode="long64", cpus=2)
    first, second = one.machine.vm.vcpus
    other = threading.Thread(target=first.run)
    other.start()
    waits = 0
    with interrupts(0.005):
        while waits < 20:
            try:
                second.backend.run()
            except KeyboardInterrupt:
                waits += 1
    assert len(first.backend._turn.queue) == 0
    one.machine.memory.add(accel.MemoryRegion.ram("more", "4K"), at=0x1000_0000)
    first.kick()
    other.join(60)
    assert not other.is_alive()


@pytest.mark.parametrize("end", ["sys.exit(7)", "raise SystemExit(7)", "del machine, run; sys.exit(7)"])
def test_process_that_ends_while_guests_run_ends_as_it_says(end):
    code = (
        "import sys, accel\n"
        "machine = accel.Machine.create('unicorn', memory='16M', cpus=3)\n"
        f"machine.load({SPIN!r}, mode='long64')\n"
        "run = machine.start()\n" + end
    )
    assert in_process(code).returncode == 7


def test_child_of_a_fork_ends_although_guests_run_in_its_parent():
    code = (
        "import os, sys, accel, accel_unicorn.turn\n"
        "accel_unicorn.turn._LAST_S = 1e6\n"
        "machine = accel.Machine.create('unicorn', memory='16M', cpus=2)\n"
        f"machine.load({SPIN!r}, mode='long64')\n"
        "run = machine.start()\n"
        "child = os.fork()\n"
        "if not child: sys.exit(3)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "machine.close()\n"
        "sys.exit(status)"
    )
    assert in_process(code).returncode == 3


TOO_LITTLE = """
import resource, sys
import accel
from accel_unicorn.plugin import UnicornAccelerator

if sys.argv[1] == "create":
    opened = accel.open_accelerator("unicorn")
else:
    import unicorn.unicorn_py3.unicorn
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (50 << 20),) * 2)
if sys.argv[1] == "probe":
    print(UnicornAccelerator().probe().reason)
else:
    try:
        opened.create_vm().create_vcpu(0)
    except accel.errors.BackendError as error:
        print(error)
"""


@pytest.mark.parametrize("when", ["probe", "create"])
def test_too_little_memory_for_an_engine_is_an_error_and_not_the_end_of_the_process(when):
    done = in_process(TOO_LITTLE, when)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ENOMEM" in done.stdout
    assert "80 MiB for each vCPU" in done.stdout


def test_code_that_changes_itself_does_not_fill_the_memory_of_the_host(bench):
    """Unicorn translates it anew each time, into a buffer that is a GiB unless told."""
    one = bench(b"\xb0\x01\xfe\x04\x25\x01\x00\x10\x00\xff\xc9\x75\xf3\xf4", mode="long64")
    state = one.vcpu.read_state()
    import attrs

    one.vcpu.write_state(attrs.evolve(state, rcx=100_000))

    def resident() -> int:
        with open("/proc/self/statm") as figures:
            return int(figures.read().split()[1]) * 4096

    before = resident()
    assert one.vcpu.run() == accel.Halt()
    assert resident() - before < 96 << 20
