"""When and where hooks are called, and in which order: what the page on hooks promises."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

import accel
from accel.devices import DebugExit
from accel.hookspecs import hookimpl
from accel.plugins import PluginManager, plugin_manager


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    added = []

    def add(plugin: object, name: str) -> None:
        plugin_manager().register(plugin, name)
        added.append(plugin)

    yield add
    for plugin in added:
        plugin_manager().unregister(plugin)


def create() -> accel.Machine:
    return accel.Machine.create("mock", memory="64K")


class Facts:
    """Notes of each hook on which thread and with which lock it was called, and how far the machine was."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, str, bool]] = []

    def _note(self, hook: str, machine: accel.Machine) -> None:
        self.facts.append((hook, threading.current_thread().name, machine.vm.big_lock.held()))

    @hookimpl
    def accel_memory_listeners(self, machine):
        self._note("listeners", machine)
        assert len(machine.vm.vcpus) == machine.cpus
        assert [section.region for section in machine.memory.view] == [machine.ram]
        assert machine.devices == ()
        return []

    @hookimpl
    def accel_machine_created(self, machine):
        self._note("created", machine)
        machine.attach(DebugExit())

    @hookimpl
    def accel_machine_closed(self, machine):
        self._note("closed", machine)
        assert machine.vm.closed


def test_machine_hooks_are_called_on_the_caller_s_thread_without_the_big_lock(register) -> None:
    facts = Facts()
    register(facts, "facts")
    made: list[accel.Machine] = []

    def on_thread(name: str, do: Callable[[], object]) -> None:
        thread = threading.Thread(target=do, name=name)
        thread.start()
        thread.join()

    on_thread("creates", lambda: made.append(create()))
    on_thread("closes", made[0].close)
    assert facts.facts == [("listeners", "creates", False), ("created", "creates", False), ("closed", "closes", False)]
    assert len(made[0].devices) == 1


def test_machine_hooks_are_told_of_machines_only(register) -> None:
    facts = Facts()
    register(facts, "facts")
    with accel.open_accelerator("mock") as mock, mock.create_vm():
        pass
    assert facts.facts == []


def test_machine_hooks_come_first_or_last_where_they_ask_for_it(register) -> None:
    heard: list[str] = []

    def plugin(name: str, **when: bool) -> object:
        class Plugin:
            @hookimpl(**when)
            def accel_machine_created(self):
                heard.append(f"{name} created")

            @hookimpl(**when)
            def accel_machine_closed(self):
                heard.append(f"{name} closed")

        return Plugin()

    register(plugin("last", trylast=True), "a")
    register(plugin("b"), "b")
    register(plugin("c"), "c")
    register(plugin("first", tryfirst=True), "d")
    create().close()
    order = ["first", "b", "c", "last"]
    assert heard == [f"{name} created" for name in order] + [f"{name} closed" for name in reversed(order)]


@pytest.mark.parametrize("kind", ["accelerators", "devices", "loaders"])
def test_registration_hooks_are_asked_once_and_again_after_somebody_is_registered(kind: str) -> None:
    asked: list[int] = []

    def hook(self, register):
        asked.append(1)

    plugin = type("Plugin", (), {f"accel_register_{kind}": hookimpl(hook)})()
    manager = PluginManager()
    manager.register(plugin, "one")
    for _ in range(3):
        getattr(manager, kind)()
    assert len(asked) == 1
    manager.register(type("Other", (), {})(), "other")
    getattr(manager, kind)()
    assert len(asked) == 2


def test_scenarios_of_a_plugin_that_fail_to_load_are_named_with_their_plugin(register) -> None:
    from accel.testing.explore.catalogue import all_scenarios

    class Plugin:
        @hookimpl
        def accel_register_scenarios(self, register):
            register("there_is_no_such_module")

    plugin = Plugin()
    plugin_manager().register(plugin, "bad", "dist-bad 1.2")
    try:
        scenarios, problems = all_scenarios()
    finally:
        plugin_manager().unregister(plugin)
    assert scenarios
    (problem,) = problems
    assert problem.startswith(
        "plugin 'bad' (from dist-bad 1.2): accel_register_scenarios failed: ModuleNotFoundError: "
    )
    assert problem.endswith("to do without it: accelctl -p no:bad, or ACCEL_BLOCK_PLUGINS=bad")
