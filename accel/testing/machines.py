"""Machines for tests: made on one accelerator, loaded, and closed whatever happened.

Layer: above `machine`; what the pytest fixture ``machine`` hands out.
"""

from __future__ import annotations

from collections.abc import Mapping

from accel.errors import AccelError
from accel.machine import Machine
from accel.plugins import find_accelerator
from accel.program import GuestProgram, Op


class MachineFactory:
    """Makes machines on one accelerator; calling it makes one.

    Args:
        accelerator: Its name.
        patience: Longest wait, in seconds, for a vCPU to come out where memory changes or a machine is closed.

    Attributes:
        accelerator: As given.
        patience: As given.
    """

    def __init__(self, accelerator: str, patience: float) -> None:
        self.accelerator = accelerator
        self.patience = patience
        self._made: list[Machine] = []

    def __call__(
        self,
        *program: GuestProgram | Op,
        memory: int | str = "4M",
        cpus: int = 1,
        irqchip: bool = False,
        options: Mapping[str, object] | None = None,
    ) -> Machine:
        """Return a machine, which is closed after the test.

        Args:
            program: What all vCPUs execute: a guest program, or the operations of one. Without any, nothing is loaded.
            memory: RAM from address 0 on. On accelerators that execute x86, programs lie in it.
            cpus: Number of vCPUs.
            irqchip: Create interrupt controllers.
            options: Of the accelerator, such as ``{"plan": "replace"}``.

        Raises:
            AccelError: As for `Machine.create` and `Machine.load`.
        """
        declared = [option.name for option in find_accelerator(self.accelerator).options]
        chosen = dict(options or {})
        if "inhibit_timeout_ms" in declared:
            chosen.setdefault("inhibit_timeout_ms", max(1, round(self.patience * 1000)))
        machine = Machine.create(
            self.accelerator, memory=memory, cpus=cpus, irqchip=irqchip, options={self.accelerator: chosen}
        )
        self._made.append(machine)
        machine.vm.inhibit_timeout = self.patience
        if program:
            whole = len(program) == 1 and isinstance(program[0], GuestProgram)
            machine.load(program[0] if whole else GuestProgram(program))  # type: ignore[arg-type]
        return machine

    def forget(self, machine: Machine) -> None:
        """Let go of a machine, which the caller has closed."""
        self._made.remove(machine)

    def close(self) -> None:
        """Close all machines, the last one first.

        Raises:
            AccelError: One could not be closed; the others are.
        """
        problem: AccelError | None = None
        while self._made:
            try:
                self._made.pop().close()
            except AccelError as error:
                problem = problem or error
        if problem is not None:
            raise problem
