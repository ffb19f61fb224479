"""Mistakes in how gates are passed: who comes in, who is kicked out."""

from __future__ import annotations

from blocker_mutants import BLOCKER, CAME_IN, GATE, INSIDE, LOCKED, LOST, STUCK, mutant

_ENTER = """\
        self.busy = True
        if self._blocker.inhibited:
            self._blocker.wait_outside(self)
"""
_LOCKED_ENTER = """\
        with self._blocker.gates_lock:
            self.busy = True
            inhibited = self._blocker.inhibited
"""
_BEGIN = """\
            with self.gates_lock:
                self.inhibited = True
            self._wait_until_quiet(started, timeout)
"""
_PASS_IN = """\
                with self.gates_lock:
                    # Under the lock, or the refusal could come before the door is handed in.
                    self.check()
                    if not self.inhibited:
                        mark()
                        return
                    door = threading.Lock()
"""
_PASSED = """\
                door.acquire()
        finally:
            # In place, since an interrupt may come at each call.
            if counted:
                with self.gates_lock:
                    self._waiting -= 1
                    if not self._waiting:
                        self._all_passed.set()

    # inhibiting
"""
_ADD = """\
        with self.gates_lock:
            self._gates = (*self._gates, gate)
"""

MUTANTS = [
    mutant(
        "a gate does not look after it has marked itself",
        "inhibit-vcpus",
        CAME_IN,
        (GATE, _ENTER, "        self.busy = True\n"),
    ),
    mutant(
        "a gate looks before it marks itself",
        "inhibit-vcpus",
        CAME_IN,
        (
            GATE,
            _ENTER,
            """\
        if self._blocker.inhibited:
            self._blocker.wait_outside(self)
        self.busy = True
""",
        ),
    ),
    mutant(
        "who waited comes in without another look",
        "inhibit-in-a-hurry",
        CAME_IN,
        (
            BLOCKER,
            _PASSED,
            "                door.acquire()\n                mark()\n                return\n"
            + _PASSED.partition("\n")[2],
        ),
    ),
    mutant(
        "a locked gate looks outside of the lock, before it marks itself",
        "inhibit-vcpus",
        CAME_IN,
        (LOCKED.module, LOCKED.old, LOCKED.new),
        (
            GATE,
            _LOCKED_ENTER,
            """\
        inhibited = self._blocker.inhibited
        with self._blocker.gates_lock:
            self.busy = True
""",
        ),
    ),
    mutant(
        "who waited looks outside of the lock under which it marks",
        "vm-calls",
        STUCK,
        (
            BLOCKER,
            _PASS_IN,
            """\
                self.check()
                inhibited = self.inhibited
                with self.gates_lock:
                    if not inhibited:
                        mark()
                        return
                    door = threading.Lock()
""",
        ),
    ),
    mutant(
        "gates are looked at before the VM is marked",
        "inhibit-vcpus",
        LOST,
        (
            BLOCKER,
            _BEGIN,
            """\
            self._wait_until_quiet(started, timeout)
            with self.gates_lock:
                self.inhibited = True
""",
        ),
    ),
    mutant(
        "an inner inhibit ends the outer one",
        "inhibit-nested",
        CAME_IN,
        (
            BLOCKER,
            "        if self._depth == 0:\n            self._open()\n",
            "        self._open_doors(inhibited=False)\n        if self._depth == 0:\n            self._open()\n",
        ),
    ),
    mutant(
        "a gate is added without the lock",
        "vcpu-comes-and-goes",
        "invariant: a gate is still busy",
        (BLOCKER, _ADD, "        self._gates = (*self._gates, gate)\n"),
    ),
    mutant(
        "VM calls are not looked for",
        "vm-calls",
        INSIDE,
        (BLOCKER, "            if not busy and not calls:\n", "            if not busy:\n"),
    ),
    mutant(
        "vCPUs are kicked before the VM is marked",
        "inhibit-vcpus",
        "exception: InhibitTimeoutError",
        (
            BLOCKER,
            _BEGIN,
            "            for gate in self._gates:\n                if gate.busy:\n"
            "                    gate.kick(gate.thread_id)\n" + _BEGIN,
        ),
        (BLOCKER, "                    self.stats.kicks += 1\n                    gate.kick(gate.thread_id)\n", ""),
    ),
    mutant(
        "one vCPU is kicked, not all that are inside",
        "two-spinning",
        LOST,
        (BLOCKER, "            for gate in busy:\n", "            for gate in busy[:1]:\n"),
    ),
]
