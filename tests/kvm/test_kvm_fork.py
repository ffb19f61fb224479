"""A process that forks: the child makes VMs of its own, and kicks reach the thread that forked."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.kvm

CODE = """
import os, signal, threading
import accel

SPIN = bytes.fromhex("c606002001 ebfe")  # mov byte [0x2000], 1; spin

def spin():
    with accel.open_accelerator("kvm") as kvm, kvm.create_vm() as vm:
        vm.memory.add(accel.MemoryRegion.ram("ram", "16K"), at=0)
        vm.memory.write(0x1000, SPIN)
        vcpu = vm.create_vcpu(0)
        vcpu.write_state(accel.X86State.entering("real16", 0x1000))

        def kick():
            while vm.memory.read(0x2000, 1) != bytes((1,)):
                pass
            vcpu.kick()

        thread = threading.Thread(target=kick)
        thread.start()
        assert vcpu.run() == accel.Interrupted()
        thread.join()

spin()
child = os.fork()
if not child:
    signal.alarm(60)  # a kick that nobody takes would have it spin for ever
    spin()
    os._exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""


def test_kick_in_a_forked_child_reaches_the_thread_that_forked() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=False, capture_output=True, text=True, timeout=200)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr
