"""What plugins brought and what goes wrong in it: each message names plugin, distribution, hook, and how to do without.

Plugins are objects here, registered under a name and a distribution; the mock runs the machines.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator

import pytest
from attrs import frozen

import accel
from accel.devices.base import Device, DeviceType
from accel.errors import CapabilityError, ImageError, ListenerError, MapLostError, OptionError, PluginError
from accel.hookspecs import hookimpl
from accel.loaders.image import Loader
from accel.memory.flat_view import FlatView
from accel.memory.listener import MemoryListener, Update
from accel.plugin_calls import create_device, loaders
from accel.plugins import plugin_manager

WITHOUT = "to do without it: accelctl -p no:bad, or ACCEL_BLOCK_PLUGINS=bad"

Register = Callable[..., object]


@pytest.fixture
def register() -> Iterator[Register]:
    """Register plugins for the length of a test: `register(plugin, name)`, from a distribution ``dist-NAME 1.2``."""
    added = []

    def add(plugin: object, name: str = "bad") -> object:
        plugin_manager().register(plugin, name, f"dist-{name} 1.2")
        added.append(plugin)
        return plugin

    yield add
    for plugin in added:
        plugin_manager().unregister(plugin)


def create() -> accel.Machine:
    return accel.Machine.create("mock", memory="1M")


def assert_names_plugin(error: BaseException, *words: str) -> None:
    text = str(error)
    assert re.search(r"plugin 'bad' (from |\(from )dist-bad 1\.2", text), text
    assert WITHOUT in text
    assert text.count("dist-bad") == 1, "once is enough"
    for word in words:
        assert word in text, text


class Brings:
    """A plugin that brings listeners."""

    def __init__(self, *listeners: object) -> None:
        self.returns: object = list(listeners)
        self.closed = 0

    @hookimpl
    def accel_memory_listeners(self, machine):
        return self.returns

    @hookimpl
    def accel_machine_closed(self, machine):
        self.closed += 1


class Fails(MemoryListener):
    """Raises in one callback, once it is told to."""

    name = "fails"
    priority = 20

    def __init__(self, step: str, error: Exception) -> None:
        self.armed = False
        self._error = error

        def fail(*arguments: object) -> None:
            if self.armed:
                raise error

        if step in ("apply", "undo"):
            self.prepare = lambda: self  # type: ignore[method-assign]
        setattr(self, step, fail)

    needs_hold = needs_hold_unless_last = watches = False
    lock = None

    def apply(self) -> None:
        if self.armed:
            raise OSError("the step before")

    def undo(self) -> None:
        pass


Update.register(Fails)


# memory listeners


def edit(machine: accel.Machine, step: str) -> None:
    """Make a change, or something else, that calls the listeners with `step`."""
    region = accel.MemoryRegion.ram("extra", "64K") if "log" in step else accel.MemoryRegion.mmio("extra", "64K")
    with os.fdopen(os.eventfd(0), "rb", 0) as bell:
        _edit(machine, step, region, bell.fileno())


def _edit(machine: accel.Machine, step: str, region: accel.MemoryRegion, bell: int) -> None:
    if step.startswith("coalesced"):
        region.add_coalescing(0, 16)
    elif step.startswith("eventfd"):
        region.add_eventfd(0, bell)
    machine.memory.add(region, 1 << 20)
    if "log" in step:
        log = machine.vm.dirty_log
        if "global" in step:
            log.start_global()
            log.sync()
            log.stop_global()
        region.start_log(accel.DirtyClient.VGA)
        log.collect(region, accel.DirtyClient.VGA)
        region.stop_log(accel.DirtyClient.VGA)
    elif step.endswith("del"):
        machine.memory.remove(region)


#: What a listener hears and cannot keep from being.
NO_VETO = ("commit", "abort", "log_global_stop")
CALLBACKS = [name for name, one in vars(MemoryListener).items() if callable(one) and name not in NO_VETO]


@pytest.mark.parametrize("step", [*CALLBACKS, "apply"])
def test_listener_of_a_plugin_that_raises_is_named_with_its_plugin(register: Register, step: str) -> None:
    listener = Fails(step, KeyError("own"))
    register(Brings(listener))
    with create() as machine:
        listener.armed = True
        with pytest.raises(ListenerError) as caught:
            edit(machine, step)
        listener.armed = False
        assert_names_plugin(caught.value, f"memory listener 'fails', {step}; plugin 'bad'", "KeyError: 'own'")
        assert (caught.value.listener, caught.value.step) == ("fails", step)


def test_listener_of_a_plugin_that_refuses_keeps_its_error(register: Register) -> None:
    listener = Fails("region_add", CapabilityError("no more than two regions"))
    register(Brings(listener))
    with create() as machine:
        listener.armed = True
        with pytest.raises(CapabilityError, match="no more than two regions") as caught:
            edit(machine, "region_add")
        assert_names_plugin(caught.value, "memory listener 'fails', region_add; plugin 'bad'")
        assert len(machine.memory.view) == 1


def test_listener_of_a_plugin_whose_undo_raises_is_named_as_the_one_that_lost_the_map(register: Register) -> None:
    listener = Fails("undo", ValueError("own"))
    register(Brings(listener))
    with create() as machine:
        listener.armed = True
        with pytest.raises(MapLostError) as caught:
            edit(machine, "region_add")
        assert_names_plugin(caught.value, "memory listener 'fails', undo; plugin 'bad'")


@pytest.mark.parametrize("step", NO_VETO)
def test_listener_of_a_plugin_that_raises_when_it_is_over_is_logged_with_its_plugin(
    register: Register, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    listener, refuses = Fails(step, ValueError("own")), Fails("region_add", CapabilityError("no"))
    register(Brings(refuses, listener))
    with create() as machine:
        listener.armed = True
        refuses.armed = step == "abort"
        try:
            edit(machine, step)
        except CapabilityError:
            assert step == "abort"
        listener.armed = False
    (record,) = caplog.records
    assert f"memory listener 'fails' failed in {step} (plugin 'bad' from dist-bad 1.2; {WITHOUT})" in record.message


def test_listener_of_a_plugin_that_refuses_the_map_as_it_is_keeps_the_machine_from_being(register: Register) -> None:
    listener = Fails("region_add", ValueError("own"))
    listener.armed = True
    plugin = register(Brings(listener))
    with pytest.raises(ListenerError) as caught:
        create()
    assert_names_plugin(caught.value, "region_add")
    assert plugin.closed == 1, "who was asked hears of the end"


def test_listener_that_nobody_s_plugin_brought_is_named_alone() -> None:
    listener = Fails("region_add", ValueError("own"))
    with create() as machine:
        machine.memory.add_listener(listener)
        listener.armed = True
        with pytest.raises(ListenerError) as caught:
            edit(machine, "region_add")
        assert str(caught.value) == "ValueError: own (memory listener 'fails', region_add)"


def test_listener_of_a_plugin_that_cannot_be_written_to_is_named_all_the_same(register: Register) -> None:
    @frozen
    class Frozen(MemoryListener):
        name: str = "frozen"

        def region_add(self, section):
            raise ValueError("own")

    register(Brings(Frozen()))
    with pytest.raises(ListenerError) as caught:
        create()
    assert_names_plugin(caught.value, "memory listener 'frozen'")


# the hooks


class Explodes:
    def __iter__(self):
        raise RuntimeError("half way")


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (None, "accel_memory_listeners returned None, not a list of memory listeners; return [] for none"),
        (MemoryListener(), "returned an object of class MemoryListener, not a list of memory listeners"),
        (5, "returned 5, not a list of memory listeners"),
        ([None], "returned None for a listener; derive its class from accel.MemoryListener"),
        ("ab", "returned 'a' for a listener"),
        ([object()], "returned an object of class object for a listener"),
        ([MemoryListener], "returned class MemoryListener; return an object: MemoryListener()"),
        (Explodes(), "accel_memory_listeners failed: RuntimeError: half way"),
    ],
)
def test_hook_that_returns_something_else_than_listeners_is_named(
    register: Register, returned: object, problem: str
) -> None:
    plugin = register(Brings())
    plugin.returns = returned
    with pytest.raises(PluginError) as caught:
        create()
    assert_names_plugin(caught.value, problem)
    assert (caught.value.plugin, caught.value.distribution) == ("bad", "dist-bad 1.2")


def test_hook_may_return_any_iterable_of_listeners(register: Register) -> None:
    listener = MemoryListener()
    plugin = register(Brings())
    plugin.returns = (one for one in [listener])
    with create() as machine:
        assert listener in machine.memory.listeners


class Hears:
    """A plugin that notes what it hears in a list that all of them share, and raises in one hook."""

    def __init__(self, name: str, heard: list[str], raises: str = "", error: BaseException | None = None) -> None:
        self._name, self._heard, self._raises, self._error = name, heard, raises, error or KeyError("own")

    def _hear(self, what: str) -> None:
        self._heard.append(f"{self._name} {what}")
        if what == self._raises:
            raise self._error

    @hookimpl
    def accel_memory_listeners(self, machine):
        self._hear("listeners")
        return []

    @hookimpl
    def accel_machine_created(self, machine):
        self._hear("created")

    @hookimpl
    def accel_machine_closed(self):
        self._hear("closed")


def test_hooks_are_called_in_order_of_the_plugins_and_in_reverse_at_the_end(register: Register) -> None:
    heard: list[str] = []
    for name in ("a", "b"):
        register(Hears(name, heard), name)
    create().close()
    assert heard == ["a listeners", "b listeners", "a created", "b created", "b closed", "a closed"]


@pytest.mark.parametrize("error", [KeyError("own"), SystemExit("own"), GeneratorExit("own")])
@pytest.mark.parametrize("hook", ["listeners", "created"])
def test_hook_that_raises_is_named_and_who_heard_hears_of_the_end(
    register: Register, hook: str, error: BaseException
) -> None:
    heard: list[str] = []
    register(Hears("a", heard), "a")
    register(Hears("bad", heard, hook, error), "bad")
    register(Hears("z", heard), "z")
    threads = threading.active_count()
    with pytest.raises(PluginError) as caught:
        create()
    name = {"listeners": "accel_memory_listeners", "created": "accel_machine_created"}[hook]
    assert_names_plugin(caught.value, f"{name} failed: {type(error).__name__}: ", "own")
    assert caught.value.__cause__ is error
    asked = ["z"] if hook == "created" else []
    assert [one for one in heard if one.endswith("closed")] == [f"{one} closed" for one in (*asked, "bad", "a")]
    assert threading.active_count() == threads


def test_hook_that_refuses_with_an_error_of_ours_keeps_it(register: Register) -> None:
    register(Hears("bad", [], "created", CapabilityError("needs four vCPUs")))
    with pytest.raises(CapabilityError) as caught:
        create()
    assert_names_plugin(caught.value, "needs four vCPUs (accel_machine_created of plugin 'bad'")


def test_hook_that_is_interrupted_is_no_fault_of_the_plugin(register: Register) -> None:
    heard: list[str] = []
    register(Hears("bad", heard, "created", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        create()
    assert heard[-1] == "bad closed"


def test_closed_hooks_that_raise_are_named_once_all_have_heard(register: Register) -> None:
    heard: list[str] = []
    register(Hears("a", heard, "closed"), "a")
    register(Hears("other", heard), "other")
    register(Hears("bad", heard, "closed"), "bad")
    machine = create()
    heard.clear()
    with pytest.raises(PluginError) as caught:
        machine.close()
    assert heard == ["bad closed", "other closed", "a closed"]
    assert_names_plugin(caught.value, "accel_machine_closed failed: KeyError: 'own'")
    (note,) = caught.value.__notes__
    assert "plugin 'a' (from dist-a 1.2): accel_machine_closed failed" in note
    assert machine.vm.closed
    machine.close()


def test_closed_hook_that_raises_after_a_failed_creation_does_not_hide_the_reason(
    register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    register(Hears("a", [], "closed"), "a")
    register(Hears("bad", [], "created"), "bad")
    with pytest.raises(PluginError) as caught:
        create()
    assert_names_plugin(caught.value, "accel_machine_created failed")
    (record,) = caplog.records
    assert "plugin 'a' (from dist-a 1.2): accel_machine_closed failed" in record.message


def test_plugin_registered_after_a_machine_does_not_hear_of_it(register: Register) -> None:
    heard: list[str] = []
    machine = create()
    register(Hears("late", heard), "late")
    machine.close()
    assert heard == []


def test_wrappers_of_hooks_are_refused_since_nobody_would_run_them() -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def accel_machine_created(self, machine):
            return (yield)

    with pytest.raises(PluginError, match="accel_machine_created cannot be a wrapper"):
        plugin_manager().register(Wrapper(), "bad")


# accelerators


class Vms(accel.VmBackend):
    """A VM whose calls a test writes."""

    def memory_listener(self):
        return MemoryListener()

    def create_vcpu(self, index):
        raise OSError("no room")

    def close(self):
        pass


class NoListener(Vms):
    def memory_listener(self):
        return None


@pytest.mark.parametrize(
    ("create_vm", "problem"),
    [
        (lambda: {}["own"], "accelerator 'odd' failed: KeyError: 'own'"),
        (lambda: None, "accelerator 'odd' breaks the contract: create_vm returned NoneType; it must be a VmBackend"),
        (accel.VmBackend, "accelerator 'odd' failed: TypeError: Can't instantiate abstract class VmBackend"),
        (
            NoListener,
            "accelerator 'odd' breaks the contract: memory_listener returned NoneType; it must be a MemoryListener",
        ),
        (Vms, "accelerator 'odd' failed: OSError: no room"),
    ],
)
def test_accelerator_of_a_plugin_that_cannot_make_a_machine_is_named(
    register: Register, create_vm: Callable[[], object], problem: str
) -> None:
    class Odd(accel.Accelerator):
        name = "odd"
        executes = frozenset({"program"})

        def probe(self):
            return accel.Availability(True)

        def create_vm(self, config):
            return create_vm()

    class Plugin:
        @hookimpl
        def accel_register_accelerators(self, register):
            register(Odd())

    register(Plugin())
    with pytest.raises(PluginError) as caught:
        accel.Machine.create("odd", memory="1M")
    assert_names_plugin(caught.value, problem)


def test_accelerator_that_refuses_speaks_for_itself(register: Register) -> None:
    with pytest.raises(CapabilityError) as caught:
        accel.Machine.create("mock", memory="1M", irqchip=True)
    assert "plugin" not in str(caught.value)


# devices


def device_plugin(made: object) -> object:
    """Return a plugin whose device `thing` is `made`, or raises it."""

    def make(values: dict[str, object]) -> Device:
        if isinstance(made, BaseException):
            raise made
        return made

    class Plugin:
        @hookimpl
        def accel_register_devices(self, register):
            register(DeviceType("thing", "a thing", (), make))

    return Plugin()


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (TypeError("own"), "making a device 'thing' failed: TypeError: own"),
        (SystemExit("own"), "making a device 'thing' failed: SystemExit: own"),
        (None, "making a device 'thing' gave None; derive its class from accel.devices.Device"),
    ],
)
def test_device_of_a_plugin_that_cannot_be_made_is_named(register: Register, made: object, problem: str) -> None:
    register(device_plugin(made))
    with pytest.raises(PluginError) as caught:
        create_device(plugin_manager().devices()["thing"], {})
    assert_names_plugin(caught.value, problem)


def test_device_of_a_plugin_that_refuses_a_value_speaks_for_itself(register: Register) -> None:
    error = OptionError("device[0]", "port", 5, "must be even")
    register(device_plugin(error))
    with pytest.raises(OptionError) as caught:
        create_device(plugin_manager().devices()["thing"], {})
    assert str(caught.value) == "device[0].port = 5: must be even"


def test_device_of_nobody_s_plugin_that_fails_is_not_blamed_on_one() -> None:
    with pytest.raises(ZeroDivisionError):
        create_device(DeviceType("own", "not registered", (), lambda values: 1 // 0), {})


def test_device_of_the_core_is_made_without_ado() -> None:
    kind = plugin_manager().devices()["debug-exit"]
    device = create_device(kind, {one.name: one.default for one in kind.options})
    assert isinstance(device, Device)


# loaders


def loader_plugin(detect: Callable[[bytes], bool], load: Callable[..., object]) -> object:
    class Plugin:
        @hookimpl
        def accel_register_loaders(self, register):
            register(Loader("odd", "an odd format", detect, load, priority=50))

    return Plugin()


def fail(*arguments: object) -> bool:
    raise IndexError("own")


def test_loader_of_a_plugin_that_raises_is_named(register: Register) -> None:
    register(loader_plugin(lambda head: True, fail))
    with create() as machine, pytest.raises(PluginError) as caught:
        machine.load(b"\xf4")
    assert_names_plugin(caught.value, "loader 'odd' failed: IndexError: own")


def test_loader_of_a_plugin_that_raises_while_it_looks_is_named(register: Register) -> None:
    register(loader_plugin(fail, fail))
    with create() as machine, pytest.raises(PluginError) as caught:
        machine.load(b"\xf4")
    assert_names_plugin(caught.value, "loader 'odd', looking at an image, failed: IndexError: own")


def test_loader_of_a_plugin_that_returns_no_image_is_named(register: Register) -> None:
    register(loader_plugin(lambda head: True, lambda *arguments: FlatView()))
    with create() as machine, pytest.raises(PluginError) as caught:
        machine.load(b"\xf4")
    assert_names_plugin(caught.value, "loader 'odd' returned an object of class FlatView, not an Image")


def test_loader_of_a_plugin_that_refuses_an_image_speaks_for_itself(register: Register) -> None:
    def refuse(*arguments: object) -> None:
        raise ImageError("x.odd", "is not odd")

    register(loader_plugin(lambda head: True, refuse))
    with create() as machine, pytest.raises(ImageError) as caught:
        machine.load(b"\xf4")
    assert str(caught.value) == "x.odd: is not odd"


def test_loaders_of_the_core_are_the_registered_ones() -> None:
    for loader in loaders():
        assert plugin_manager().loaders()[loader.name] is loader
