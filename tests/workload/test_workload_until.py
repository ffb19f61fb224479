"""A run that lasts until the guest has printed some text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.errors import UsageError, WorkloadError
from accel.program import ERRORS, GuestProgram, Loop, Out, text
from accel.result import Outcome
from accel.workload.console import Console
from accel.workload.dump import dump_workload
from accel.workload.parse import parse_file
from accel.workload.schema import (
    LONGEST_UNTIL,
    Accelerators,
    DeviceSpec,
    Duration,
    ExpectSpec,
    ImageSpec,
    MachineSpec,
    RunSpec,
    Size,
    Workload,
)
from accel.workload.session import run_workload

DEVICES = (DeviceSpec("debug-console"), DeviceSpec("debug-exit"))
MOCK = MachineSpec(accelerators=Accelerators(("mock",)), memory=Size(1 << 20))
GREETS_FOR_EVER = GuestProgram((*text(0xE9, b"hello\n"), Loop(())))
GREETS_AND_EXITS = GuestProgram((*text(0xE9, b"hello\n"), Out(0xF4, 5)))


def workload(program: GuestProgram, **run: object) -> Workload:
    return Workload(MOCK, ImageSpec(program=program), devices=DEVICES, run=RunSpec(**run))


# the console


@given(st.binary(max_size=40), st.binary(min_size=1, max_size=6), st.data())
def test_console_finds_a_text_once_however_it_is_cut(printed: bytes, until: bytes, data: st.DataObject) -> None:
    found: list[int] = []
    console = Console(until=until, on_found=lambda: found.append(written))
    written = 0
    while written < len(printed):
        step = data.draw(st.integers(1, len(printed) - written))
        written += step
        console.write(printed[written - step : written])
    assert console.found == (until in printed)
    if until in printed:
        [at] = found
        assert until in printed[:at]
    else:
        assert found == []


def test_console_looks_only_at_what_its_sink_took() -> None:
    class Half:
        def write(self, data: bytes) -> int:
            return len(data) // 2

        def flush(self) -> None:
            pass

    console = Console(Half(), until=b"cd")  # type: ignore[arg-type]
    assert console.write(b"abcd") == 2
    assert not console.found
    assert console.write(b"cdxx") == 2
    assert console.found


# runs


def test_run_until_ends_a_guest_that_would_not_as_success() -> None:
    report = run_workload(workload(GREETS_FOR_EVER, until="hello"))
    assert report.result.outcome is Outcome.PRINTED
    assert report.console.startswith(b"hello")
    assert report.passed
    assert [(one.name, one.passed, one.expected) for one in report.verdicts] == [("until", True, "'hello'")]


@pytest.mark.kvm
def test_run_until_on_kvm_ends_a_guest_whose_text_comes_without_exits() -> None:
    spec = workload(GREETS_FOR_EVER, until="hello\n")
    on_kvm = Workload(
        MachineSpec(accelerators=Accelerators(("kvm",)), memory=Size(4 << 20)),
        spec.image,
        devices=DEVICES,
        run=spec.run,
    )
    report = run_workload(on_kvm)
    assert (report.result.outcome, report.console, report.passed) == (Outcome.PRINTED, b"hello\n", True)


def test_run_until_of_a_guest_that_ends_without_the_text_has_failed() -> None:
    report = run_workload(workload(GREETS_AND_EXITS, until="goodbye"))
    assert report.result.outcome is Outcome.EXITED
    assert not report.passed
    assert [str(one) for one in report.failures] == [r"until: expected 'goodbye', found 'hello\n'"]


def test_run_until_of_a_guest_that_prints_the_text_and_ends_is_well() -> None:
    program = GuestProgram((*text(0xE9, b"hello\n"), Out(0xF4, ERRORS)))
    report = run_workload(workload(program, until="hello\n"))
    assert report.result.outcome in (Outcome.EXITED, Outcome.PRINTED)
    assert report.passed


def test_run_until_that_never_comes_times_out() -> None:
    report = run_workload(workload(GREETS_FOR_EVER, until="goodbye", timeout=Duration(1000)))
    assert report.result.outcome is Outcome.TIMED_OUT
    assert [one.name for one in report.failures] == ["until"]


def test_run_until_counts_what_comes_together_from_two_consoles() -> None:
    program = GuestProgram((*text(0xE9, b"hel"), *text(0x402, b"lo"), Loop(())))
    spec = workload(program, until="hello")
    both = Workload(
        MOCK,
        spec.image,
        devices=(DeviceSpec("debug-console"), DeviceSpec("debug-console", {"port": 0x402})),
        run=spec.run,
        expect=ExpectSpec(outcome=Outcome.PRINTED),
    )
    assert run_workload(both).passed


def test_run_until_without_a_device_that_prints_is_refused() -> None:
    spec = workload(GREETS_AND_EXITS, until="hello")
    with pytest.raises(UsageError, match=r"until 'hello' is printed, and no device prints; add a debug-console"):
        run_workload(Workload(MOCK, spec.image, devices=DEVICES[1:], run=spec.run))


# the file


def test_run_until_in_a_file_comes_back_as_it_was(tmp_path) -> None:
    spec = workload(GREETS_AND_EXITS, until='No "bootable"\n')
    file = tmp_path / "w.toml"
    file.write_text(dump_workload(spec, tmp_path))
    assert parse_file(file).run.until == 'No "bootable"\n'


@pytest.mark.parametrize(("until", "length"), [("", 0), ("ä" * 513, 1026)])
def test_run_until_of_no_or_too_much_text_is_refused(until: str, length: int) -> None:
    with pytest.raises(WorkloadError, match=rf"until = .*: has {length:,} bytes; it must have 1 to {LONGEST_UNTIL:,}"):
        RunSpec(until=until)
