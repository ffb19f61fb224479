"""Mistakes in how those are let in who wait outside, and in what ends their wait."""

from __future__ import annotations

from blocker_mutants import BLOCKER, LEAK, LOST, STUCK, mutant

_OPEN_DOORS = """\
        with self.gates_lock:
            self.inhibited = inhibited
            doors, self._doors = self._doors, []
        for door in doors:
            door.release()
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
_REFUSE = """\
        self._refusal = refusal
        self._open_doors(inhibited=True)
"""
_FAILED = """\
        except BaseException:
            self._open()
            raise
        self._held_since"""

MUTANTS = [
    mutant(
        "one who waits is let in, not all",
        "inhibit-vcpus",
        STUCK,
        (BLOCKER, "        for door in doors:\n", "        for door in doors[:1]:\n"),
    ),
    mutant(
        "the doors are opened before the inhibit ends",
        "two-inhibitors",
        STUCK,
        (
            BLOCKER,
            _OPEN_DOORS,
            """\
        with self.gates_lock:
            doors, self._doors = self._doors, []
        for door in doors:
            door.release()
        with self.gates_lock:
            self.inhibited = inhibited
""",
        ),
    ),
    mutant(
        "the doors are taken before the inhibit ends",
        "two-inhibitors",
        STUCK,
        (
            BLOCKER,
            _OPEN_DOORS,
            """\
        with self.gates_lock:
            doors, self._doors = self._doors, []
        with self.gates_lock:
            self.inhibited = inhibited
        for door in doors:
            door.release()
""",
        ),
    ),
    mutant(
        "a vCPU that was kicked hands in its door outside of the lock",
        "inhibit-vcpus",
        STUCK,
        (
            BLOCKER,
            """\
            with self.gates_lock:
                if self.inhibited and self._refusal is None and self._owner != threading.get_ident():
                    self._doors.append(door)
                    self._waiting += 1
                    counted = 1
""",
            """\
            if self.inhibited and self._refusal is None and self._owner != threading.get_ident():
                with self.gates_lock:
                    self._doors.append(door)
                    self._waiting += 1
                    counted = 1
""",
        ),
    ),
    mutant(
        "who inhibits does not pass its own gate",
        "inhibit-nested",
        STUCK,
        (
            BLOCKER,
            """\
        if self._owner == threading.get_ident() and self._refusal is None:
            return
        gate.leave()
""",
            "        gate.leave()\n",
        ),
    ),
    mutant(
        "a VM call inside a VM call waits",
        "vm-calls",
        "exception: LockError",
        (BLOCKER, "if self._big_lock.held() or me in self._vm_calls:", "if self._big_lock.held():"),
    ),
    mutant(
        "who waited is counted off outside of the lock",
        "vm-calls",
        LEAK,
        (
            BLOCKER,
            _PASSED,
            _PASSED.replace(
                "                with self.gates_lock:\n                    self._waiting -= 1\n",
                "                self._waiting -= 1\n                with self.gates_lock:\n",
            ),
        ),
    ),
    mutant(
        "who waited is never counted off",
        "two-inhibitors",
        LEAK,
        (BLOCKER, _PASSED, _PASSED.replace("                    self._waiting -= 1\n", "")),
    ),
    mutant(
        "the next inhibit waits for nobody",
        "two-inhibitors",
        "invariant: waited through two inhibits in a row",
        (
            BLOCKER,
            "        if self._waiting:\n            self._let_pass",
            "        if False:\n            self._let_pass",
        ),
    ),
    mutant(
        "the fairness wait does not reset its event",
        "inhibit-in-a-row",
        "invariant: waited through two inhibits in a row",
        (BLOCKER, "            self._all_passed.clear()\n", ""),
    ),
    mutant(
        "the fairness wait resets its event outside of the lock",
        "two-inhibitors",
        LOST,
        (
            BLOCKER,
            "            self._all_passed.clear()\n        self._all_passed.wait(timeout)\n",
            "        self._all_passed.clear()\n        self._all_passed.wait(timeout)\n",
        ),
    ),
    mutant(
        "an inhibit that times out holds everybody for good",
        "inhibit-times-out",
        STUCK,
        (BLOCKER, _FAILED, _FAILED.replace("            self._open()\n", "            self._depth = 0\n")),
    ),
    mutant(
        "an inhibit that times out opens no doors",
        "inhibit-times-out",
        STUCK,
        (BLOCKER, _FAILED, _FAILED.replace("self._open()", "self._depth = 0; self.inhibited = False")),
    ),
    mutant(
        "an inhibit that times out is counted as one that held",
        "inhibit-times-out",
        "invariant: inhibits were counted",
        (BLOCKER, _FAILED, _FAILED.replace("raise", "self.stats.note_wait(timeout)\n            raise")),
    ),
    mutant(
        "a vCPU that was kicked waits outside of a VM that nobody may enter",
        "close",
        STUCK,
        (BLOCKER, "if self.inhibited and self._refusal is None and self._owner", "if self.inhibited and self._owner"),
    ),
    mutant(
        "the refusal comes after the doors are open",
        "close",
        STUCK,
        (BLOCKER, _REFUSE, "\n".join(reversed(_REFUSE.splitlines())) + "\n"),
    ),
    mutant(
        "whether anybody may enter is asked outside of the lock",
        "poison",
        STUCK,
        (
            BLOCKER,
            _PASS_IN,
            _PASS_IN.replace("                    self.check()\n", "").replace(
                "                with self.gates_lock:",
                "                self.check()\n                with self.gates_lock:",
            ),
        ),
    ),
    mutant(
        "who is inside a VM that is closed is not kicked",
        "close",
        STUCK,
        (
            BLOCKER,
            "        for gate in self._gates:\n            if gate.busy:\n                try:",
            "        for gate in self._gates:\n            if False:\n                try:",
        ),
    ),
    mutant(
        "the end of an inhibit lets everybody into a VM that is poisoned",
        "poison",
        "invariant: came in where nobody may",
        (BLOCKER, "self._open_doors(inhibited=self._refusal is not None)", "self._open_doors(inhibited=False)"),
    ),
]
