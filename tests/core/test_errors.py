"""Errors: the hierarchy in the module's text is the code's, data is in attributes, addresses are in hex."""

import errno
import inspect
import re

import pytest

from accel import errors
from accel.errors import (
    AccelError,
    BackendError,
    DeviceError,
    GuestCrashError,
    ImageError,
    InhibitTimeoutError,
    MapLostError,
    MemorySlotError,
    NoAcceleratorError,
    OptionError,
    PluginError,
    ProgramError,
    RegionError,
    WorkloadError,
)

CLASSES = {name: one for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, AccelError)}

_LINE = re.compile(r"(?P<indent>[ │├└─]*)(?P<name>\w+Error)(?: \((?P<builtin>\w+)\))?(?P<meaning>.*)")


def _drawn() -> dict[str, tuple[str, str | None]]:
    """Return name → (parent, builtin) of the tree in the module's docstring."""
    found: dict[str, tuple[str, str | None]] = {}
    path: list[str] = []
    drawing = errors.__doc__.split("::")[1]
    for line in drawing.splitlines():
        match = _LINE.fullmatch(line[4:]) if line.strip() else None
        if match is None:
            continue
        depth = len(match["indent"]) // 4
        assert depth == 0 or match["meaning"].strip(), f"{match['name']} is drawn without its meaning"
        del path[depth:]
        found[match["name"]] = (path[-1] if path else "", match["builtin"])
        path.append(match["name"])
    return found


def test_errors_hierarchy_in_the_docstring_is_the_code() -> None:
    drawn = _drawn()
    assert set(drawn) == set(CLASSES)
    for name, (parent, builtin) in drawn.items():
        bases = [base.__name__ for base in CLASSES[name].__bases__]
        expected = [one for one in (parent or "Exception", builtin) if one]
        assert bases == expected, f"{name} is drawn under {expected} and derives from {bases}"


def test_errors_each_have_a_docstring_that_lists_their_own_attributes() -> None:
    for name, one in CLASSES.items():
        assert one.__doc__, name
        if "__init__" in vars(one):
            source = inspect.getsource(one.__init__)
            stored = set(re.findall(r"self\.([a-z]\w*) =", source))
            missing = {attribute for attribute in stored if f"        {attribute}: " not in one.__doc__}
            assert not missing - {"timeout"}, f"{name} does not say what {missing} are"


@pytest.mark.parametrize(
    ("error", "attributes", "message"),
    [
        (
            OptionError("accelerator.kvm", "plan", "x", "must be y"),
            {"where": "accelerator.kvm", "option": "plan", "value": "x", "problem": "must be y"},
            "accelerator.kvm.plan = 'x': must be y",
        ),
        (
            WorkloadError("w.toml", "machine.cpus", 0, "too few"),
            {"path": "w.toml", "field": "machine.cpus", "value": 0, "problem": "too few"},
            "w.toml: machine.cpus = 0: too few",
        ),
        (WorkloadError("w.toml", "", None, "is empty"), {"field": "", "value": None}, "w.toml: is empty"),
        (
            ProgramError("program[3]", "address", 0x1234, "odd"),
            {"where": "program[3]", "field": "address", "value": 0x1234},
            "program[3].address = 0x1234: odd",
        ),
        (ImageError("a.bin", "is empty"), {"path": "a.bin"}, "a.bin: is empty"),
        (RegionError("ram", "is full"), {"region": "ram"}, "memory region 'ram': is full"),
        (
            NoAcceleratorError({"kvm": "no /dev/kvm", "mock": "no x86"}, "ask for help"),
            {"reasons": {"kvm": "no /dev/kvm", "mock": "no x86"}},
            "no accelerator can run this:\n  kvm: no /dev/kvm\n  mock: no x86\nask for help",
        ),
        (
            PluginError("p", "dist 1.0", "broken"),
            {"plugin": "p", "distribution": "dist 1.0"},
            "plugin 'p' (from dist 1.0): broken",
        ),
        (
            BackendError("KVM_CREATE_VM", errno.EBUSY, "try again"),
            {"operation": "KVM_CREATE_VM", "errno": errno.EBUSY},
            "KVM_CREATE_VM failed: EBUSY (Device or resource busy); try again",
        ),
        (BackendError("CALL", 9999), {"errno": 9999}, "CALL failed: 9999 (Unknown error 9999)"),
        (
            MemorySlotError("SET", errno.EEXIST, slot=7, gpa=0x1000, hva=0x7F00, size=0x2000, flags=2),
            {"slot": 7, "gpa": 0x1000, "hva": 0x7F00, "size": 0x2000, "flags": 2, "errno": errno.EEXIST},
            "SET failed: EEXIST (File exists); slot 7, GPA 0x1000, HVA 0x7f00, size 0x2000, flags 0x2",
        ),
        (
            InhibitTimeoutError(0.5, [("vCPU 1", "run", 0.5004), ("the VM", "set_irq", 0.5)]),
            {"timeout": 0.5, "inside": (("vCPU 1", "run", 0.5004), ("the VM", "set_irq", 0.5))},
            "not quiet after 0.5 s: vCPU 1 in run for 0.500 s, the VM in set_irq for 0.500 s",
        ),
        (
            MapLostError("undo failed", ["GPA 0x0", "GPA 0x9000"]),
            {"problem": "undo failed", "slots": ("GPA 0x0", "GPA 0x9000")},
            "undo failed; slots present: GPA 0x0; GPA 0x9000",
        ),
        (
            DeviceError("serial0", "write to port", 0x3F8, 2, ValueError("no")),
            {"device": "serial0", "address": 0x3F8, "vcpu": 2},
            "device 'serial0' raised ValueError at write to port 0x3f8 for vCPU 2: no",
        ),
        (
            DeviceError("serial0", "handing on its output", None, None, OSError("gone")),
            {"address": None, "vcpu": None},
            "device 'serial0' raised OSError at handing on its output: gone",
        ),
        (
            GuestCrashError(0, "shutdown", "triple fault"),
            {"vcpu": 0, "reason": "shutdown"},
            "vCPU 0: shutdown: triple fault",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, AccelError) else "",
)
def test_errors_carry_their_data_and_print_it(error: AccelError, attributes: dict, message: str) -> None:
    assert str(error) == message
    assert {name: getattr(error, name) for name in attributes} == attributes


@pytest.mark.parametrize(
    "value",
    ["x" * 100_000, 1 << 100_000, list(range(10_000)), {"a": {"b": ["c" * 999] * 99}}],
    ids=["text", "number", "list", "nested"],
)
def test_errors_about_untrusted_values_stay_short(value: object) -> None:
    for error in (
        OptionError("device.d", "o", value, "wrong"),
        WorkloadError("w.toml", "f", value, "wrong"),
        ProgramError("program[0]", "f", value, "wrong"),
    ):
        assert len(str(error)) < 1500
        assert error.value is value


def test_backend_error_is_an_os_error_that_contextlib_and_errno_users_understand() -> None:
    error = BackendError("CALL", errno.ENOENT)
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOENT
