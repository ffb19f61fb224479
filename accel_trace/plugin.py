"""What `accel` finds of this plugin: a memory listener for each machine, where ``ACCEL_TRACE`` names a file.

Without that nothing else of the plugin is imported, and no machine gets a listener.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from accel.hookspecs import hookimpl

if TYPE_CHECKING:
    import accel
    from accel.memory.listener import MemoryListener
    from accel_trace.listener import TraceListener

#: The file that events are appended to; nothing is traced where it is empty or not set.
FILE_VARIABLE = "ACCEL_TRACE"
#: Set to anything but 0, it traces also what stays as it is, at a cost for each section of the map in each commit.
NOP_VARIABLE = "ACCEL_TRACE_NOP"

#: The listener of each machine that is traced, by the machine's identity; written by whoever creates and closes it.
_listeners: dict[int, TraceListener] = {}


@hookimpl
def accel_memory_listeners(machine: accel.Machine) -> Iterable[MemoryListener]:
    """Return the machine's tracer, or nothing where none is asked for.

    Raises:
        UsageError: The file cannot be opened; the machine is not created.
    """
    path = os.environ.get(FILE_VARIABLE)
    if not path:
        return []
    from accel_trace.listener import make_listener

    nops = os.environ.get(NOP_VARIABLE, "0") not in ("", "0")
    listener = _listeners[id(machine)] = make_listener(machine, path, nops=nops)
    return [listener]


@hookimpl
def accel_machine_closed(machine: accel.Machine) -> None:
    """End the machine's trace."""
    listener = _listeners.pop(id(machine), None)
    if listener is not None:
        listener.close()
