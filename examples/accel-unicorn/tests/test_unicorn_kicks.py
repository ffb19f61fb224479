"""Kicks: out of the tightest loop, and none lost."""

from __future__ import annotations

import threading

import pytest

import accel

SPINS = {
    "jump-to-itself": b"\xeb\xfe",
    "counting": b"\x48\xff\xc0\xeb\xfb",
    "repeated-string": b"\x48\xc7\xc1\xff\xff\xff\x7f\x48\xc7\xc7\x00\x00\x20\x00\xfd\x31\xc0\xf3\xae\xeb\xeb",
}


@pytest.mark.parametrize("code", [SPINS["jump-to-itself"], SPINS["counting"], SPINS["repeated-string"]])
def test_kick_ends_a_run_in_a_loop_without_exits(bench, code):
    one = bench(code, mode="long64")
    for _ in range(50):
        inside = threading.Event()

        def kick(inside: threading.Event = inside) -> None:
            inside.wait()
            one.vcpu.kick()

        kicker = threading.Thread(target=kick)
        kicker.start()
        inside.set()
        assert one.vcpu.run() == accel.Interrupted()
        kicker.join()


def test_kick_before_a_run_ends_that_run_and_only_that(bench):
    one = bench(b"\xe6\x42\xe6\x42\xf4", mode="long64")
    one.vcpu.kick()
    assert one.vcpu.run() == accel.Interrupted()
    assert isinstance(one.vcpu.run(), accel.IoOut)


@pytest.mark.parametrize("cpus", [2, 4])
def test_vcpus_that_spin_are_stopped_each(bench, cpus):
    one = bench("spin.bin", cpus=cpus)
    for _ in range(5):
        run = one.machine.start()
        one.machine.pause()
        one.machine.resume()
        one.machine.stop()
        assert run.done


def test_vcpu_that_spins_does_not_keep_another_from_its_work(bench):
    """One vCPU spins for ever; the other reads and writes a device and ends the run."""
    # test edi, edi; jnz $; mov ecx, 2000; out 0x42, al; dec ecx; jnz back; mov al, 0; out 0xf4, al
    code = b"\x85\xff\x75\xfe\xb9\xd0\x07\x00\x00\xe6\x42\xff\xc9\x75\xfa\xb0\x00\xe6\xf4\xf4"
    one = bench(code, mode="long64", cpus=2)
    result = one.machine.run(timeout=60)
    assert result.exit_status == 1
    assert result.exits["io"] >= 2001


def test_run_from_one_thread_after_another_goes_on_where_it_was(bench):
    one = bench(b"\xe4\x42\xff\xc0\xe6\x42\xf4", mode="long64")  # in al, 0x42; inc eax; out 0x42, al
    found = one.vcpu.run()
    found.reply(7)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(one.vcpu.run()))
    thread.start()
    thread.join()
    assert seen[0].data == b"\x08"
    assert one.vcpu.run() == accel.Halt()


def test_machine_that_is_closed_in_the_middle_of_an_instruction_is_gone(bench):
    one = bench(b"\xe4\x42\xf4", mode="long64")
    assert isinstance(one.vcpu.run(), accel.IoIn)
    one.machine.close()
    with pytest.raises(accel.errors.ClosedError):
        one.vcpu.run()
