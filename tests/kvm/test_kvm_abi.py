"""Every number and structure of the plugin against the kernel's headers, by a C program compiled here."""

from __future__ import annotations

import ctypes
import mmap
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from accel.errors import BackendError
from accel_kvm import abi, kick
from accel_kvm.ioctl import ioctl

PROBE = pytest.mark.needs("gcc", "/usr/include/linux/kvm.h")

#: What a header from before Linux 6.8 lacks, or from before 6.12. Any other name that the header lacks is a mistake.
RECENT = {
    "KVM_X86_QUIRK_SLOT_ZAP_ALL",
    "KVM_MEM_GUEST_MEMFD",
    "KVM_EXIT_MEMORY_FAULT",
    "KVM_CAP_USER_MEMORY2",
    "KVM_CAP_MEMORY_FAULT_INFO",
    "KVM_CAP_MEMORY_ATTRIBUTES",
    "KVM_CAP_GUEST_MEMFD",
    "KVM_SET_USER_MEMORY_REGION2",
}
#: A structure cannot be asked for with #ifdef; the request that came with it can.
GUARDS = {"kvm_userspace_memory_region2": "KVM_SET_USER_MEMORY_REGION2"}

CONSTANTS = {
    **{name: value for name, value in vars(abi).items() if name.startswith("KVM") and isinstance(value, int)},
    "SYS_tgkill": kick._SYS_TGKILL,
}


def c_name(name: str) -> str:
    """Return the header's name of a class.

    >>> c_name("KvmCpuidEntry2")
    'kvm_cpuid_entry2'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def public_structures() -> dict[str, type[ctypes.Structure]]:
    found = {
        c_name(name): kind
        for name, kind in vars(abi).items()
        if isinstance(kind, type) and issubclass(kind, ctypes.Structure) and name.startswith("Kvm")
    }
    return {**found, "sigaction": kick._Sigaction}


STRUCTURES = public_structures()


def walk(kind: type, path: str = "", base: int = 0) -> Iterator[tuple[str, int, int, type]]:
    """Yield path, offset, size and type of each field; classes without a name of their own are entered."""
    for name, field_type in kind._fields_:
        offset = base + getattr(kind, name).offset
        if name in getattr(kind, "_anonymous_", ()):
            yield from walk(field_type, path, offset)
            continue
        yield f"{path}{name}", offset, ctypes.sizeof(field_type), field_type
        if issubclass(field_type, (ctypes.Structure, ctypes.Union)) and field_type.__name__.startswith("_"):
            yield from walk(field_type, f"{path}{name}.", offset)


def expected() -> dict[str, int]:
    """Return what Python believes, by `value NAME`, `size STRUCT[.FIELD]` and `offset STRUCT.FIELD`."""
    facts = {f"value {name}": value for name, value in CONSTANTS.items()}
    for struct, kind in STRUCTURES.items():
        facts[f"size {struct}"] = ctypes.sizeof(kind)
        for path, offset, size, _ in walk(kind):
            facts[f"offset {struct}.{path}"] = offset
            if size:  # a flexible array has no size in C
                facts[f"size {struct}.{path}"] = size
    return facts


def probe_source() -> str:
    def ask(fact: str, expression: str, guard: str = "") -> str:
        line = f'printf("{fact}=%lld\\n", (long long)({expression}));'
        return f"#ifdef {guard}\n{line}\n#endif" if guard else line

    lines = [
        "#define _GNU_SOURCE",
        *(f"#include <{header}>" for header in ("stddef.h", "stdio.h", "signal.h", "unistd.h")),
        *(f"#include <{header}>" for header in ("sys/syscall.h", "linux/kvm.h")),
        "#define PAGE_SIZE sysconf(_SC_PAGESIZE)",
        "int main(void) {",
    ]
    for fact in expected():
        what, name = fact.split(" ")
        struct, _, path = name.partition(".")
        guard = GUARDS.get(struct, "")
        if what == "value":
            lines.append(ask(fact, name, guard=name))
        elif what == "offset":
            lines.append(ask(fact, f"offsetof(struct {struct}, {path})", guard))
        elif path:
            lines.append(ask(fact, f"sizeof(((struct {struct} *)0)->{path})", guard))
        else:
            lines.append(ask(fact, f"sizeof(struct {struct})", guard))
    return "\n".join([*lines, "return 0; }", ""])


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the installed headers say, by the names of `expected`."""
    folder: Path = tmp_path_factory.mktemp("probe")
    source, program = folder / "probe.c", folder / "probe"
    source.write_text(probe_source())
    command = ["gcc", "-o", program, source]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {fact: int(value) for fact, value in (line.split("=") for line in output.splitlines())}


@PROBE
def test_abi_every_number_and_layout_agrees_with_the_header(header: dict[str, int]) -> None:
    believed = expected()
    assert {fact: believed[fact] for fact in header} == header


@PROBE
def test_abi_names_the_header_lacks_are_only_newer_ones(
    header: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    # "value NAME" and "offset STRUCT.FIELD" become NAME and STRUCT.
    missing = {fact.split(" ")[1].partition(".")[0] for fact in expected().keys() - header.keys()}
    with capsys.disabled():
        skipped = ", ".join(sorted(missing)) or "nothing"
        print(f"\nlinux/kvm.h: {len(header)} facts compared; not in this header: {skipped}")
    assert missing <= RECENT | GUARDS.keys()


def test_abi_enumeration_reaches_constants_and_nested_fields() -> None:
    facts = expected().keys()
    assert {
        "value KVMIO",
        "value KVM_RUN",
        "value KVM_EXIT_IO_OUT",
        "size kvm_sregs",
        "offset kvm_run.immediate_exit",
        "offset kvm_run.io.data_offset",
        "size kvm_run.mmio.data",
        "offset kvm_run.internal.data",
        "offset kvm_cpuid2.entries",
    } <= facts


def test_abi_cpuid2_with_entries_holds_them_behind_the_head() -> None:
    cpuid = abi.cpuid2(3)
    assert cpuid.nent == 3
    assert ctypes.sizeof(cpuid) == ctypes.sizeof(abi.KvmCpuid2) + 3 * ctypes.sizeof(abi.KvmCpuidEntry2)
    assert type(cpuid).entries.offset == abi.KvmCpuid2.entries.offset


@pytest.mark.kvm
def test_abi_supported_cpuid_on_the_kernel_lists_leaf_zero() -> None:
    with open("/dev/kvm", "rb", buffering=0) as system:
        cpuid = abi.cpuid2(256)
        ioctl(system.fileno(), abi.KVM_GET_SUPPORTED_CPUID, cpuid, "KVM_GET_SUPPORTED_CPUID")
    assert 0 < cpuid.nent < 256
    assert 0 in {entry.function for entry in cpuid.entries[: cpuid.nent]}


@pytest.mark.kvm
def test_abi_memory_region2_on_the_kernel_maps_memory(raw_guest) -> None:
    """The installed header may be older than the request; the kernel itself then is the judge."""
    guest = raw_guest("halt")
    region = abi.KvmUserspaceMemoryRegion2(
        slot=1, flags=0, guest_phys_addr=0x10_0000, memory_size=mmap.PAGESIZE, userspace_addr=guest.hva
    )
    request, name = abi.KVM_SET_USER_MEMORY_REGION2, "KVM_SET_USER_MEMORY_REGION2"
    if not ioctl(guest.vm_fd, abi.KVM_CHECK_EXTENSION, abi.KVM_CAP_USER_MEMORY2, "KVM_CHECK_EXTENSION"):
        with pytest.raises(BackendError, match="ENOTTY"):
            ioctl(guest.vm_fd, request, region, name)
        return
    assert ioctl(guest.vm_fd, request, region, name) == 0
    region.slot = 2
    with pytest.raises(BackendError, match="EEXIST"):
        ioctl(guest.vm_fd, request, region, name)
