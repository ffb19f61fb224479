"""``accelctl plugins``: every plugin that was found, what it implements, and why one is not in use."""

from __future__ import annotations

import json
from typing import Any

import click


class _Plugins(click.Group):
    """The command, and ``new`` below it, which is imported when it is needed."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the only name."""
        return ["new"]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return the command of this name."""
        if name != "new":
            return None
        from accel.cli.plugins_new import command

        return command


@click.group(
    "plugins",
    cls=_Plugins,
    invoke_without_command=True,
    short_help="List the plugins, or write one of your own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the plugins: where each comes from, its hooks, and why one is not in use.

    \b
    accelctl plugins                  all that were found
    accelctl plugins new toy          start one of your own
    accelctl -p no:kvm COMMAND        switch one off, for one command
    accelctl --plugin-dir DIR COMMAND load the files of a folder as plugins too
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError("--json is for the list of plugins, without a command behind it")
        return
    plugins = found_plugins(context)
    if as_json:
        click.echo(json.dumps({"format": 1, "plugins": plugins}, indent=2))
        return
    from accel.cli.catalogue_text import print_plugins

    print_plugins(plugins)


def found_plugins(context: click.Context) -> list[dict[str, Any]]:
    """Return what is known of each plugin, the core first, after asking all for what they register."""
    from accel.cli.catalogue import plugins

    # Those of plugins that add commands are asked by the group, when it is asked for a command that nobody has.
    root = context.find_root()
    if isinstance(root.command, click.Group):
        root.command.list_commands(root)
    return plugins()
