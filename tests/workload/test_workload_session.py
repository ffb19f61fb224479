"""Workloads end to end: on the mock where that is enough, on real KVM where machine code runs."""

from __future__ import annotations

import io
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from attrs import evolve

from accel.devices import Device, DeviceType
from accel.errors import (
    AddressError,
    DeviceError,
    ImageError,
    NoAcceleratorError,
    OptionError,
    RegionError,
    UsageError,
)
from accel.hookspecs import hookimpl
from accel.memory.backing import Backing
from accel.memory.region import MemoryRegion
from accel.plugins import PluginManager
from accel.program import ERRORS, GuestProgram, In, Load, Loop, Out, Store, text
from accel.result import Outcome
from accel.workload import session as session_module
from accel.workload.changes import Changes
from accel.workload.schema import (
    Accelerators,
    Address,
    Byte,
    ChangeSpec,
    Count,
    DeviceSpec,
    Duration,
    ExpectSpec,
    FilePath,
    ImageSpec,
    MachineSpec,
    RegionSpec,
    RunSpec,
    Size,
    Texts,
    Workload,
)
from accel.workload.session import Session, run_workload

MOCK = MachineSpec(accelerators=Accelerators(("mock",)), memory=Size(1 << 20))
DEVICES = (DeviceSpec("serial"), DeviceSpec("debug-console"), DeviceSpec("debug-exit"))
HELLO = GuestProgram((*text(0xE9, b"hello\n"), Out(0xF4, 5)))
SPIN = GuestProgram((Loop(()),))
AT = Address(0x1000_0000)
EXTRA = RegionSpec("extra", at=AT, size=Size(1 << 20), max_size=Size(2 << 20))


def on_mock(program: GuestProgram, **rest: object) -> Workload:
    values: dict[str, object] = {"machine": MOCK, "devices": DEVICES, **rest}
    return Workload(image=ImageSpec(program=program), **values)  # type: ignore[arg-type]


def of_guest(path: Path, **rest: object) -> Workload:
    values: dict[str, object] = {"devices": DEVICES, **rest}
    return Workload(image=ImageSpec(path=FilePath(path)), **values)  # type: ignore[arg-type]


# on the mock


def test_run_workload_program_gives_console_status_and_accelerator() -> None:
    sink = io.BytesIO()
    report = run_workload(on_mock(HELLO), "greeting", console=sink)
    assert report.console == sink.getvalue() == b"hello\n"
    assert (report.name, report.result.outcome, report.result.exit_status) == ("greeting", Outcome.EXITED, 11)
    assert report.result.accelerator == "mock"
    assert report.passed


def test_run_workload_judges_what_is_expected() -> None:
    expect = ExpectSpec(exit_status=11, console_contains=Texts(("hell", "heaven")), accelerator="mock")
    report = run_workload(on_mock(HELLO, expect=expect))
    assert [str(one) for one in report.failures] == [
        "console_contains: expected 'heaven', found 'hello\\n'",
    ]
    assert not report.passed


def test_run_workload_json_form_holds_all() -> None:
    data = run_workload(on_mock(HELLO, expect=ExpectSpec(exit_status=11))).to_data()
    assert json.loads(json.dumps(data)) == data
    assert data["format"] == 1
    assert data["accelerator"] == "mock"
    assert data["console"] == "hello\n"
    assert data["expectations"] == [{"name": "exit_status", "passed": True, "expected": "11", "found": "11"}]
    assert "console_base64" not in data


def test_run_workload_json_form_keeps_bytes_that_are_no_text() -> None:
    data = run_workload(on_mock(GuestProgram((Out(0xE9, 0xFF),)))).to_data()
    assert data["console"] == "\ufffd"
    assert data["console_base64"] == "/w=="


def test_run_workload_report_says_what_ram_is_made_of() -> None:
    backing = Backing.memfd(prefault=True)
    regions = (
        EXTRA,
        RegionSpec("flash", kind="rom", size=Size(8192), fill=Byte(1)),
        RegionSpec("bank", kind="container", size=Size(8192)),
    )
    report = run_workload(on_mock(HELLO, machine=evolve(MOCK, backing=backing), regions=regions))
    assert report.to_data()["ram"] == [
        {"name": "ram", "size": 1 << 20, "backing": "memfd", "page_size": 4096, "resident_bytes": 1 << 20},
        {"name": "extra", "size": 1 << 20, "backing": "anonymous", "page_size": 4096, "resident_bytes": 0},
        {"name": "flash", "size": 8192, "backing": "anonymous", "page_size": 4096, "resident_bytes": 8192},
    ]


def test_run_workload_report_counts_what_the_guest_touched() -> None:
    program = GuestProgram((Store(AT, 7), Store(AT + 0x5000, 7)))
    report = run_workload(on_mock(program, regions=(EXTRA,)))
    assert [(one.name, one.resident) for one in report.ram][1:] == [("extra", 8192)]


def test_run_workload_backing_that_the_host_lacks_leaves_nothing_open() -> None:
    with pytest.raises(AddressError, match="RAM 'ram': this kernel knows huge pages of"):
        run_workload(on_mock(HELLO, machine=evolve(MOCK, backing=Backing.memfd(huge_pages="1T"))))


def test_run_workload_own_timeout_ends_it() -> None:
    report = run_workload(on_mock(SPIN, run=RunSpec(timeout=Duration(20_000))))
    assert report.result.outcome is Outcome.TIMED_OUT
    assert not report.passed


def test_run_workload_that_ends_as_expected_passes() -> None:
    spec = RunSpec(timeout=Duration(20_000))
    assert run_workload(on_mock(SPIN, run=spec, expect=ExpectSpec(outcome=Outcome.TIMED_OUT))).passed


def interrupting() -> Iterator[bytes]:
    """Interrupt the main thread, as Ctrl-C does, once the guest runs."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    yield b""


def test_session_interrupt_stops_it_and_still_reports() -> None:
    program = GuestProgram((*text(0xE9, b"on and on"), Loop(())))
    with Session(on_mock(program)) as session:
        report = session.run(chunks=interrupting())
    assert report.result.outcome is Outcome.STOPPED
    assert report.console in (b"on and on", b"")


def test_run_workload_changes_are_made_while_it_runs() -> None:
    changes = (ChangeSpec("extra", "resize", every=Duration(200), size=Size(2 << 20)),)
    workload = on_mock(
        GuestProgram((Store(AT, 7), Loop((Load(AT, expect=7),)))),
        regions=(EXTRA,),
        changes=changes,
        expect=ExpectSpec(outcome=Outcome.STOPPED, spurious_faults=0, min_changes=3),
        accelerator_options={"mock": {"plan": "replace"}},
    )
    with Session(workload) as session:

        def stopping() -> Iterator[bytes]:
            # Each change holds the vCPUs once, and the last may not be done when this ends the run.
            patience = time.monotonic() + 60
            while session.machine.vm.blocker.stats.inhibits < 4 and time.monotonic() < patience:
                time.sleep(0.001)
            session.machine.stop()
            yield b""

        report = session.run(chunks=stopping())
    assert report.passed, report.failures
    assert report.result.memory["inhibits"] >= 4
    # Not what the result has: until the thread that makes changes is told that the run has ended, there may be more.
    assert session.machine.vm.blocker.stats.inhibits >= report.changes


def test_run_workload_change_that_fails_ends_the_run_and_is_raised() -> None:
    changes = (ChangeSpec("extra", "move", after=Duration(1), at=Address((1 << 64) - 4096)),)
    with pytest.raises(RegionError, match=r"does not end by 2\^64"):
        run_workload(on_mock(SPIN, regions=(EXTRA,), changes=changes))


def test_session_line_feeds_the_guest() -> None:
    program = GuestProgram((In(0x3FD, expect=0x61), In(0x3F8, expect=ord("x")), Out(0xF4, ERRORS)))
    with Session(on_mock(program)) as session:
        assert session.line is not None
        session.line.feed(b"x")
        assert session.run().result.exit_status == 1


def test_run_workload_input_without_a_device_for_it_is_refused() -> None:
    with pytest.raises(UsageError, match="no device that takes it; add a serial device"):
        run_workload(on_mock(HELLO, devices=(), run=RunSpec(input="x")))


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_run_workload_input_file_that_cannot_be_read_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "nothere" if kind == "missing" else tmp_path
    with pytest.raises(UsageError, match="cannot be opened: No such file" if kind == "missing" else "no regular file"):
        run_workload(on_mock(HELLO, run=RunSpec(input_file=FilePath(path))))


def test_run_workload_code_on_an_accelerator_for_programs_says_why_not(guests: Path) -> None:
    with pytest.raises(NoAcceleratorError, match="mock: executes program, and this needs x86"):
        run_workload(of_guest(guests / "hello.bin", machine=MOCK))


def test_run_workload_option_of_an_accelerator_is_checked() -> None:
    with pytest.raises(OptionError, match="did you mean 'hold'"):
        run_workload(on_mock(HELLO, accelerator_options={"mock": {"hodl": "unsafe"}}))


def test_run_workload_without_image_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to run"):
        run_workload(Workload(machine=MOCK))


def test_run_workload_region_that_cannot_be_is_refused() -> None:
    regions = (EXTRA, RegionSpec("bad", kind="alias", target="extra", offset=Address(2 << 20), at=AT))
    with pytest.raises(RegionError, match="offset 0x200000 is beyond 'extra' of size 0x100000"):
        run_workload(on_mock(HELLO, regions=regions))


@hookimpl
def accel_register_devices(register: Callable[[DeviceType], None]) -> None:
    class Broken(Device):
        name = "broken"

        def io_regions(self) -> list[tuple[int, MemoryRegion]]:
            def write(offset: int, value: int, size: int) -> None:
                raise ValueError("no such thing")

            return [(0x500, MemoryRegion.mmio("broken", 1, write=write))]

    register(DeviceType("broken", "raises", (), lambda options: Broken()))


def test_run_workload_device_of_a_plugin_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = PluginManager()
    manager.load_entry_points()
    manager.register(SimpleNamespace(accel_register_devices=accel_register_devices), "third-party")
    monkeypatch.setattr(session_module, "plugin_manager", lambda: manager)
    program = GuestProgram((Out(0x500, 1), Loop(())))
    with pytest.raises(DeviceError, match="device 'broken' raised ValueError at write to port 0x500 for vCPU 0"):
        run_workload(on_mock(program, devices=(DeviceSpec("broken"),)))


def test_session_close_twice_is_fine() -> None:
    session = Session(on_mock(HELLO))
    session.close()
    session.close()
    assert session.machine.vm.closed


# on KVM


@pytest.mark.kvm
def test_run_workload_hello_on_kvm(guests: Path) -> None:
    report = run_workload(of_guest(guests / "hello.bin"))
    assert report.result.accelerator == "kvm"
    assert report.console == b"Hello, accel!\n"
    assert report.result.exit_status == 1


@pytest.mark.kvm
def test_run_workload_input_text_is_echoed(guests: Path) -> None:
    report = run_workload(
        of_guest(guests / "echo.elf", run=RunSpec(input="round\ntrip\x04", timeout=Duration(100_000_000)))
    )
    assert report.console == b"round\ntrip"
    assert report.result.exit_status == 1


@pytest.mark.kvm
def test_run_workload_input_file_longer_than_a_chunk_is_echoed(guests: Path, tmp_path: Path) -> None:
    data = bytes(range(5, 256)) * 20
    (tmp_path / "keys").write_bytes(data + b"\x04")
    spec = RunSpec(input_file=FilePath(tmp_path / "keys"), timeout=Duration(100_000_000))
    report = run_workload(of_guest(guests / "echo.elf", run=spec))
    assert report.console == data


@pytest.mark.kvm
@pytest.mark.parametrize("do", ["resize", "split", "replace"])
def test_run_workload_memory_changed_under_two_vcpus_is_never_missed(guests: Path, do: str) -> None:
    size = Size(2 << 20) if do == "resize" else None
    report = run_workload(
        of_guest(
            guests / "touch.elf",
            machine=MachineSpec(cpus=Count(2)),
            accelerator_options={"kvm": {"plan": "replace", "hold": "inhibit"}},
            regions=(EXTRA,),
            changes=(ChangeSpec("extra", do, every=Duration(500), size=size),),  # type: ignore[arg-type]
            run=RunSpec(timeout=Duration(60_000_000)),
            expect=ExpectSpec(
                exit_status=1, console_contains=Texts(("errors=0",)), spurious_faults=0, accelerator="kvm"
            ),
        )
    )
    assert report.passed, report.failures


@pytest.mark.kvm
def test_run_workload_crash_is_the_outcome(guests: Path) -> None:
    report = run_workload(of_guest(guests / "triple-fault.elf"))
    assert report.result.outcome is Outcome.CRASHED
    assert not report.passed


# A sector of firmware that reads a byte of the image behind it, and ends the run with it.
_READ_PAYLOAD = bytes.fromhex("31c0 8ed8 a0007c e6f4 f4")


def _firmware(tmp_path: Path) -> FilePath:
    image = bytearray(4096)
    image[-16 : -16 + len(_READ_PAYLOAD)] = _READ_PAYLOAD
    path = tmp_path / "firmware.bin"
    path.write_bytes(image)
    return FilePath(path)


@pytest.mark.kvm
def test_run_workload_firmware_finds_the_image_in_ram(tmp_path: Path) -> None:
    (tmp_path / "payload.bin").write_bytes(b"\x21")
    image = ImageSpec(path=FilePath(tmp_path / "payload.bin"), firmware=_firmware(tmp_path))
    report = run_workload(Workload(image=image, devices=DEVICES, run=RunSpec(timeout=Duration(100_000_000))))
    assert report.result.exit_status == 0x21 << 1 | 1


def test_run_workload_image_where_the_firmware_lies_is_refused(tmp_path: Path) -> None:
    (tmp_path / "payload.bin").write_bytes(bytes(16))
    image = ImageSpec(
        path=FilePath(tmp_path / "payload.bin"), load_address=Address(0xF_FFF8), firmware=_firmware(tmp_path)
    )
    with pytest.raises(ImageError, match="are where the firmware lies; load it elsewhere"):
        run_workload(Workload(image=image))


def test_session_interrupted_while_one_worker_ends_stops_the_others_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, threads = Changes.stop, set(threading.enumerate())

    def interrupted(self: Changes) -> None:
        stop(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Changes, "stop", interrupted)
    ended = threading.Event()

    def chunks() -> Iterator[bytes]:
        ended.wait(60)
        yield b""

    with Session(on_mock(GuestProgram(()))) as session, pytest.raises(KeyboardInterrupt):
        session.run(chunks=chunks(), wake=ended.set)
    assert ended.is_set()
    assert set(threading.enumerate()) <= threads
