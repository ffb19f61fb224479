"""Plausible mistakes around KVM_RUN, the kick and the transaction, each a change of the shipped source.

Each names the scenario in which the explorer must find it, within that scenario's bound, and what it must come to.
"""

from __future__ import annotations

from attrs import frozen

from accel.testing.explore.world import Patch

_VCPU, _LOOP, _COMMIT = "accel_kvm.vcpu", "accel.vcpu_thread", "accel.memory.commit"


@frozen
class Mutant:
    """One mistake.

    Attributes:
        name: What was done wrong.
        scenario: Where it shows.
        found: What the violation begins with.
        patch: The mistake.
    """

    name: str
    scenario: str
    found: str
    patch: Patch


def _mutant(name: str, scenario: str, found: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, scenario, found, Patch(module, old, new))


_STUCK = "deadlock: nobody can go on: vCPU 0"
_SPURIOUS = "invariant: a rightful fault counts as spurious"
_HALF = "invariant: the guest read"

MUTANTS = [
    # the kick
    _mutant(
        "immediate_exit cleared before EINTR is known",
        "kvm-kick",
        _STUCK,
        _VCPU,
        "            if call(fd, request, 0) == 0:",
        "            self._bytes[_IMMEDIATE_EXIT] = 0\n            if call(fd, request, 0) == 0:",
    ),
    _mutant(
        "immediate_exit cleared after the kick's reason was looked at",
        "kvm-kick",
        _STUCK,
        _LOOP,
        "            return self._attend()\n        if kind == ExitKind.HALT",
        """\
            going = self._attend()
            self.vcpu.backend._take_back_kick()
            return going
        if kind == ExitKind.HALT""",
    ),
    _mutant(
        "signal before the flag",
        "kvm-kick",
        _STUCK,
        _VCPU,
        """\
        try:
            self._bytes[_IMMEDIATE_EXIT] = 1
""",
        """\
        if thread_id:
            kick_thread(thread_id, self._kick_signal)
            thread_id = 0
        try:
            self._bytes[_IMMEDIATE_EXIT] = 1
""",
    ),
    _mutant(
        "kick marked after the flag",
        "kvm-kick-finish",
        _STUCK,
        _VCPU,
        "        self._kicked = True\n        try:\n            self._bytes[_IMMEDIATE_EXIT] = 1\n",
        "        try:\n            self._bytes[_IMMEDIATE_EXIT] = 1\n            self._kicked = True\n",
    ),
    _mutant(
        "finish clears the flag and does not look for a kick",
        "kvm-kick-finish",
        _STUCK,
        _VCPU,
        "            if self._kicked:\n                self._bytes[_IMMEDIATE_EXIT] = 1\n",
        "",
    ),
    _mutant(
        "finish looks for a kick before it clears the flag",
        "kvm-kick-finish",
        _STUCK,
        _VCPU,
        """\
            self._bytes[_IMMEDIATE_EXIT] = 0
            if self._kicked:
                self._bytes[_IMMEDIATE_EXIT] = 1
""",
        """\
            if not self._kicked:
                self._bytes[_IMMEDIATE_EXIT] = 0
""",
    ),
    _mutant(
        "another call between KVM_RUN and its errno",
        "kvm-kick",
        "exception: at the end: BackendError: KVM_RUN failed: ENOTTY",
        _VCPU,
        "            return self._failed(ctypes.get_errno())",
        "            call(fd, abi.KVM_CHECK_EXTENSION, 0)\n            return self._failed(ctypes.get_errno())",
    ),
    # gates and locks
    _mutant(
        "the gate is not left while an exit is handled",
        "kvm-handler-edits",
        "exception: at the end: DeviceError: device 'port' raised LockError",
        _LOOP,
        "            else:\n                leave()\n            try:\n",
        "            try:\n",
    ),
    _mutant(
        "a handler's lock is held into the gate",
        "kvm-handler-edits",
        "deadlock: nobody can go on: changer: acquire big_lock",
        "accel.port_dispatch",
        "            write(offset, item[0], size)\n        finally:\n            release()\n",
        "            write(offset, item[0], size)\n        finally:\n            pass\n",
    ),
    # the hold
    _mutant(
        "no hold where a deleted range is added back",
        "kvm-replace",
        "invariant: the guest met the gap",
        _COMMIT,
        '        self.held |= hold == "asked" and _asks(updates)\n',
        "",
    ),
    _mutant(
        "held once for the slots and once for the view",
        "kvm-map",
        _HALF,
        _COMMIT,
        """\
                with self._hold_vcpus(timeout):
                    self._make(updates, published, recorded)
            else""",
        """\
                with self._hold_vcpus(timeout):
                    self._make(updates, [], recorded)
                with self._hold_vcpus(timeout):
                    self._make([], published, recorded)
            else""",
    ),
    _mutant(
        "vCPUs let go on before the view is published",
        "kvm-map",
        _HALF,
        _COMMIT,
        """\
                with self._hold_vcpus(timeout):
                    self._make(updates, published, recorded)
            else""",
        """\
                with self._hold_vcpus(timeout):
                    self._make(updates, [], recorded)
                self._make([], published, recorded)
            else""",
    ),
    _mutant(
        "the view is published before the slots are changed",
        "kvm-undo",
        _HALF,
        _COMMIT,
        """\
            self._apply(updates)
            for change in published:
                change.space.view = change.new
""",
        """\
            before = [change.space.view for change in published]
            for change in published:
                change.space.view = change.new
            try:
                self._apply(updates)
            except BaseException:
                for change, view in zip(published, before, strict=True):
                    change.space.view = view
                raise
""",
    ),
    _mutant(
        "the view is published before the vCPUs are held",
        "kvm-time-out",
        "invariant: the view shows",
        _COMMIT,
        "                with self._hold_vcpus(timeout):\n                    self._make(",
        """\
                for change in published:
                    change.space.view = change.new
                with self._hold_vcpus(timeout):
                    self._make(""",
    ),
    _mutant(
        "a failed change is undone outside of the hold",
        "kvm-undo",
        "invariant: the guest met the gap",
        _COMMIT,
        "            lost = _undo(begun)\n",
        """\
            if self.held:
                self._blocker.inhibit_end()
            lost = _undo(begun)
            if self.held:
                self._blocker.inhibit_begin(10.0)
""",
    ),
    _mutant(
        "no hold for the first of two deletes",
        "kvm-undo-delete",
        "invariant: the guest met the gap",
        "accel.memory.slot_plan",
        "        return self.ends_log or taken_back\n",
        "        return self.ends_log or overlaps(self.deletes, self.creates)\n",
    ),
    # what is counted as spurious
    _mutant(
        "the entry's generation is noted after the guest came out",
        "kvm-hot-plug",
        _SPURIOUS,
        _LOOP,
        "            gate.entered = history.completed\n            kind = run()\n",
        "            kind = run()\n            gate.entered = history.completed\n",
    ),
    _mutant(
        "a change is noted as begun after it was made",
        "kvm-hot-plug",
        _SPURIOUS,
        _COMMIT,
        """\
        for history, new in recorded:
            history.start(new)
        try:
            self._apply(updates)
""",
        """\
        try:
            self._apply(updates)
            for history, new in recorded:
                history.start(new)
""",
    ),
    _mutant(
        "a change is noted as over before it was made",
        "kvm-hot-plug",
        _SPURIOUS,
        _COMMIT,
        """\
            history.start(new)
        try:
            self._apply(updates)
""",
        """\
            history.start(new)
            history.complete([gate.entered for gate in self._blocker.gates])
        try:
            self._apply(updates)
""",
    ),
    _mutant(
        "a change that was taken back counts as a map of its own",
        "kvm-spurious-undo",
        "invariant: 1 faults in the gap, 0 counted as spurious",
        _COMMIT,
        "                history.take_back()\n",
        "                history.start(_)\n",
    ),
    _mutant(
        "a fault that no device answers is not judged",
        "kvm-spurious",
        "invariant: 2 faults in the gap, 0 counted as spurious",
        _LOOP,
        "        if handler is None or not self.vcpu.gate.entered == exited == vm.history.started:",
        "        if handler is not None and not self.vcpu.gate.entered == exited == vm.history.started:",
    ),
]
