"""Mistakes in how the inhibitor learns that somebody left."""

from __future__ import annotations

from blocker_mutants import BLOCKER, GATE, LOCKED, LOST, WAKEUP, mutant

_LEAVE = """\
        self.busy = False
        if self._blocker.inhibited:
            self._blocker.note_left()
"""
_LOCKED_LEAVE = """\
        with self._blocker.gates_lock:
            self.busy = False
            inhibited = self._blocker.inhibited
"""
_SCAN = """\
            self.left.clear()
            busy = [gate for gate in self._gates if gate.busy]
            calls = self._calls_of_others() if self._vm_calls else []
            if not busy and not calls:
                return
"""
_VM_CALL_END = """\
            with self.gates_lock:
                self._vm_calls.pop(me, None)
            note_released(self)
            # Whether or not anybody waits: VM calls are rare, and a wake-up too many only costs a scan.
            self.left.set()
"""
_LINGER = """\
            self.note_left()
            if counted:
                door.acquire()
"""
_REMOVE = """\
            self._gates = tuple(other for other in self._gates if other is not gate)
        self.left.set()
"""

MUTANTS = [
    mutant(
        "the event is reset after the scan",
        "inhibit-vcpus",
        LOST,
        (BLOCKER, _SCAN, _SCAN.partition("\n")[2] + "            self.left.clear()\n"),
    ),
    mutant(
        "a gate is left without a word",
        "inhibit-vcpus",
        LOST,
        (GATE, _LEAVE, "        self.busy = False\n"),
    ),
    mutant(
        "a gate tells that it is left before it is",
        "inhibit-vcpus",
        LOST,
        (
            GATE,
            _LEAVE,
            """\
        if self._blocker.inhibited:
            self._blocker.left.set()
        self.busy = False
""",
        ),
    ),
    mutant(
        "a gate asks before it is left whether anybody wants to know",
        "inhibit-vcpus",
        LOST,
        (
            GATE,
            _LEAVE,
            """\
        inhibited = self._blocker.inhibited
        self.busy = False
        if inhibited:
            self._blocker.note_left()
""",
        ),
    ),
    mutant(
        "a locked gate asks before it is left whether anybody wants to know",
        "inhibit-vcpus",
        LOST,
        (LOCKED.module, LOCKED.old, LOCKED.new),
        (
            GATE,
            _LOCKED_LEAVE,
            """\
        inhibited = self._blocker.inhibited
        with self._blocker.gates_lock:
            self.busy = False
""",
        ),
    ),
    mutant(
        "only who leaves first wakes the inhibitor",
        "inhibit-vcpus",
        LOST,
        (
            BLOCKER,
            """\
        for gate in self._gates:
            if gate.busy:
                return
        self.left.set()
""",
            """\
        if any(gate.busy for gate in self._gates):
            self.left.set()
""",
        ),
    ),
    mutant(
        "a vCPU that was kicked waits outside without a word",
        "inhibit-vcpus",
        LOST,
        (BLOCKER, _LINGER, "            if counted:\n                door.acquire()\n"),
    ),
    mutant(
        "a vCPU that was kicked tells that it left after it has waited",
        "inhibit-vcpus",
        LOST,
        (BLOCKER, _LINGER, "            if counted:\n                door.acquire()\n            self.note_left()\n"),
    ),
    mutant(
        "a VM call ends without a word",
        "vm-calls",
        LOST,
        (BLOCKER, _VM_CALL_END, _VM_CALL_END.rpartition("            self.left.set()")[0]),
    ),
    mutant(
        "a VM call tells that it is over before it is",
        "vm-calls",
        LOST,
        (BLOCKER, _VM_CALL_END, "            self.left.set()\n" + _VM_CALL_END.rpartition("            self.left")[0]),
    ),
    mutant(
        "a VM call that is over still counts",
        "vm-calls",
        "invariant: still counted",
        (BLOCKER, "                self._vm_calls.pop(me, None)\n", "                pass\n"),
    ),
    mutant(
        "a gate is removed without a word",
        "vcpu-comes-and-goes",
        LOST,
        (BLOCKER, _REMOVE, _REMOVE.rpartition("        self.left.set()")[0]),
    ),
    mutant(
        "the inhibitor is told of a removal before it is made",
        "vcpu-comes-and-goes",
        LOST,
        (
            BLOCKER,
            "        with self.gates_lock:\n" + _REMOVE,
            "        self.left.set()\n        with self.gates_lock:\n" + _REMOVE.rpartition("        self.left")[0],
        ),
    ),
    mutant(
        "who sets the wake-up looks first whether it is set",
        "inhibit-vcpus",
        "exception: release unlocked lock",
        (
            WAKEUP,
            """\
        try:
            self._unset.release()
        except RuntimeError:
""",
            """\
        if self._unset.locked():
            self._unset.release()
        else:
""",
        ),
    ),
]
