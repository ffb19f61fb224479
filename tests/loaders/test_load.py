"""From a file to an image: which files are read, and which loader is asked."""

import os
from pathlib import Path

import pytest
from attrs import evolve

from accel.arch.x86 import BootMode
from accel.errors import ImageError
from accel.loaders import BUILTIN_LOADERS, MAX_IMAGE_SIZE, LoadOptions, load_image, read_image
from accel.loaders.image import Image, Loader

OPTIONS = LoadOptions()


def loader(name, *, priority=0, magic=b""):
    def load(image_name, data, options):
        return Image(image_name, name, (), entry=0, mode=BootMode.REAL16)

    return Loader(name, "", lambda head: head.startswith(magic), load, priority)


def refusal(source, *, loaders=BUILTIN_LOADERS, loader_name=None):
    with pytest.raises(ImageError) as caught:
        load_image(source, OPTIONS, loaders, loader_name)
    return str(caught.value)


def descriptors_of(path):
    """Return which descriptors of this process are open on `path`: of others, garbage of other tests may close some."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == str(path.resolve()):
                found.append(number)
        except FileNotFoundError:
            pass
    return found


def test_load_image_file_is_read_and_named_by_its_path(tmp_path):
    path = tmp_path / "guest.bin"
    path.write_bytes(b"\xf4")
    image = load_image(path, OPTIONS, BUILTIN_LOADERS)
    assert (image.name, image.loader, image.segments[0].data) == (str(path), "flat", b"\xf4")
    assert load_image(str(path), OPTIONS, BUILTIN_LOADERS) == image


def test_load_image_symbolic_link_is_followed(tmp_path):
    (tmp_path / "guest.bin").write_bytes(b"\xf4")
    (tmp_path / "link").symlink_to("guest.bin")
    assert read_image(str(tmp_path / "link")) == b"\xf4"


def test_load_image_bytes_need_no_file():
    image = load_image(b"\xf4", OPTIONS, BUILTIN_LOADERS)
    assert (image.name, image.segments[0].size) == ("<bytes>", 1)


def test_load_image_missing_file_says_what_to_check(tmp_path):
    path = tmp_path / "absent.bin"
    assert refusal(path) == f"{path}: no such file; check the path, or build the guest first"


@pytest.mark.parametrize("source", ["file", "bytes"])
def test_load_image_empty_is_refused(tmp_path, source):
    path = tmp_path / "empty.bin"
    path.touch()
    assert "the image is empty" in refusal(path if source == "file" else b"")


def test_load_image_directory_is_refused(tmp_path):
    assert "is a directory; name an image file in it" in refusal(tmp_path)


def test_load_image_fifo_is_refused_without_waiting_for_a_writer(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    assert "is no regular file" in refusal(path)


def test_load_image_device_is_refused():
    assert "is no regular file" in refusal("/dev/zero")


def test_load_image_oversized_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.bin"
    with path.open("wb") as file:
        file.truncate(MAX_IMAGE_SIZE + 1)
    assert "the image has 0x40000001 bytes, more than the 1G that are loaded" in refusal(path)


def test_read_image_file_that_grows_is_read_up_to_the_size_that_was_checked(tmp_path, monkeypatch):
    path = tmp_path / "grows.bin"
    path.write_bytes(b"\xf4")
    look = os.fstat

    def grow(descriptor):
        found = look(descriptor)
        with path.open("ab") as file:
            file.truncate(MAX_IMAGE_SIZE + 1)
        return found

    monkeypatch.setattr(os, "fstat", grow)
    assert read_image(str(path)) == b"\xf4"


def test_load_image_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be opened: Not a directory" in refusal(tmp_path / "file" / "guest.bin")


def test_load_image_path_with_a_null_byte_is_refused():
    assert "is no path" in refusal("guest\0.bin")


def test_load_image_closes_the_file_in_every_case(tmp_path):
    (tmp_path / "guest.bin").write_bytes(b"\xf4")
    for path in (tmp_path, tmp_path / "guest.bin", Path("/dev/zero")):
        before = descriptors_of(path)
        try:
            load_image(path, OPTIONS, BUILTIN_LOADERS)
        except ImageError:
            pass
        assert descriptors_of(path) == before


def test_load_image_loaders_are_asked_by_priority_whatever_their_order():
    low, high = loader("low", priority=-1), loader("high", priority=1)
    for loaders in ([low, high], [high, low]):
        assert load_image(b"x", OPTIONS, loaders).loader == "high"
    assert load_image(b"x", OPTIONS, [evolve(high, detect=lambda head: False), low]).loader == "low"


def test_load_image_detect_sees_the_first_4096_bytes():
    seen = []
    spy = Loader("spy", "", lambda head: bool(seen.append(head)), loader("spy").load, priority=1)
    load_image(bytes(5000), OPTIONS, [spy, loader("any")])
    assert [len(head) for head in seen] == [4096]


def test_load_image_named_loader_is_used_without_detection():
    image = load_image(bytes(4096), OPTIONS, BUILTIN_LOADERS, "firmware")
    assert (image.loader, image.mode) == ("firmware", BootMode.RESET)


def test_load_image_firmware_is_never_picked_by_itself():
    assert load_image(bytes(128 << 10), OPTIONS, BUILTIN_LOADERS).loader == "flat"


def test_load_image_unknown_loader_suggests_the_nearest():
    assert "no loader 'eflat'; did you mean 'flat'?" in refusal(b"x", loader_name="eflat")


def test_load_image_unrecognised_names_the_loaders():
    assert "no loader recognises it; name one of: a" in refusal(b"x", loaders=[loader("a", magic=b"a")])
    assert "none is registered" in refusal(b"x", loaders=[])
