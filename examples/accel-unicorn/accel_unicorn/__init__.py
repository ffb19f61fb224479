"""accel_unicorn: the Unicorn engine as an accelerator of `accel`, for x86 guests where there is no /dev/kvm.

Installing it is all that is needed: `accel` finds the accelerator ``unicorn`` by its entry point. For its users there
are `snapshot`, `restore` and `forget_code`, imported when first used: looking for plugins must not import Unicorn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accel_unicorn.snapshots import Snapshot as Snapshot
    from accel_unicorn.snapshots import forget_code as forget_code
    from accel_unicorn.snapshots import restore as restore
    from accel_unicorn.snapshots import snapshot as snapshot

__all__ = ["Snapshot", "forget_code", "restore", "snapshot"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("accel_unicorn.snapshots"), name)
