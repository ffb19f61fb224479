"""What an accelerator hands over is checked where it comes in, and its plugin is named."""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import pytest

import accel
from accel.backend_checks import ContractError, check_kind, check_report, check_vcpu, check_vm
from accel.errors import BackendError, DeviceError, InhibitTimeoutError, PluginError
from accel.exits import ExitKind, pack_io
from accel.hookspecs import hookimpl
from accel.plugins import plugin_manager, probe
from accel.program import GuestProgram, Loop, Out, Store
from accel_mock.plugin import MockAccelerator

Change = Callable[[Any], object]

WITHOUT = "; to do without it: accelctl -p no:bad, or ACCEL_BLOCK_PLUGINS=bad"


class Odd(MockAccelerator):
    """The mock, whose VMs and vCPUs a test changes."""

    name = "odd"

    def __init__(self) -> None:
        self.vm: Change = lambda vm: None
        self.vcpu: Change = lambda vcpu: None

    def create_vm(self, config: accel.VmConfig) -> Any:
        vm: Any = super().create_vm(config)
        create = vm.create_vcpu

        def create_vcpu(index: int) -> Any:
            vcpu = create(index)
            return self.vcpu(vcpu) or vcpu

        vm.create_vcpu = create_vcpu
        return self.vm(vm) or vm


@pytest.fixture
def odd() -> Iterator[Odd]:
    accelerator = Odd()

    class Plugin:
        @hookimpl
        def accel_register_accelerators(self, register: Callable[[object], None]) -> None:
            register(accelerator)

    # As if this module were the plugin's, so that what is raised in it is the plugin's fault.
    plugin = Plugin()
    plugin_manager().register(plugin, "bad", "dist-bad 1.2")
    plugin_manager().plugins["bad"].module = __name__
    yield accelerator
    plugin_manager().unregister(plugin)


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*arguments: object) -> Any:
        raise error

    return call


def setting(name: str, value: object) -> Change:
    return lambda one: setattr(one, name, value)


def run(*operations: Any) -> accel.RunResult:
    with accel.Machine.create("odd", memory="1M") as machine:
        machine.load(GuestProgram([*operations]))
        return machine.run(timeout=60)


def assert_named(error: PluginError, problem: str) -> None:
    text = str(error)
    assert text.startswith(f"plugin 'bad' (from dist-bad 1.2): accelerator 'odd' {problem}"), text
    assert text.endswith(WITHOUT), text
    assert text.count("dist-bad") == 1


# while a machine is made


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (type, "create_vm returned class MockVm; it must be a VmBackend"),
        (setting("memory_listener", lambda: None), "memory_listener returned NoneType; it must be a MemoryListener"),
        (setting("io_listener", lambda: 5), "io_listener returned int; it must be a MemoryListener"),
        (setting("capabilities", ["irqchip", 5]), "VmBackend.capabilities is ['irqchip', 5]; it must be a frozenset"),
        (setting("capabilities", frozenset({5})), "VmBackend.capabilities is frozenset({5}); it must be a frozenset"),
        (setting("max_vcpus", "two"), "VmBackend.max_vcpus is 'two'; it must be a number from 1 on"),
        (setting("max_vcpus", 0), "VmBackend.max_vcpus is 0; it must be a number from 1 on"),
        (setting("page_size", 6144), "VmBackend.page_size is 6144; it must be a power of two from 4096 on"),
        (setting("page_size", 2048), "VmBackend.page_size is 2048; it must be a power of two from 4096 on"),
        (setting("create_vcpu", lambda index: None), "create_vcpu returned NoneType; it must be a VcpuBackend"),
        (setting("create_vcpu", lambda index: Odd), "create_vcpu returned class Odd; it must be a VcpuBackend"),
    ],
)
def test_vm_that_is_not_as_it_must_be_is_refused_by_name(odd: Odd, change: Change, problem: str) -> None:
    odd.vm = change
    with pytest.raises(PluginError) as caught:
        run()
    assert_named(caught.value, f"breaks the contract: {problem}")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("record", None, "VcpuBackend.record is missing"),
        ("record", [0, 0, 0], "VcpuBackend.record is of class list"),
        ("record", memoryview(array("Q", (0, 0))), "VcpuBackend.record is a memoryview of 16 bytes in format 'Q'"),
        ("record", memoryview(array("I", (0,) * 6)), "VcpuBackend.record is a memoryview of 24 bytes in format 'I'"),
        ("record", memoryview(array("d", (0, 0, 0))), "VcpuBackend.record is a memoryview of 24 bytes in format 'd'"),
        (
            "record",
            memoryview(bytes(24)).cast("Q"),
            "VcpuBackend.record is a read-only memoryview of 24 bytes in format 'Q'",
        ),
        ("io_data", None, "VcpuBackend.io_data is missing"),
        ("io_data", memoryview(bytearray(3)), "VcpuBackend.io_data is a memoryview of 3 bytes in format 'B'"),
        ("io_data", memoryview(bytes(8)), "VcpuBackend.io_data is a read-only memoryview of 8 bytes in format 'B'"),
        ("io_data", bytearray(8), "VcpuBackend.io_data is of class bytearray"),
    ],
)
def test_vcpu_whose_views_are_not_as_they_must_be_is_refused_by_name(
    odd: Odd, name: str, value: object, problem: str
) -> None:
    odd.vcpu = setting(name, value)
    with pytest.raises(PluginError) as caught:
        run()
    assert_named(caught.value, f"breaks the contract: {problem}; it must be a writable memoryview of at least")


def test_accelerators_of_this_project_pass_the_checks() -> None:
    config = accel.VmConfig({"plan": "least", "hold": "inhibit", "inhibit_timeout_ms": 1, "dirty_ring_size": 0})
    vm = MockAccelerator().create_vm(config)
    check_vm(vm)
    check_vcpu(vm.create_vcpu(0))
    check_report(vm.host(), vm.memory_figures())
    check_report("", MappingProxyType({"slots": 3, "seconds": 0.5}))
    for kind in ExitKind:
        check_kind(int(kind))


@pytest.mark.parametrize("details", [{1: "a"}, {"a": None}, [("a", "b")]])
def test_probe_whose_details_are_no_texts_is_an_answer_that_names_the_plugin(odd: Odd, details: Any) -> None:
    odd.probe = lambda: accel.Availability(True, details=details)  # type: ignore[method-assign]
    found = probe(plugin_manager().accelerators()["odd"])
    assert not found.ok
    assert (
        found.reason
        == f"plugin 'bad' (from dist-bad 1.2): its probe returned details={details}; they are a dict of texts"
    )


def test_probe_whose_reason_goes_on_and_on_is_one_line(odd: Odd) -> None:
    odd.probe = lambda: accel.Availability(False, "not\nhere " * 1000)  # type: ignore[method-assign]
    reason = probe(odd).reason
    assert reason.startswith("not here not here ")
    assert (len(reason), reason[-1]) == (1000, "…")


# while it runs


@pytest.mark.parametrize("kind", [-1, len(ExitKind), 99, None, "io", 1.5, ()])
def test_run_that_returns_no_exit_kind_is_named(odd: Odd, kind: object) -> None:
    odd.vcpu = setting("run", lambda: kind)
    with pytest.raises(PluginError) as caught:
        run()
    assert_named(
        caught.value, f"breaks the contract: VcpuBackend.run returned {kind!r}, which is no accel.exits.ExitKind"
    )


def test_run_that_returns_no_exit_kind_is_told_in_an_own_loop(odd: Odd) -> None:
    odd.vcpu = setting("run", lambda: 99)
    with accel.open_accelerator("odd") as opened, opened.create_vm() as vm:
        vcpu = vm.create_vcpu(0)
        with pytest.raises(ContractError, match=r"VcpuBackend\.run returned 99, which is no accel\.exits\.ExitKind"):
            vcpu.run()


@pytest.mark.parametrize(
    ("kind", "words", "problem"),
    [
        (ExitKind.IO, (2**64 - 1, 0, 0), "the exit record has 4294967295 items of 255 bytes for port 0xffff"),
        (
            ExitKind.IO,
            (pack_io(is_out=True, size=3, port=9), 0, 0),
            "the exit record has 1 items of 3 bytes for port 0x9",
        ),
        (ExitKind.IO, (pack_io(is_out=False, size=4, port=9, count=3), 0, 0), "the exit record has 3 items of 4 bytes"),
        (ExitKind.MMIO, (0xF000_0000, 0, 2**32 - 1), "the exit record has an access of 4294967295 bytes at 0xf0000000"),
        (ExitKind.MMIO, (0xF000_0000, 0, 0), "the exit record has an access of 0 bytes at 0xf0000000; 1 to 8 can be"),
        (ExitKind.MMIO, (0xF000_0000, 0, 1 << 32 | 9), "the exit record has an access of 9 bytes at 0xf0000000"),
    ],
)
def test_exit_record_that_no_guest_can_cause_is_named_at_once(
    odd: Odd, kind: ExitKind, words: tuple[int, ...], problem: str
) -> None:
    def change(vcpu: Any) -> None:
        def come_out() -> int:
            for index, word in enumerate(words):
                vcpu.record[index] = word
            return kind

        vcpu.run = come_out

    odd.vcpu = change
    with pytest.raises(PluginError) as caught:
        run()
    assert_named(caught.value, f"breaks the contract: {problem}")


@pytest.mark.parametrize("call", ["run", "prepare_thread", "load_program", "close"])
@pytest.mark.parametrize(
    "error",
    [ValueError("odd"), SystemExit(0), GeneratorExit("odd"), BaseException("odd")],
    ids=lambda one: type(one).__name__,
)
def test_vcpu_that_raises_is_named_whatever_it_raises(odd: Odd, call: str, error: BaseException) -> None:
    odd.vcpu = setting(call, raising(error))
    with pytest.raises(PluginError) as caught:
        run()
    assert_named(caught.value, f"failed: {type(error).__name__}: ")
    assert caught.value.__cause__ is error


def test_vcpu_that_raises_an_interrupt_on_its_own_thread_is_named(odd: Odd) -> None:
    odd.vcpu = setting("run", raising(KeyboardInterrupt()))
    with pytest.raises(PluginError) as caught:
        run()
    assert_named(caught.value, "failed: KeyboardInterrupt (")


def test_vcpu_that_fails_in_words_of_ours_speaks_for_itself(odd: Odd) -> None:
    odd.vcpu = setting("run", raising(BackendError("the call", 5)))
    with pytest.raises(BackendError, match="the call failed: EIO"):
        run()


def test_device_that_raises_on_the_vcpu_s_thread_is_not_the_accelerator_s_fault(odd: Odd) -> None:
    plugin_manager().plugins["bad"].module = "elsewhere"
    with accel.Machine.create("odd", memory="1M") as machine:
        machine.port(0x80)(raising(ValueError("its own")))
        machine.load(GuestProgram([Out(0x80, 1)]))
        with pytest.raises(DeviceError, match="its own"):
            machine.run(timeout=60)
    with accel.Machine.create("odd", memory="1M") as machine:
        machine.port(0x80)(sys.exit)
        machine.load(GuestProgram([Out(0x80, 1)]))
        with pytest.raises(SystemExit):
            machine.run(timeout=60)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("host", lambda: None, "VmBackend.host returned None; it must be a line of text"),
        ("host", lambda: "a\nb", "VmBackend.host returned 'a\\nb'; it must be a line of text"),
        ("memory_figures", lambda: 5, "VmBackend.memory_figures returned 5; it must be a dict of numbers by name"),
        ("memory_figures", lambda: {"a": "b"}, "VmBackend.memory_figures returned {'a': 'b'}; it must be a dict"),
        ("memory_figures", lambda: {1: 2}, "VmBackend.memory_figures returned {1: 2}; it must be a dict"),
    ],
)
def test_report_that_is_not_as_it_must_be_is_named(odd: Odd, name: str, value: object, problem: str) -> None:
    odd.vm = setting(name, value)
    with pytest.raises(PluginError) as caught:
        run(Store(0, 1))
    assert_named(caught.value, f"breaks the contract: {problem}")


def test_vm_whose_close_raises_is_named_and_everything_else_is_closed(odd: Odd) -> None:
    odd.vm = setting("close", raising(BaseException("odd")))
    machine = accel.Machine.create("odd", memory="1M")
    with pytest.raises(PluginError) as caught:
        machine.close()
    assert_named(caught.value, "failed: BaseException: odd (")
    assert machine.vm.closed
    machine.close()


def test_wait_for_a_run_that_was_told_to_end_gives_up_on_a_vcpu_that_no_kick_brings_out(
    odd: Odd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accel.run.STOP_TIMEOUT", 0.2)
    odd.vcpu = lambda vcpu: (setting("right_kick", vcpu.kick)(vcpu), setting("kick", lambda thread_id: None)(vcpu))[0]
    with accel.Machine.create("odd", memory="1M") as machine:
        backend: Any = machine.vm.vcpus[0].backend
        machine.load(GuestProgram([Loop([Store(0, 1)])]))
        run = machine.start()
        # A vCPU that is told to end before it has begun needs no kick.
        deadline = time.monotonic() + 60
        while machine.memory.read(0, 1) != b"\1":
            assert time.monotonic() < deadline, "the guest does not begin"
            time.sleep(0.001)
        with pytest.raises(InhibitTimeoutError):
            machine.stop()
        with pytest.raises(InhibitTimeoutError, match=r"vCPU 0 in run"):
            run.wait()
        monkeypatch.setattr("accel.run.STOP_TIMEOUT", 60)
        backend.right_kick(0)
        assert run.wait(timeout=60).outcome is accel.Outcome.STOPPED


def test_kick_that_raises_is_told_without_a_wait(odd: Odd) -> None:
    odd.vcpu = setting("kick", raising(ValueError("cannot kick")))
    machine = accel.Machine.create("odd", memory="1M")
    with pytest.raises(ValueError, match="cannot kick"):
        machine.vm.vcpus[0].kick()
    machine.close()
