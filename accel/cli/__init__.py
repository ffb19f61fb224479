"""accelctl: runs guests and workloads, lists what is installed, and shows the race; one file per command."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `accelctl` with `arguments` (by default those of the process) and return its exit code."""
    from accel.cli.app import run

    return run(arguments)
