"""What is known of one plugin, and the care that is taken while its code runs on the way into the process.

Layer: below `plugin_manager`, which keeps one of these for each plugin that it finds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from attrs import define

from accel.errors import PluginError

#: Stands for the core where plugins are named.
BUILTIN = "builtin"
#: Names of plugins that are not loaded, separated by commas.
BLOCK_VARIABLE = "ACCEL_BLOCK_PLUGINS"


@define(eq=False)
class PluginInfo:
    """One plugin that was found.

    Attributes:
        name: The entry point's name, or the name of a local file without ``.py``.
        distribution: The distribution that brought it, with its version; for a local file its path, or ``"?"``.
        where: What is imported: a module, with an attribute after a colon, or a file.
        module: The name of the module that this gives, or an empty string.
        hooks: The hooks that it implements, in order of names.
        error: Why it is not in use, or not all of it; None if it is.
        switched_off: Whether that is because somebody switched it off.
    """

    name: str
    distribution: str
    where: str = ""
    module: str = ""
    hooks: tuple[str, ...] = ()
    error: PluginError | None = None
    switched_off: bool = False

    @property
    def state(self) -> str:
        """``in use``, ``switched off`` or ``broken``."""
        return "switched off" if self.switched_off else "in use" if self.error is None else "broken"

    @property
    def file(self) -> str:
        """The local file that it is, or an empty string."""
        return self.where if self.where == self.distribution else ""

    def problem(self, text: str) -> PluginError:
        """Return an error that says who it is."""
        return PluginError(self.name, self.distribution, text)

    def __str__(self) -> str:
        return f"plugin '{self.name}' (from {self.distribution})"


def without(plugin: str) -> str:
    """Return how to do without a plugin."""
    return f"to do without it: accelctl -p no:{plugin}, or {BLOCK_VARIABLE}={plugin}"


@contextmanager
def asked(info: PluginInfo, what: str) -> Iterator[None]:
    """Keep a plugin's words out of what the program prints, and say of an interrupt who it was that took so long.

    What it prints while it is imported or asked goes to standard error: standard output is the program's, which may
    print a document there.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt as error:
        error.add_note(f"interrupted while {info} was {what}; {without(info.name)}")
        raise
