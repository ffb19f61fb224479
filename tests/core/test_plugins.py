"""Plugins: each fails by itself and says why, blocked ones are never imported, and selection gives its reasons.

The plugins that are found through entry points are real distributions in a folder of their own, and a process of
its own finds them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import accel
from accel.backend import Accelerator, Availability, VmConfig
from accel.devices.base import Device, DeviceType
from accel.errors import AccelError, NoAcceleratorError, OptionError, PluginError, UsageError
from accel.hookspecs import hookimpl
from accel.options import Option
from accel.plugins import (
    PluginManager,
    default_accelerators,
    find_accelerator,
    open_accelerator,
    parse_accelerators,
    plugin_manager,
    probe,
)

ROOT = Path(accel.__file__).parent.parent

GOOD = """
    from accel.backend import Accelerator, Availability
    from accel.hookspecs import hookimpl

    class Thing(Accelerator):
        name = "{name}"
        executes = frozenset({{"program"}})

        def probe(self):
            return Availability(True)

        def create_vm(self, config):
            raise NotImplementedError

    @hookimpl
    def accel_register_accelerators(register):
        register(Thing())
"""

#: Distribution → (entry point, the module's text).
DISTRIBUTIONS = {
    "dist-a-breaks": ("a-breaks", "import there_is_no_such_module"),
    "dist-b-raises": ("b-raises", "raise ValueError('cannot do it')"),
    "dist-c-exits": ("c-exits", "import sys; sys.exit('this is a script')"),
    "dist-d-unknown": (
        "d-unknown",
        """
        from accel.hookspecs import hookimpl

        @hookimpl
        def accel_register_accelerator(register):
            pass
        """,
    ),
    "dist-e-signature": (
        "e-signature",
        """
        from accel.hookspecs import hookimpl

        @hookimpl
        def accel_register_accelerators(register, machine):
            pass
        """,
    ),
    "dist-f-blocked": ("f-blocked", "import os; open(os.environ['MARKER'], 'w').close()"),
    "dist-g-hook": (
        "g-hook",
        dedent(GOOD).format(name="from-g") + "    raise KeyError('half way')\n",
    ),
    "dist-h-first": ("h-twice", GOOD.format(name="from-h-first")),
    "dist-h-second": ("h-twice", GOOD.format(name="from-h-second")),
    "dist-i-taken": ("i-taken", GOOD.format(name="from-z")),
    "dist-z-good": ("z-good", GOOD.format(name="from-z-good")),
}

SCRIPT = """
import json
import re
from accel.plugins import plugin_manager

manager = plugin_manager()
accelerators = manager.accelerators()
print(json.dumps({
    "accelerators": {name: manager.source(one) for name, one in accelerators.items()},
    "same": manager.accelerators()["from-z-good"] is accelerators["from-z-good"],
    "devices": list(manager.devices()),
    "loaders": list(manager.loaders()),
    "plugins": {
        key: [one.name, one.distribution, None if one.error is None else [
            one.error.plugin, one.error.distribution, str(one.error)
        ]]
        for key, one in manager.plugins.items()
    },
}))
"""


def _install(folder: Path, distribution: str, point: str, text: str) -> None:
    """Put a distribution with one plugin into `folder`, as an installer would."""
    module = distribution.replace("-", "_")
    (folder / f"{module}.py").write_text(dedent(text))
    info = folder / f"{module}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[accel]\n{point} = {module}\n")
    (info / "RECORD").write_text("")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a process finds that has all of `DISTRIBUTIONS` on its path, and has the folder there twice."""
    folder = tmp_path_factory.mktemp("site")
    for distribution, (point, text) in DISTRIBUTIONS.items():
        _install(folder, distribution, point, text.replace('from-z"', 'from-h-first"'))
    marker = folder / "imported"
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([str(folder), str(ROOT), str(folder) + os.sep]),
        ACCEL_BLOCK_PLUGINS=" f-blocked , ,kvm",
        MARKER=str(marker),
    )
    return {**json.loads(_python(SCRIPT, environment)), "marker": marker.exists()}


def _python(script: str, environment: dict[str, str]) -> str:
    """Run `script` in a process of its own, where warnings are errors; return what it prints."""
    command = [sys.executable, "-W", "error", "-c", dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _error(found: dict, key: str) -> str:
    name, distribution, error = found["plugins"][key]
    assert error is not None, f"{key} has no error"
    plugin, error_distribution, text = error
    assert (plugin, error_distribution) == (name, distribution), "the error says who brought it"
    assert text.startswith(f"plugin '{name}' (from {distribution}): ")
    return text


def test_plugins_that_work_are_in_use_whatever_the_others_do(found: dict) -> None:
    assert found["plugins"]["z-good"] == ["z-good", "dist-z-good 1.2", None]
    assert found["accelerators"]["from-z-good"] == "z-good"
    assert found["same"], "a plugin is asked once"
    assert list(found["accelerators"]) == sorted(found["accelerators"])
    assert {"serial", "debug-exit"} <= set(found["devices"])
    assert {"flat", "elf"} <= set(found["loaders"])


@pytest.mark.parametrize(
    ("plugin", "problem"),
    [
        ("a-breaks", "cannot be imported: ModuleNotFoundError: No module named 'there_is_no_such_module'"),
        ("b-raises", "cannot be imported: ValueError: cannot do it"),
        ("c-exits", "cannot be imported: SystemExit: this is a script"),
        ("d-unknown", "there is no hook 'accel_register_accelerator'; did you mean 'accel_register_accelerators'?"),
        (
            "e-signature",
            "accel_register_accelerators takes 'machine', which the hook does not give; it gives: register",
        ),
        ("g-hook", "accel_register_accelerators failed: KeyError: 'half way'"),
        ("i-taken", "accelerator 'from-h-first' is registered by plugin 'h-twice' (from dist-h-first 1.2) already"),
    ],
)
def test_plugins_that_break_say_why_and_who_brought_them(found: dict, plugin: str, problem: str) -> None:
    assert problem in _error(found, plugin)
    assert found["plugins"][plugin][1].startswith(f"dist-{plugin[0]}")


def test_plugins_with_a_wrong_hook_register_nothing(found: dict) -> None:
    registered = set(found["accelerators"].values())
    assert not registered & {"a-breaks", "b-raises", "c-exits", "d-unknown", "e-signature", "i-taken"}


def test_plugins_of_one_name_leave_the_first_and_tell_of_the_second(found: dict) -> None:
    assert found["plugins"]["h-twice"] == ["h-twice", "dist-h-first 1.2", None]
    text = _error(found, "h-twice (dist-h-second 1.2)")
    assert "the name is taken by dist-h-first 1.2; uninstall or rename one of them" in text
    assert "from-h-second" not in found["accelerators"]


def test_plugins_on_the_path_twice_are_found_once(found: dict) -> None:
    assert sum(name.startswith("z-good") for name in found["plugins"]) == 1


def test_plugins_that_are_blocked_are_never_imported(found: dict) -> None:
    assert not found["marker"]
    assert _error(found, "f-blocked").endswith("switched off")


def test_plugins_of_this_project_are_blocked_like_any(found: dict) -> None:
    assert _error(found, "kvm").endswith("switched off")
    assert "kvm" not in found["accelerators"]
    assert "hvf" in found["accelerators"]


# plugins that are objects


class Fake(Accelerator):
    """An accelerator whose probe the test writes."""

    executes = frozenset({"program"})
    options = (Option("speed", "int", 1, "how fast"),)

    def __init__(self, name: str, available: Availability | Exception, executes: str = "program") -> None:
        self.name = name
        self.executes = frozenset({executes})
        self._available = available
        self.probes = 0

    def probe(self) -> Availability:
        self.probes += 1
        if isinstance(self._available, Exception):
            raise self._available
        return self._available

    def create_vm(self, config):
        raise AssertionError


#: Where its probe raises.
RAISES = Fake.probe.__code__.co_firstlineno + 3


class Plugin:
    def __init__(self, *accelerators: Accelerator) -> None:
        self._accelerators = accelerators

    @hookimpl
    def accel_register_accelerators(self, register) -> None:
        for one in self._accelerators:
            register(one)


@pytest.fixture
def registered():
    """Register accelerators with the process's plugin manager for the length of a test."""
    plugins = []

    def register(*accelerators: Accelerator) -> None:
        plugins.append(Plugin(*accelerators))
        plugin_manager().register(plugins[-1], f"test-{len(plugins)}")

    yield register
    for plugin in plugins:
        plugin_manager().unregister(plugin)


def test_plugin_registered_late_is_seen_and_unregistered_is_gone(registered) -> None:
    assert "one" not in plugin_manager().accelerators()
    fake = Fake("one", Availability(True))
    registered(fake)
    assert plugin_manager().accelerators()["one"] is fake
    assert plugin_manager().source(fake) == "test-1"


def test_plugin_manager_hands_out_dicts_of_their_own() -> None:
    manager = PluginManager()
    manager.devices().clear()
    assert manager.devices()


def test_plugin_registered_twice_or_broken_is_refused() -> None:
    manager = PluginManager()
    plugin = Plugin()
    manager.register(plugin, "one")
    with pytest.raises(PluginError, match="plugin 'two'"):
        manager.register(plugin, "two")
    with pytest.raises(PluginError, match="plugin 'one'"):
        manager.register(Plugin(), "one")

    class Unknown:
        @hookimpl
        def accel_registers(self, register) -> None:
            pass

    class Wrong:
        @hookimpl
        def accel_register_devices(self, registrar) -> None:
            pass

    for kind in (Unknown, Wrong):
        with pytest.raises(PluginError, match="breaks the hook contract") as caught:
            manager.register(kind(), "broken", "dist 1.0")
        assert (caught.value.plugin, caught.value.distribution) == ("broken", "dist 1.0")
    # Nothing of those that were refused is left behind.
    manager.register(Plugin(Fake("late", Availability(True))), "broken")
    assert "late" in manager.accelerators()


def test_plugin_that_registers_rubbish_is_named_and_the_others_go_on() -> None:
    class Rubbish:
        @hookimpl
        def accel_register_devices(self, register) -> None:
            register(5)

    class Taken:
        @hookimpl
        def accel_register_devices(self, register) -> None:
            register(DeviceType("late", "registered before", (), lambda options: Device()))
            register(DeviceType("serial", "a name that is taken", (), lambda options: Device()))

    manager = PluginManager()
    manager.register(Rubbish(), "rubbish")
    manager.register(Taken(), "taken")
    devices = manager.devices()
    assert {"serial", "late", "cmos"} <= set(devices)
    assert devices["serial"].summary != "a name that is taken"
    assert str(manager.plugins["rubbish"].error) == "plugin 'rubbish' (from ?): 5 is no DeviceType"
    assert "device 'serial' is registered by plugin 'builtin' (from accel) already" in str(
        manager.plugins["taken"].error
    )
    assert manager.source(devices["serial"]) == "builtin"
    assert manager.source(devices["late"]) == "taken"


# selection


def test_parse_accelerators_takes_text_and_lists_in_order() -> None:
    assert parse_accelerators("kvm, mock,,kvm ") == ("kvm", "mock")
    assert parse_accelerators(["b", " a "]) == ("b", "a")
    for nothing in ("", " , ", []):
        with pytest.raises(UsageError, match="no accelerator is named"):
            parse_accelerators(nothing)


def test_open_accelerator_takes_the_first_that_can_and_probes_no_further(registered) -> None:
    no, yes, other = (
        Fake("no", Availability(False, "no device")),
        Fake("yes", Availability(True)),
        Fake("other", Availability(True)),
    )
    registered(no, yes, other)
    with open_accelerator("no,yes,other") as opened:
        assert opened.name == "yes"
        assert opened.accelerator is yes
        assert opened.options == {"speed": 1}
    assert (no.probes, yes.probes, other.probes) == (1, 1, 0)


def test_open_accelerator_says_why_each_was_passed_over(registered) -> None:
    x86 = Fake("x86-only", Availability(True), "x86")
    registered(
        x86,
        Fake("absent", Availability(False, "this host has none")),
        Fake("broken", OSError("probe exploded")),
    )
    with pytest.raises(NoAcceleratorError) as caught:
        open_accelerator(["x86-only", "absent", "broken"], executes="program")
    assert caught.value.reasons == {
        "x86-only": "executes x86, and this needs program",
        "absent": "this host has none",
        "broken": f"plugin 'test-1' (from ?): its probe failed: OSError: probe exploded ({__file__}:{RAISES})",
    }
    assert list(caught.value.reasons) == ["x86-only", "absent", "broken"]
    assert "accelctl list accelerators" in str(caught.value)
    assert x86.probes == 0, "what cannot run the guest is not asked whether it is there"


def test_probe_that_raises_is_an_answer() -> None:
    assert probe(Fake("broken", ValueError("odd"))) == Availability(
        False, f"its probe failed: ValueError: odd ({__file__}:{RAISES})"
    )


def test_open_accelerator_checks_names_and_options_before_it_probes(registered) -> None:
    first = Fake("first", Availability(True))
    registered(first)
    with pytest.raises(UsageError, match="no accelerator 'frist'; did you mean 'first'"):
        open_accelerator("first,frist")
    with pytest.raises(OptionError, match=r"accelerator.first.sped = 3: no such option; did you mean 'speed'"):
        open_accelerator("first", options={"first": {"sped": 3}})
    with pytest.raises(OptionError, match="must be a whole number"):
        open_accelerator("first", options={"first": {"speed": "fast"}})
    with pytest.raises(UsageError, match="no accelerator 'ghost'"):
        open_accelerator("first", options={"ghost": {}})
    assert first.probes == 0


def test_open_accelerator_hands_options_to_their_accelerator_only(registered) -> None:
    registered(Fake("no", Availability(False, "x")), Fake("yes", Availability(True)))
    options = {"no": {"speed": 7}, "yes": {"speed": "9"}}
    assert open_accelerator("no,yes", options=options).options == {"speed": 9}


@pytest.fixture
def without_kvm(monkeypatch) -> None:
    manager = PluginManager(frozenset({"kvm"}))
    manager.load_entry_points()
    monkeypatch.setattr("accel.plugins.plugin_manager", lambda: manager)


@pytest.mark.usefixtures("without_kvm")
def test_accelerator_of_a_plugin_that_is_switched_off_is_passed_over_with_the_reason() -> None:
    assert open_accelerator("kvm,mock").name == "mock"
    with pytest.raises(NoAcceleratorError) as caught:
        open_accelerator("kvm,hvf", executes="x86")
    assert re.fullmatch(r"plugin 'kvm' \(from .*\): switched off", caught.value.reasons["kvm"])
    with pytest.raises(PluginError, match="switched off"):
        find_accelerator("kvm").create_vm(VmConfig())
    with pytest.raises(UsageError, match="no accelerator 'kvn'"):
        open_accelerator("kvn,mock")


@pytest.mark.usefixtures("without_kvm")
def test_options_of_an_accelerator_that_is_switched_off_cannot_be_checked_and_do_no_harm() -> None:
    options = {"kvm": {"anything": 1}, "mock": {"hold": "unsafe"}}
    assert open_accelerator("kvm,mock", options=options).options["hold"] == "unsafe"


def test_default_accelerators_are_by_priority_then_by_name(registered) -> None:
    names = []
    for name, priority in [("t-b", 5), ("t-a", 5), ("t-low", -5)]:
        fake = Fake(name, Availability(True))
        fake.priority = priority
        names.append(fake)
    registered(*names)
    order = [name for name in default_accelerators() if name.startswith("t-")]
    assert order == ["t-a", "t-b", "t-low"]


def test_plugins_shipped_are_found_and_in_order() -> None:
    assert {"kvm", "mock", "hvf"} <= set(plugin_manager().plugins)
    for name in ("kvm", "mock", "hvf"):
        info = plugin_manager().plugins[name]
        assert info.error is None
        assert info.distribution.startswith("accel ")
    assert isinstance(NoAcceleratorError({}), AccelError)


def test_plugins_import_opens_no_device_and_loads_nothing_heavy() -> None:
    """Finding plugins must be cheap: it is part of every start."""
    script = """
        import os, sys
        before = set(os.listdir("/proc/self/fd"))
        from accel.plugins import plugin_manager
        plugin_manager().accelerators()
        assert set(os.listdir("/proc/self/fd")) == before
        print(sorted(set(sys.modules) & {"accel_kvm.vm", "accel_mock.vm", "elftools", "rich", "cattrs"}))
    """
    assert _python(script, dict(os.environ, PYTHONPATH=str(ROOT))).strip() == "[]"
