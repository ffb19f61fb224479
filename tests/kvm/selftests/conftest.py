"""Machines for the kernel's memory selftests, on each accelerator here; the cases are theirs, every line is ours.

Source: tools/testing/selftests/kvm of Linux, what its memory tests assert. Sizes are scaled to hosts that emulate guest
code; assertions are not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import attrs
import pytest

import accel
from accel.arch.x86_program import assemble
from accel.errors import CapabilityError
from accel.exits import Exit
from accel.program import GuestProgram

#: How long a test waits for what must happen; only a failing test ever waits so long.
PATIENCE = 60
#: Where the code of vCPU 0 lies on accelerators that execute x86; that of the next is `CODE_STEP` further up.
CODE, CODE_STEP = 0x20_0000, 0x10_0000


@pytest.fixture(params=[pytest.param("kvm", marks=pytest.mark.kvm), "mock"])
def accelerator(request: pytest.FixtureRequest) -> str:
    """Each accelerator here in turn."""
    return str(request.param)


@pytest.fixture
def machine(accelerator: str) -> Iterator[Callable[..., accel.Machine]]:
    """Make machines whose vCPUs execute a program each: `machine(first, second, plan="replace")`; closed in the end."""
    made: list[accel.Machine] = []

    def make(*programs: GuestProgram, **options: object) -> accel.Machine:
        made.append(
            accel.Machine.create(
                accelerator, memory="16M", cpus=len(programs), options={accelerator: dict(options)}, executes=None
            )
        )
        load_each(made[-1], programs)
        return made[-1]

    yield make
    for one in made:
        one.close()


def load_each(machine: accel.Machine, programs: Sequence[GuestProgram]) -> None:
    """Have each vCPU execute a program of its own; `Machine.load` gives all of them the same."""
    machine.load(programs[0])
    for vcpu, program in zip(machine.vm.vcpus, programs, strict=True):
        try:
            vcpu.load_program(program)
        except CapabilityError:
            code = assemble(program)
            assert len(code) <= CODE_STEP
            entry = CODE + vcpu.index * CODE_STEP
            machine.memory.write(entry, code)
            vcpu.write_state(attrs.evolve(vcpu.read_state(), rip=entry))


class Loop:
    """Runs vCPU 0 on a thread as people do who have their own loop, and keeps what it came out with.

    Attributes:
        exits: All exits but interrupted ones.
        reads: Those of them that are reads of memory.
        rounds: What the guest wrote to ports, in order.
        reads_by: How many reads had come out before each of them.
    """

    def __init__(self, vcpu: accel.Vcpu, reply: int) -> None:
        self.exits: list[Exit] = []
        self.reads: list[Exit] = []
        self.rounds: list[bytes] = []
        self.reads_by: list[int] = []
        self._vcpu = vcpu
        self._reply = reply
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._main, daemon=True)

    def go_round(self, count: int = 2) -> bytes:
        """Wait for so many port writes, the first of which may be late; return the last."""
        with self._changed:
            target = len(self.rounds) + count
            assert self._changed.wait_for(lambda: len(self.rounds) >= target, PATIENCE), self.exits[-1:]
            return self.rounds[target - 1]

    def join(self) -> Exit:
        """Wait for the last exit, one that nobody serves; return it."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.exits[-1]

    def _main(self) -> None:
        while not self._stopping:
            access = self._vcpu.run()
            if isinstance(access, accel.Interrupted):
                continue
            self.exits.append(access)
            if isinstance(access, accel.MmioRead):
                self.reads.append(access)
                access.reply(self._reply)
            elif isinstance(access, accel.IoOut):
                with self._changed:
                    self.reads_by.append(len(self.reads))
                    self.rounds.append(access.data)
                    self._changed.notify_all()
            elif not isinstance(access, accel.MmioWrite):
                return

    def __enter__(self) -> Loop:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping = True
        self._vcpu.kick()
        self.join()


@pytest.fixture
def looped() -> type[Loop]:
    """Run a vCPU in a `with` block: `with looped(vcpu, reply=0xBEEF) as loop:`."""
    return Loop
