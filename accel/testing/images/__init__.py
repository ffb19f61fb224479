"""Built guests that an installed package needs: copies of those in ``examples/guests``; a test compares them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path


def image_file(name: str) -> AbstractContextManager[Path]:
    """Return a context that gives the path of an image, such as ``touch.elf``."""
    return as_file(files(__name__).joinpath(name))
