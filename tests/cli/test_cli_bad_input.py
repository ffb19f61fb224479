"""Bad input to accelctl: one clear message, the right exit code, never a traceback."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from accel.loaders.image import MAX_IMAGE_SIZE

Accelctl = Callable[..., subprocess.CompletedProcess[bytes]]

MOCK = 'format = 1\nmachine = {accelerators = ["mock"], memory = "1M"}\n'


def check(done: subprocess.CompletedProcess[bytes], code: int, *words: str) -> None:
    """Check exit code and message of a finished process."""
    stderr = done.stderr.decode()
    assert done.returncode == code, stderr
    assert done.stdout == b""
    assert "Traceback" not in stderr
    for one in words:
        assert one in stderr


# images


def elf(
    *, machine: int = 62, segments: tuple[tuple[int, int], ...] = ((0x10_0000, 16),), cut: int | None = None
) -> bytes:
    """Return an ELF64 file with a segment for each `(address, size)`."""
    headers = len(segments)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, segments[0][0], 64, 0, 0, 64, 56, headers, 0, 0, 0)
    at = 64 + 56 * headers
    table = b"".join(
        struct.pack("<IIQQQQQQ", 1, 5, at, address, address, min(size, 16), size, 16) for address, size in segments
    )
    return (head + table + b"\xf4" * 16)[:cut]


IMAGES: dict[str, tuple[bytes, list[str], tuple[str, ...]]] = {
    "empty": (b"", [], ("guest: the image is empty; was it built?",)),
    "truncated": (elf(cut=100), [], ("guest: ",)),
    "of another machine": (elf(machine=183), [], ("AARCH64", "build it for x86")),
    "overlapping": (elf(segments=((0x10_0000, 64), (0x10_0010, 64))), [], ("overlap",)),
    "out of RAM": (elf(segments=((0x2000_0000, 16),)), [], ("is not in RAM", "use --memory 513M or more")),
    "entry elsewhere": (elf(), ["--entry", "0x5"], ("entry 0x5 is not in the image",)),
    "unknown loader": (b"\xf4", ["--loader", "fllat"], ("no loader 'fllat'; did you mean 'flat'?",)),
    "short firmware": (b"\xf4", ["--loader", "firmware"], ("firmware of 0x1 bytes cannot be mapped",)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_run_bad_image_is_refused_with_its_name(accelctl: Accelctl, tmp_path: Path, name: str) -> None:
    data, flags, words = IMAGES[name]
    (tmp_path / "guest").write_bytes(data)
    check(accelctl("run", "guest", *flags), 2, *words)


def test_run_missing_image_is_refused(accelctl: Accelctl) -> None:
    check(accelctl("run", "nothere.bin"), 2, "accelctl: nothere.bin: no such file; check the path")


def test_run_oversized_image_is_refused_unread(accelctl: Accelctl, tmp_path: Path) -> None:
    with open(tmp_path / "guest", "wb") as file:
        file.truncate(MAX_IMAGE_SIZE + 1)
    check(accelctl("run", "guest"), 2, "more than the 1G that are loaded")


def test_run_folder_or_endless_file_as_image_is_refused(accelctl: Accelctl, tmp_path: Path) -> None:
    check(accelctl("run", tmp_path), 2, "is a directory; name an image file in it")
    check(accelctl("run", "/dev/zero"), 2, "is no regular file")


def test_run_name_that_would_steer_the_terminal_is_escaped(accelctl: Accelctl) -> None:
    check(accelctl("run", "x\x1b[2J"), 2, r"x\x1b[2J: no such file")


# flags

FLAGS: list[tuple[list[str], int, str]] = [
    (["--memory", "0"], 2, "memory of 0 bytes: a guest needs some; try 64M"),
    (["--memory", "5000"], 2, "is no multiple of 0x1000; try 8K"),
    (["--memory", "64Q"], 2, "'64Q' is no size"),
    (["--memory", "8T"], 2, "more than this host has"),
    (["--memory", "1" * 30 + "T"], 2, "is too much; use at most 16T"),
    (["--cpus", "0"], 2, "0 vCPUs: a machine needs at least one"),
    (["--cpus", "-1"], 2, "-1 vCPUs"),
    (["--cpus", "two"], 2, "'two' is not a valid integer"),
    (["--accel", "kvn"], 2, "no accelerator 'kvn'; did you mean 'kvm'?"),
    (["--accel", ","], 2, "no accelerator is named"),
    (["--accel", "mock"], 3, "mock: executes program, and this needs x86"),
    (["--accel", "hvf"], 3, "hvf: executes arm64, and this needs x86"),
    (["-o", "hold=unsafe"], 2, "must be ACCELERATOR.OPTION=VALUE, such as kvm.hold=unsafe"),
    (["-o", "kvm.hold"], 2, "must be ACCELERATOR.OPTION=VALUE"),
    (["-o", "kvm.hodl=unsafe"], 2, "accelerator.kvm.hodl = 'unsafe': no such option; did you mean 'hold'?"),
    (["-o", "kvm.hold=safe"], 2, "accelerator.kvm.hold = 'safe': must be one of inhibit, unsafe, kick-all"),
    (["--accel", "kvm", "-o", "mock.hold=unsafe"], 2, "-o mock.hold: the accelerators asked for are kvm"),
    (["-o", "vkm.hold=unsafe"], 2, "no accelerator 'vkm'; did you mean 'kvm'?"),
    (["--entry", "start"], 2, "'start' is no address; write it like 0x100000"),
    (["--load-address", "-1"], 2, "'-1' is no address"),
    (["--mode", "real61"], 2, "'real61' is not one of"),
    (["--timeout", "0"], 2, "no number of seconds above zero"),
    (["--timeout", "nan"], 2, "no number of seconds above zero"),
    (["--input", "nothere"], 2, "input nothere: cannot be opened: No such file or directory"),
    (["--firmware", "nothere"], 2, "nothere: no such file"),
    (["--save", "hello.bin"], 2, "a workload file's name ends in .toml"),
    (["--save", "/nowhere/w.toml"], 2, "is not in this folder"),
    (["--save", "w.toml", "--input", "-"], 2, "--save cannot put standard input into a file"),
    (["--frob"], 2, "No such option '--frob'"),
    (["two", "images"], 2, "unexpected extra argument"),
]


@pytest.mark.kvm
@pytest.mark.parametrize(("flags", "code", "words"), FLAGS)
def test_run_bad_flag_is_refused(
    accelctl: Accelctl, guests: Path, tmp_path: Path, flags: list[str], code: int, words: str
) -> None:
    (tmp_path / "hello.bin").write_bytes((guests / "hello.bin").read_bytes())
    check(accelctl("run", "hello.bin", *flags), code, words)
    assert (tmp_path / "hello.bin").read_bytes() == (guests / "hello.bin").read_bytes()


@pytest.mark.kvm
def test_run_more_vcpus_than_kvm_has_is_refused(accelctl: Accelctl, guests: Path) -> None:
    check(accelctl("run", guests / "hello.bin", "--cpus", "1000000"), 2, "1000000 vCPUs: kvm offers up to")


def test_run_nothing_is_refused(accelctl: Accelctl) -> None:
    check(accelctl("run"), 2, "nothing to run: name an image or a workload file, or --firmware FILE")


@pytest.mark.parametrize("arguments", [["frob"], ["list", "frob"], ["list", "devices", "serail"]])
def test_unknown_word_is_refused(accelctl: Accelctl, arguments: list[str]) -> None:
    check(accelctl(*arguments), 2)


# workload files

FILES: dict[str, tuple[bytes, str]] = {
    "missing format": (b"[machine]\n", "w.toml: format: is missing; put format = 1 at the top"),
    "no TOML": (b"format = = 1", "w.toml: is no TOML: Invalid value (at line 1, column 10)"),
    "not UTF-8": (b"format = 1 # \xff", "w.toml: is not UTF-8, at byte 0xd"),
    "unknown key": (b"format = 1\n[machine]\ncpu = 1", "w.toml: machine.cpu: no such field; did you mean 'cpus'?"),
    "wrong type": (b"format = 1\n[machine]\ncpus = '1'", "w.toml: machine.cpus = '1': must be a whole number"),
    "unknown device": (
        b"format = 1\nimage.path = 'x'\n[[device]]\ntype = 'seiral'",
        "w.toml: device[0].type = 'seiral': no such device; did you mean 'serial'?",
    ),
    "unknown accelerator": (
        b"format = 1\nimage.path = 'x'\nmachine.accelerators = ['mokc']",
        "w.toml: machine.accelerators = 'mokc': no accelerator 'mokc'; did you mean 'mock'?",
    ),
    "path out": (b"format = 1\nimage.path = '../x'", "w.toml: image.path = '../x': leads out of the workload's folder"),
    "escape in a key": (b'format = 1\n"\\u001b[2J" = 1', r"w.toml: \x1b[2J: no such table"),
    "deep": (b"x = " + b"[" * 5000, "w.toml: is nested too deeply"),
}


@pytest.mark.parametrize("name", FILES)
def test_run_bad_workload_names_file_and_field(accelctl: Accelctl, tmp_path: Path, name: str) -> None:
    data, words = FILES[name]
    (tmp_path / "w.toml").write_bytes(data)
    check(accelctl("run", "w.toml"), 2, words)


def test_run_missing_workload_is_refused(accelctl: Accelctl) -> None:
    check(accelctl("run", "nothere.toml"), 2, "accelctl: nothere.toml: no such file")


def test_run_change_that_fails_while_it_runs_is_told(accelctl: Accelctl, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(
        MOCK
        + "image = {program = [{op = 'loop', body = []}]}\nregion = [{name = 'r', size = '1M', at = 0x1000_0000}]\n"
        "change = [{region = 'r', do = 'move', at = 0xffff_ffff_ffff_f000, after = '1ms'}]\n"
    )
    check(accelctl("run", "w.toml", "--timeout", "60"), 2, "accelctl: memory region 'r'", "does not end by 2^64")


def test_run_bad_input_with_json_is_a_document_too(accelctl: Accelctl) -> None:
    done = accelctl("run", "nothere.bin", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"] == {
        "type": "ImageError",
        "message": "nothere.bin: no such file; check the path, or build the guest first",
        "exit_code": 2,
    }


# the host

ABSENT = "import accel_kvm.system; accel_kvm.system._DEVICE = '/nonexistent/kvm'"


def test_run_without_kvm_says_how_to_get_it(accelctl_after: Accelctl, guests: Path) -> None:
    done = accelctl_after(ABSENT, "run", guests / "hello.bin", "--accel", "kvm")
    check(
        done,
        3,
        "no accelerator can run this:",
        "kvm: open /nonexistent/kvm failed: ENOENT",
        "load the module kvm_intel",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not open a file")
def test_run_kvm_that_is_not_permitted_says_how_to_get_it(
    accelctl_after: Accelctl, guests: Path, tmp_path: Path
) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0)
    # Everything is imported, and the image opened, before the process becomes somebody else.
    code = (
        "import os, accel_kvm.system; accel_kvm.system._DEVICE = os.open({0!r}, os.O_RDONLY) and {0!r}\n"
        "from accel.cli import main\n"
        "main(['list', 'accelerators', '--json'])\n"
        "import accel.cli.runner, accel.loaders.load, accel.cli.flags\n"
        "read = accel.loaders.load.read_image({1!r})\n"
        "accel.loaders.load.read_image = lambda path: read\n"
        "sys.stdout.flush(); os.close(1); os.open(os.devnull, os.O_WRONLY)\n"
        "os.setgid(65534); os.setuid(65534)"
    ).format(str(device), str(guests / "hello.bin"))
    done = accelctl_after(code, "run", guests / "hello.bin", "--accel", "kvm")
    assert done.returncode == 3, done.stderr
    assert "EACCES" in done.stderr.decode()
    assert "add your user to the group that owns /dev/kvm" in done.stderr.decode()


def test_run_never_falls_back_to_what_was_not_asked_for(accelctl_after: Accelctl, guests: Path) -> None:
    done = accelctl_after(ABSENT, "run", guests / "hello.bin", "--accel", "kvm,mock")
    check(done, 3, "kvm: open /nonexistent/kvm failed", "mock: executes program, and this needs x86")


PLUGIN = """
from types import SimpleNamespace
from accel.devices import Device, DeviceType
from accel.hookspecs import hookimpl
from accel.memory.region import MemoryRegion
from accel.plugins import plugin_manager

class Broken(Device):
    def io_regions(self):
        def write(offset, value, size):
            raise ValueError("no such thing")
        return [(0x500, MemoryRegion.mmio("broken", 1, write=write))]

@hookimpl
def accel_register_devices(register):
    register(DeviceType("broken", "raises", (), lambda options: Broken()))

plugin_manager().register(SimpleNamespace(accel_register_devices=accel_register_devices), "third-party")
"""


def test_run_device_handler_that_raises_is_named(accelctl_after: Accelctl, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(
        MOCK + "image = {program = [{op = 'out', port = 0x500, value = 1}]}\ndevice = [{type = 'broken'}]\n"
    )
    done = accelctl_after(PLUGIN, "run", "w.toml")
    check(done, 5, "accelctl: device 'broken' raised ValueError at write to port 0x500 for vCPU 0: no such thing")


def test_run_debug_variable_shows_where_an_error_comes_from(accelctl: Accelctl) -> None:
    done = accelctl("run", "nothere.bin", env={"ACCEL_DEBUG": "1"})
    assert done.returncode == 2
    assert b"Traceback" in done.stderr
    assert b"accelctl: nothere.bin: no such file" in done.stderr
