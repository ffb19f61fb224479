"""placeholder"""
import click


@click.command("new")
def command() -> None:
    """Start a plugin."""
