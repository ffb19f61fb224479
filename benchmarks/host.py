"""The host that a run was made on: figures mean nothing without it."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from attrs import frozen


@frozen
class Host:
    """A flavour of host.

    Attributes:
        kvm: Kernel modules of KVM, such as ``kvm_intel``; empty without KVM.
        kernel: Name, release and architecture.
        python: Implementation and version, and whether it has a GIL.
        compiler: What built the baselines.
        cpus: CPUs that this process may use.
        cpu_model: As the kernel tells it.
    """

    kvm: tuple[str, ...]
    kernel: str
    python: str
    compiler: str
    cpus: int
    cpu_model: str

    def __str__(self) -> str:
        return (
            f"KVM: {'+'.join(self.kvm) or 'none'} · {self.kernel} · {self.cpus} CPUs ({self.cpu_model}) · "
            f"{self.python} · {self.compiler or 'no C compiler'}"
        )


def this_host(compiler: str) -> Host:
    """Return the flavour of this host."""
    system = os.uname()
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return Host(
        kvm=tuple(sorted(path.name for path in Path("/sys/module").glob("kvm*"))),
        kernel=f"{system.sysname} {system.release} {system.machine}",
        python=f"{platform.python_implementation()} {platform.python_version()}{'' if gil else ' without GIL'}",
        compiler=compiler,
        cpus=len(os.sched_getaffinity(0)),
        cpu_model=_cpu_model(),
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
