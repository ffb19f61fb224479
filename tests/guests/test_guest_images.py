"""The example guests: the images that are checked in are what their sources and documents say."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import Segment

from accel.arch import x86_boot

GUESTS = Path(__file__).parents[2] / "examples" / "guests"
IMAGES = sorted(path.name for path in (*GUESTS.glob("*.bin"), *GUESTS.glob("*.elf")))
BUILDING = pytest.mark.needs("make", "gcc", "as", "ld", "objcopy")
CONTROL_BLOCK = 0x8000


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two builds of all images, in directories whose names differ in length."""
    first, second = tmp_path_factory.mktemp("guests"), tmp_path_factory.mktemp("guests-again")
    # Under `make test` this is a make of its own, not a part of that one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    for directory in (first, second):
        command = ["make", "-C", str(GUESTS), f"OUT={directory}", f"BUILD={directory / 'build'}"]
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100, env=environment)
        assert result.returncode == 0, result.stderr
        assert "warning" not in result.stderr
    return first, second


def images_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix in (".bin", ".elf")}


@BUILDING
def test_guest_images_built_twice_are_identical(builds: tuple[Path, Path]) -> None:
    first, second = builds
    assert images_in(first) == images_in(second)


@BUILDING
def test_guest_images_built_here_are_those_checked_in(builds: tuple[Path, Path]) -> None:
    built = images_in(builds[0])
    assert sorted(built) == IMAGES
    same_tools = (builds[0] / "toolchain.txt").read_text() == (GUESTS / "toolchain.txt").read_text()
    changed = [name for name in IMAGES if built[name] != (GUESTS / name).read_bytes()]
    assert not (same_tools and changed), "run make in examples/guests and check the images in"


@pytest.mark.parametrize("name", IMAGES)
def test_guest_image_is_listed_in_the_readme(name: str) -> None:
    assert f"| `{name}` |" in (GUESTS / "README.md").read_text()


def test_guest_readme_lists_no_image_that_is_absent() -> None:
    listed = re.findall(r"^\| `(\S+\.(?:bin|elf))` \|", (GUESTS / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == IMAGES


@pytest.mark.parametrize("name", IMAGES)
def test_guest_image_is_small_and_keeps_code_and_data_apart(name: str) -> None:
    data = (GUESTS / name).read_bytes()
    assert 0 < len(data) <= 4096
    if name.endswith(".elf"):
        flags = [segment["p_flags"] for segment in segments_of(data)]
        assert flags
        assert all(flag & 3 != 3 for flag in flags), "a segment is both written and executed"


def segments_of(data: bytes) -> list[Segment]:
    return [segment for segment in ELFFile(io.BytesIO(data)).iter_segments() if segment["p_type"] == "PT_LOAD"]


def test_boot_info_header_is_what_the_host_writes() -> None:
    header = (GUESTS / "include" / "boot_info.h").read_text()
    body = re.search(r"struct boot_info \{(.*?)\n\};", header, re.DOTALL)
    assert body is not None
    fields = re.findall(r"^    uint(32|64)_t (\w+);", body[1], re.MULTILINE)
    codes = "".join({"32": "I", "64": "Q"}[bits] for bits, _ in fields)
    declared = struct.Struct("<" + codes)
    assert declared.size == x86_boot.BOOT_INFO.size
    sample = bytes(range(1, declared.size + 1))
    assert declared.unpack(sample) == x86_boot.BOOT_INFO.unpack(sample)
    assert [name for _, name in fields] == [
        "magic",
        "version",
        "size",
        "mode_bits",
        "cpu_count",
        "stack_size",
        "ram_below_4g",
        "ram_above_4g",
        "entry",
    ]
    constants = dict(re.findall(r"^#define (BOOT_INFO_\w+) (\w+)", header, re.MULTILINE))
    assert int(constants["BOOT_INFO_MAGIC"], 0) == x86_boot.BOOT_INFO_MAGIC
    assert int(constants["BOOT_INFO_VERSION"], 0) == x86_boot.BOOT_INFO_VERSION


@pytest.mark.parametrize("name", ["exits.bin", "console-bench.bin"])
def test_measuring_guest_image_has_its_counters_where_documented(name: str) -> None:
    assert struct.unpack_from("<2I", (GUESTS / name).read_bytes(), 4) == (100_000, 0)


def test_touch_image_has_its_control_block_where_documented() -> None:
    segment = segments_of((GUESTS / "touch.elf").read_bytes())[0]
    assert segment["p_paddr"] == CONTROL_BLOCK
    assert struct.unpack_from("<8Q", segment.data()) == (0, 0, 0, 0x1000_0000, 1 << 20, 16 << 10, 50, 0)


def test_stress_image_has_its_control_block_where_documented() -> None:
    segment = segments_of((GUESTS / "stress.elf").read_bytes())[0]
    assert (segment["p_paddr"], segment["p_filesz"]) == (CONTROL_BLOCK, 0x88 + 16 * 0x40)
    assert not any(segment.data())


def test_compute_image_and_readme_know_the_digest() -> None:
    primes = [n for n in range(2, 2000) if all(n % d for d in range(2, int(n**0.5) + 1))][:256]
    digest = hashlib.sha256(b"".join(prime.to_bytes(2, "little") for prime in primes)).hexdigest()
    assert digest.encode() in (GUESTS / "compute.elf").read_bytes()
    assert digest in (GUESTS / "README.md").read_text()
