"""Kicks of a Vcpu that runs in a loop of one's own: before, during and after a run, and whoever else is at it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest

import accel
from accel import Interrupted, IoOut, MmioRead
from accel_kvm import kick

pytestmark = pytest.mark.kvm

PATIENCE = 60.0  # seconds until a test gives up; nothing is judged by it otherwise
COUNT = "ff0500900000 ebf8"  # 1: incl 0x9000; jmp 1b
HOLE = 0x20_0000  # an address without RAM


class Runner:
    """A thread that runs a vCPU a number of times."""

    def __init__(self, vcpu: accel.Vcpu, rounds: int = 1, prepare: Callable[[], object] = lambda: None) -> None:
        self.exits: list[accel.exits.Exit] = []
        self.about_to_run = threading.Semaphore(0)
        self.out = threading.Semaphore(0)
        self.last_round = False
        self._vcpu = vcpu
        self._rounds = rounds
        self._prepare = prepare
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        self._prepare()
        for _ in range(self._rounds):
            self.about_to_run.release()
            self.exits.append(self._vcpu.run())
            self.out.release()
            if self.last_round:
                return

    def wait(self) -> accel.exits.Exit:
        """Return what the next run came out with."""
        assert self.out.acquire(timeout=PATIENCE), "the kick was lost"
        return self.exits[-1]

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def wait_until_counting(guest) -> None:
    """Return when the guest has been seen to execute."""
    before = guest.ram.read(0x9000, 4)
    waited = threading.Event()
    for _ in range(int(PATIENCE * 1000)):
        if guest.ram.read(0x9000, 4) != before:
            return
        waited.wait(0.001)
    raise AssertionError("the guest does not run")


def test_vcpu_kicked_before_the_first_run_of_another_thread_comes_out(boot) -> None:
    guest = boot(COUNT)
    guest.vcpu.kick()
    runner = Runner(guest.vcpu)
    assert runner.wait() == Interrupted()
    runner.join()
    assert guest.ram.read(0x9000, 4) == bytes(4)


def test_vcpu_kicked_in_the_guest_comes_out_and_goes_on_later(boot) -> None:
    guest = boot(COUNT)
    for _ in range(3):
        runner = Runner(guest.vcpu)
        wait_until_counting(guest)
        guest.vcpu.kick()
        assert runner.wait() == Interrupted()
        runner.join()


def test_vcpu_kicked_at_any_moment_of_a_run_always_comes_out(boot) -> None:
    guest = boot(COUNT)
    runner = Runner(guest.vcpu, rounds=300)
    for _ in range(300):
        assert runner.about_to_run.acquire(timeout=PATIENCE)
        guest.vcpu.kick()
        assert runner.wait() == Interrupted()
    runner.join()


@pytest.mark.parametrize("index", [0, 1], ids=["halted", "uninitialised"])
def test_vcpu_kicked_while_it_sleeps_or_falls_asleep_in_the_kernel_comes_out(boot, index) -> None:
    guest = boot("faf4", irqchip=True)  # cli; hlt
    vcpu = (guest.vcpu, guest.vm.create_vcpu(1))[index]
    runner = Runner(vcpu, rounds=100)
    for _ in range(100):
        assert runner.about_to_run.acquire(timeout=PATIENCE)
        vcpu.kick()
        assert runner.wait() == Interrupted()
    runner.join()


def test_vcpu_kicked_after_an_exit_completes_the_access_and_comes_out(boot) -> None:
    guest = boot("a100002000 e660")  # mov HOLE, %eax; out %al, $0x60
    access = guest.vcpu.run()
    assert access == MmioRead(HOLE, 4, None)
    access.reply(0x42)
    guest.vcpu.kick()
    assert guest.vcpu.run() == Interrupted()
    state = guest.vcpu.read_state()
    assert (state.rax, state.rip) == (0x42, guest.start.rip + 5)
    assert guest.vcpu.run() == IoOut(0x60, 1, 1, b"\x42")


@pytest.mark.parametrize("between", ["read_state", "write_state"])
def test_vcpu_kick_is_not_used_up_by_reading_or_writing_state(boot, between) -> None:
    guest = boot("e660")
    guest.vcpu.kick()
    if between == "read_state":
        guest.vcpu.read_state()
    else:
        guest.vcpu.write_state(guest.start)
    assert guest.vcpu.run() == Interrupted()
    assert isinstance(guest.vcpu.run(), IoOut)


def test_vcpu_kick_reaches_the_exit_that_a_half_read_state_held_back_and_then_the_run(boot) -> None:
    guest = boot("a1fe0f2000 e660")  # mov HOLE + 0xffe, %eax; out %al, $0x60
    guest.vcpu.run().reply(0)
    with pytest.raises(accel.errors.StateError):
        guest.vcpu.read_state()
    guest.vcpu.kick()
    assert guest.vcpu.run() == MmioRead(HOLE + 0x1000, 2, None)
    assert guest.vcpu.run() == Interrupted()
    assert isinstance(guest.vcpu.run(), IoOut)


def test_vcpu_kick_while_another_thread_takes_the_vcpu_over_reaches_that_thread(boot) -> None:
    guest = boot(COUNT)
    backend_kick, runners = guest.vcpu.backend.kick, []

    def late(thread_id: int) -> None:
        """The kick was on its way to nobody when a thread began to run the vCPU."""
        if not runners:
            runners.append(Runner(guest.vcpu))
            wait_until_counting(guest)
        backend_kick(thread_id)

    guest.vcpu.backend.kick = late
    guest.vcpu.kick()
    assert runners[0].wait() == Interrupted()
    runners[0].join()


def test_vcpu_run_by_a_thread_that_inherited_a_blocked_kick_signal_comes_out(boot) -> None:
    guest = boot(COUNT)
    runner = Runner(guest.vcpu, prepare=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {kick.DEFAULT_SIGNAL}))
    wait_until_counting(guest)
    guest.vcpu.kick()
    assert runner.wait() == Interrupted()
    runner.join()


def test_vcpu_held_by_a_memory_change_comes_out_and_goes_on_after_it(boot) -> None:
    guest = boot(COUNT)
    runner = Runner(guest.vcpu, rounds=1_000)
    wait_until_counting(guest)
    with guest.vm.transaction(atomic="map"):
        guest.vm.memory.add(accel.MemoryRegion.ram("more", "1M"), at=0x100_0000)
    assert guest.vm.blocker.stats.kicks >= 1
    assert runner.wait() == Interrupted()
    wait_until_counting(guest)
    runner.last_round = True
    guest.vcpu.kick()
    runner.join()
    assert set(runner.exits) == {Interrupted()}
