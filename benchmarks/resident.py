"""The resident memory of this process, in KiB."""

from __future__ import annotations

from pathlib import Path


def peak_kib() -> int:
    """Return the most since the process's exec."""
    return _status("VmHWM")


def now_kib() -> int:
    """Return what it is now."""
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0
