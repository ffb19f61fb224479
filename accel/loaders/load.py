"""From a file to an `Image`: reading it safely, and asking the loaders who knows it.

Above the loaders' interface, below the machine; knows no loader by name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from accel.address import format_size
from accel.errors import ImageError
from accel.loaders.image import MAX_IMAGE_SIZE, Image, Loader, LoadOptions
from accel.options import nearest

#: What `Loader.detect` gets to see.
_HEAD_SIZE = 4096


def load_image(
    source: str | os.PathLike[str] | bytes,
    options: LoadOptions,
    loaders: Iterable[Loader],
    loader_name: str | None = None,
) -> Image:
    """Return the image in a file or in `source` itself.

    Args:
        source: A path, or the image's bytes.
        options: What the user asked for.
        loaders: Who may be asked, in any order.
        loader_name: The one to use; without it the first, by priority, that recognises the image.

    Raises:
        ImageError: The file cannot be used, no loader recognises it, or the loader refuses it.
    """
    if isinstance(source, bytes):
        name, data = "<bytes>", source
        _check_size(name, len(data))
    else:
        name = os.fspath(source)
        data = read_image(name)
    by_priority = sorted(loaders, key=lambda loader: -loader.priority)
    return _choose(name, data, by_priority, loader_name).load(name, data, options)


def read_image(path: str) -> bytes:
    """Return the contents of an image file: a regular file, not empty, at most `MAX_IMAGE_SIZE` bytes.

    Raises:
        ImageError: It is none, or it cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise ImageError(path, "no such file; check the path, or build the guest first") from error
    except OSError as error:
        raise ImageError(path, f"cannot be opened: {os.strerror(error.errno or 0)}") from error
    except ValueError as error:
        raise ImageError(repr(path), f"is no path: {error}") from error
    try:
        return _read_descriptor(path, descriptor)
    finally:
        os.close(descriptor)


def _read_descriptor(path: str, descriptor: int) -> bytes:
    found = os.fstat(descriptor)
    if stat.S_ISDIR(found.st_mode):
        raise ImageError(path, "is a directory; name an image file in it")
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(path, "is no regular file; copy the image into one")
    _check_size(path, found.st_size)
    try:
        with open(descriptor, "rb", closefd=False) as file:
            # No more than was checked, whoever is still writing to the file.
            data = file.read(found.st_size)
    except OSError as error:
        raise ImageError(path, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    _check_size(path, len(data))
    return data


def _check_size(name: str, size: int) -> None:
    if not size:
        raise ImageError(name, "the image is empty; was it built?")
    if size > MAX_IMAGE_SIZE:
        raise ImageError(
            name,
            f"the image has {size:#x} bytes, more than the {format_size(MAX_IMAGE_SIZE)} that are loaded; "
            "hand large data to the guest as memory of its own",
        )


def _choose(name: str, data: bytes, loaders: list[Loader], loader_name: str | None) -> Loader:
    names = [loader.name for loader in loaders]
    if loader_name is not None:
        for loader in loaders:
            if loader.name == loader_name:
                return loader
        raise ImageError(name, f"no loader '{loader_name}'; {nearest(loader_name, names)}")
    head = data[:_HEAD_SIZE]
    for loader in loaders:
        if loader.detect(head):
            return loader
    raise ImageError(name, f"no loader recognises it; name one of: {', '.join(names) or 'none is registered'}")
