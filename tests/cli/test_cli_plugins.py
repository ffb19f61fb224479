"""accelctl plugins, -p no:NAME, --plugin-dir, and plugins that are no good: real distributions, a process each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import click
import pytest

import accel
from accel.cli import app
from accel.cli.exit_codes import ExitCode
from accel.cli.plugins_new import scaffold

Accelctl = Callable[..., subprocess.CompletedProcess[bytes]]

#: An accelerator whose class, hook or probe a test writes otherwise.
ACCELERATOR = """
import time
import accel

class Toy(accel.Accelerator):
    name = "toy"
    summary = "a toy"
    executes = frozenset({"program"})

    def probe(self):
        return accel.Availability(True)

    def create_vm(self, config):
        raise NotImplementedError

@accel.hookimpl
def accel_register_accelerators(register):
    register(Toy())
"""

COMMAND = """
import click
import accel

@accel.hookimpl
def accel_register_commands(cli):
    cli.add_command(click.Command("extra", callback=lambda: click.echo("extra runs"), help="One more."))
"""


class Site:
    """A folder with installed distributions, and accelctl with that on its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def install(self, distribution: str, name: str, text: str) -> Path:
        """Install `text` as a plugin of a distribution, as an installer would; return its file."""
        module = distribution.replace("-", "_")
        path = self.folder / f"{module}.py"
        path.write_text(dedent(text))
        info = self.folder / f"{module}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[accel]\n{name} = {module}\n")
        (info / "RECORD").write_text("")
        return path

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "accel", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(self.folder), **(env or {})},
            cwd=self.folder,
            timeout=100,
            check=False,
        )

    def plugins(self, *arguments: str, env: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
        """Return what ``accelctl … plugins --json`` says, by name."""
        done = self.run(*arguments, "plugins", "--json", env=env)
        assert (done.returncode, done.stderr) == (0, b"")
        data = json.loads(done.stdout)
        assert data["format"] == 1
        return {one["name"]: one for one in data["plugins"]}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


# the list


def test_plugins_tells_where_each_comes_from_and_what_it_brings(site: Site) -> None:
    site.install("accel-toy", "toy", ACCELERATOR)
    found = site.plugins()
    assert next(iter(found)) == "builtin"
    assert found["toy"] == {
        "name": "toy",
        "distribution": "accel-toy",
        "version": "1.5",
        "where": "accel_toy",
        "state": "in use",
        "reason": None,
        "hooks": ["accel_register_accelerators"],
        "registered": {"accelerators": ["toy"], "devices": [], "loaders": []},
    }
    assert found["mock"]["where"] == "accel_mock.plugin"
    assert (found["mock"]["distribution"], found["mock"]["version"]) == ("accel", accel.__version__)
    assert found["builtin"]["hooks"] == ["accel_register_devices", "accel_register_loaders"]
    assert "serial" in found["builtin"]["registered"]["devices"]
    rows = [line.split() for line in site.run("plugins").stdout.decode().splitlines()]
    assert ["toy", "in", "use", "accel-toy", "1.5", "accel_toy", "accel_register_accelerators"] in rows


def test_plugins_json_before_a_command_is_refused(accelctl: Accelctl) -> None:
    done = accelctl("plugins", "--json", "new", "toy")
    assert done.returncode == 2
    assert b"--json is for the list" in done.stderr


# switching off


def test_switch_off_takes_the_accelerator_and_the_commands_away(site: Site) -> None:
    site.install("accel-toy", "toy", ACCELERATOR + COMMAND + "\nprint('imported')\n")
    assert b"  extra " in site.run("--help").stdout
    assert site.run("extra").stdout.endswith(b"extra runs\n")
    for arguments in (["-p", "no:toy", "--help"], ["--help", "-p", "no:toy"]):
        done = site.run(*arguments)
        assert done.returncode == 0
        assert b"extra" not in done.stdout
        assert b"imported" not in done.stdout
    done = site.run("-p", "no:toy", "extra")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"No such command 'extra'" in done.stderr
    found = site.plugins("-p", "no:toy", "-p", "no:hvf")
    assert [name for name, one in found.items() if one["state"] == "switched off"] == ["hvf", "toy"]
    assert found["toy"]["reason"] == "plugin 'toy' (from accel-toy 1.5): switched off"
    assert found["toy"]["hooks"] == []


def test_switch_off_adds_to_the_environment_variable(site: Site) -> None:
    found = site.plugins("-p", "no:hvf", env={"ACCEL_BLOCK_PLUGINS": "kvm"})
    assert [name for name, one in found.items() if one["state"] == "switched off"] == ["hvf", "kvm"]


def test_switch_off_is_told_where_somebody_asks_for_it(accelctl: Accelctl, guests: Path) -> None:
    done = accelctl("-p", "no:kvm", "run", guests / "hello.bin", "--accel", "kvm")
    assert done.returncode == ExitCode.NO_ACCELERATOR
    assert f"kvm: plugin 'kvm' (from accel {accel.__version__}): switched off" in done.stderr.decode()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("no:kvn", "-p no:kvn: no plugin 'kvn'; did you mean 'kvm'?"),
        ("kvm", "-p kvm: it takes no:NAME, which switches a plugin off; --plugin-dir adds some"),
        ("no:", "-p no:: it takes no:NAME, which switches a plugin off; --plugin-dir adds some"),
        ("no:builtin", "-p no:builtin: what is built in cannot be switched off"),
    ],
)
def test_switch_off_what_cannot_be_is_a_usage_error(accelctl: Accelctl, given: str, problem: str) -> None:
    done = accelctl("-p", given, "list")
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", f"Error: {problem}\n")


def test_switch_off_lasts_for_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    monkeypatch.delenv("ACCEL_BLOCK_PLUGINS", raising=False)
    monkeypatch.setitem(
        app.group.commands,
        "look",
        click.Command("look", callback=lambda: seen.append(os.environ.get("ACCEL_BLOCK_PLUGINS"))),
    )
    assert app.run(["-p", "no:hvf", "look"]) == 0
    assert app.run(["-p", "no:hvf", "--help"]) == 0
    assert app.run(["-p", "no:hvf", "-p", "nonsense"]) == 2
    assert seen == ["hvf"]
    assert "ACCEL_BLOCK_PLUGINS" not in os.environ


# plugins of one file


def test_plugin_dir_loads_each_file_and_nothing_without_it(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "toy.py").write_text(ACCELERATOR)
    (folder / "_helper.py").write_text("1 / 0")
    (folder / "notes.txt").write_text("no plugin")
    (folder / "package").mkdir()
    assert "toy" not in site.plugins()
    for found in (site.plugins("--plugin-dir", str(folder)), site.plugins(env={"ACCEL_PLUGIN_DIR": str(folder)})):
        assert not {"_helper", "notes", "package"} & set(found)
        assert found["toy"]["state"] == "in use"
        assert (found["toy"]["distribution"], found["toy"]["version"]) == (None, None)
        assert found["toy"]["where"] == str(folder / "toy.py")
        assert found["toy"]["registered"]["accelerators"] == ["toy"]
    switched = site.plugins("-p", "no:toy", "--plugin-dir", str(folder))
    assert switched["toy"]["state"] == "switched off"


def test_plugin_dir_never_is_the_current_folder_by_itself(accelctl: Accelctl, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text("raise SystemExit('imported')")
    found = json.loads(accelctl("plugins", "--json", cwd=tmp_path).stdout)["plugins"]
    assert "toy" not in [one["name"] for one in found]
    found = json.loads(accelctl("--plugin-dir", ".", "plugins", "--json", cwd=tmp_path).stdout)["plugins"]
    assert [one["state"] for one in found if one["name"] == "toy"] == ["broken"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import accel\n\ndef broken(:\n    pass\n", "cannot be imported: SyntaxError: invalid syntax (line 3)"),
        ("import accel\n\nopen('/nothere/x')\n", "cannot be imported: FileNotFoundError: {error} (line 3)"),
        (
            "import accel\n@accel.hookimpl\ndef accel_register_devices(register):\n    register(1 / 0)\n",
            "accel_register_devices failed: ZeroDivisionError: division by zero (line 4)",
        ),
    ],
)
def test_plugin_dir_file_that_is_bad_is_named_with_the_line(
    site: Site, tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "local" / "bad.py"
    path.parent.mkdir()
    path.write_text(text)
    found = site.plugins("--plugin-dir", str(path.parent))
    problem = problem.format(error="[Errno 2] No such file or directory: '/nothere/x'")
    assert found["bad"]["reason"] == f"plugin 'bad' (from {path}): {problem}"
    assert found["mock"]["state"] == "in use"


def test_plugin_dir_file_of_an_installed_name_stands_back(site: Site, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "mock.py").write_text(ACCELERATOR)
    done = site.run("--plugin-dir", str(tmp_path / "local"), "plugins")
    assert f"the name is taken by accel {accel.__version__}; uninstall or rename one of them" in done.stdout.decode()
    assert "from " + str(tmp_path / "local" / "mock.py") in done.stdout.decode()


def test_plugin_dir_that_is_not_there_is_told(site: Site, tmp_path: Path) -> None:
    missing = str(tmp_path / "nothere")
    done = site.run("--plugin-dir", missing, "plugins")
    assert done.returncode == 2
    assert missing in done.stderr.decode()
    found = site.plugins(env={"ACCEL_PLUGIN_DIR": missing})
    assert "cannot be read: No such file or directory" in found[missing]["reason"]


# plugins that are no good

HOOK = "import accel\n\n@accel.hookimpl\ndef {name}({arguments}):\n{body}\n"


def with_hook(body: str) -> str:
    """Return `ACCELERATOR` with another body of its hook."""
    return ACCELERATOR.replace("    register(Toy())\n", indent(body, "    ") + "\n")


BAD = {
    "import-error": ("import nothere", "cannot be imported: ModuleNotFoundError: No module named 'nothere' ({file}:1)"),
    "syntax": ("def x(:", "cannot be imported: SyntaxError: invalid syntax ({file}:1)"),
    "exits": ("import sys\nsys.exit('a script')", "cannot be imported: SystemExit: a script ({file}:2)"),
    "odd-base": ("class E(BaseException): pass\nraise E('x')", "cannot be imported: E: x ({file}:2)"),
    "two-lines": ("raise ValueError('one\\n  two')", "cannot be imported: ValueError: one two ({file}:1)"),
    "no-text": (
        "class E(Exception):\n    def __str__(self): raise KeyError\nraise E",
        "cannot be imported: E: its text cannot be had (KeyError) ({file}:3)",
    ),
    "no-hook": ("x = 1", "implements no hook; is this the right module?"),
    "no-mark": (
        ACCELERATOR.replace("@accel.hookimpl", ""),
        "accel_register_accelerators is not marked as a hook; put @accel.hookimpl before it",
    ),
    "unknown-hook": (
        HOOK.format(name="accel_register_device", arguments="register", body="    pass"),
        "breaks the hook contract: there is no hook 'accel_register_device'; did you mean 'accel_register_devices'?",
    ),
    "signature": (
        HOOK.format(name="accel_register_devices", arguments="registrar, other", body="    pass"),
        "accel_register_devices takes 'registrar' and 'other', which the hook does not give; it gives: register",
    ),
    "wrapper": (
        "import accel\n\n@accel.hookimpl(wrapper=True)\ndef accel_register_devices(register):\n    yield\n",
        "breaks the hook contract: accel_register_devices cannot be a wrapper",
    ),
    "hook-raises": (
        with_hook("raise RuntimeError('half way')"),
        "accel_register_accelerators failed: RuntimeError: half way ({file}:",
    ),
    "class": (with_hook("register(Toy)"), "Toy is a class; register an accelerator: Toy()"),
    "other-object": (
        with_hook("register(object())"),
        "an object of class object is no accelerator; derive its class from accel.Accelerator",
    ),
    "no-method": (
        ACCELERATOR.replace("    def create_vm", "    def create_vn"),
        "accel_register_accelerators failed: TypeError: Can't instantiate abstract class Toy with",
    ),
    "no-name": (ACCELERATOR.replace('name = "toy"', "nom = 1"), "an object of class Toy.name is None; it must be"),
    "bad-name": (ACCELERATOR.replace('"toy"', '"a,b"'), "an object of class Toy.name is 'a,b'; it must be"),
    "executes-text": (
        ACCELERATOR.replace('frozenset({"program"})', '"program"'),
        "executes is 'program'; it must be a frozenset, as frozenset({{'program'}})",
    ),
    "options": (
        ACCELERATOR.replace('"a toy"', '"a toy"\n    options = (1,)'),
        "its options hold 1, which is no accel.Option",
    ),
    "taken": (
        ACCELERATOR.replace('"toy"', '"mock"'),
        "accelerator 'mock' is registered by plugin 'mock' (from accel {version}) already; switch one of them off",
    ),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """All of `BAD` in one folder, with names that come after those of this project."""
    site = Site(tmp_path_factory.mktemp("bad") / "site")
    for case, (text, _) in BAD.items():
        site.install(f"accel-z-{case}", f"z-{case}", text)
    return site


@pytest.fixture(scope="module")
def listed(bad: Site) -> dict[str, dict[str, Any]]:
    return bad.plugins()


@pytest.mark.parametrize("case", BAD)
def test_plugin_that_is_bad_gives_one_line_that_names_it(
    bad: Site, listed: dict[str, dict[str, Any]], case: str
) -> None:
    found = listed[f"z-{case}"]
    path = bad.folder / f"accel_z_{case.replace('-', '_')}.py"
    assert found["state"] == "broken"
    assert found["reason"].startswith(f"plugin 'z-{case}' (from accel-z-{case} 1.5): ")
    assert BAD[case][1].format(file=path, version=accel.__version__) in found["reason"]
    assert "\n" not in found["reason"]


def test_plugins_that_are_bad_are_told_once_each_and_the_rest_works_on(
    bad: Site, listed: dict[str, dict[str, Any]]
) -> None:
    assert {one["state"] for name, one in listed.items() if not name.startswith("z-")} == {"in use"}
    table = bad.run("plugins")
    assert (table.returncode, table.stderr) == (0, b"")
    for one in listed.values():
        if one["reason"] is not None:
            assert table.stdout.decode().count(one["reason"]) == 1
    done = bad.run("list", "accelerators", "mock", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["accelerators"][0]["available"] is True
    done = bad.run("--help")
    assert (done.returncode, done.stderr) == (0, b"")


def test_plugins_of_one_name_are_told_and_the_first_is_in_use(site: Site) -> None:
    site.install("accel-a", "twice", ACCELERATOR)
    site.install("accel-b", "twice", ACCELERATOR.replace('"toy"', '"other"'))
    done = site.run("plugins", "--json")
    first, second = (one for one in json.loads(done.stdout)["plugins"] if one["name"] == "twice")
    assert (first["distribution"], first["state"], first["registered"]["accelerators"]) == (
        "accel-a",
        "in use",
        ["toy"],
    )
    assert (second["distribution"], second["state"]) == ("accel-b", "broken")
    assert second["reason"] == (
        "plugin 'twice' (from accel-b 1.5): the name is taken by accel-a 1.5; uninstall or rename one of them"
    )
    assert second["registered"] == {"accelerators": [], "devices": [], "loaders": []}


def test_plugin_that_is_broken_is_remembered_where_its_accelerator_is_missed(site: Site) -> None:
    site.install("accel-z", "z", "import nothere")
    path = site.folder / "w.toml"
    path.write_text("format = 1\nimage = {program = [{op = 'halt'}]}\n")
    done = site.run("run", str(path), "--accel", "toy")
    assert done.returncode == 2
    assert done.stderr.startswith(b"accelctl: no accelerator 'toy'; known are: ")
    assert done.stderr.endswith(b" (broken plugins: z; see accelctl plugins)\n")


# probes

LIMIT = {"ACCEL_PROBE_TIMEOUT": "1"}
PROBE = "    def probe(self):\n        return accel.Availability(True)\n"
PROBES = {
    "raises": ("raise OSError('no such device')", "its probe failed: OSError: no such device ({file}:"),
    "exits": ("raise SystemExit(3)", "its probe failed: SystemExit: 3 ({file}:"),
    "interrupts": ("raise KeyboardInterrupt", "its probe failed: KeyboardInterrupt ("),
    "wrong-type": ("return True", "its probe returned True, not an accel.Availability"),
    "wrong-fields": ("return accel.Availability('yes')", "its probe returned ok='yes' and reason=''"),
    "wrong-details": ("return accel.Availability(True, details=None)", "its probe returned details=None"),
    "wrong-set": ("return accel.Availability(True, capabilities=[1])", "its probe returned capabilities=[1]"),
    "sleeps": ("time.sleep(1000)", "its probe did not answer within 1 s; ACCEL_PROBE_TIMEOUT sets another limit"),
    "spins": ("while True: pass", "its probe did not answer within 1 s"),
}


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, dict[str, dict[str, Any]]]:
    """A folder with all of `PROBES`, and what ``accelctl list`` says of the accelerators."""
    site = Site(tmp_path_factory.mktemp("probes") / "site")
    for case, (body, _) in PROBES.items():
        text = ACCELERATOR.replace(PROBE, f"    def probe(self):\n        {body}\n")
        site.install(f"accel-z-{case}", f"z-{case}", text.replace('"toy"', f'"{case}"'))
    done = site.run("list", "accelerators", "--json", env=LIMIT)
    assert (done.returncode, done.stderr) == (0, b"")
    return site, {one["name"]: one for one in json.loads(done.stdout)["accelerators"]}


@pytest.mark.parametrize("case", PROBES)
def test_probe_that_is_bad_is_a_reason_that_names_the_plugin(
    probed: tuple[Site, dict[str, dict[str, Any]]], case: str
) -> None:
    site, found = probed
    path = site.folder / f"accel_z_{case.replace('-', '_')}.py"
    assert found[case]["available"] is False
    assert found[case]["reason"].startswith(
        f"plugin 'z-{case}' (from accel-z-{case} 1.5): {PROBES[case][1].format(file=path)}"
    )


def test_probes_that_are_bad_are_passed_over(probed: tuple[Site, dict[str, dict[str, Any]]]) -> None:
    site, found = probed
    assert found["mock"]["available"] is True
    (site.folder / "w.toml").write_text("format = 1\nimage = {program = [{op = 'halt'}]}\n")
    done = site.run("run", "w.toml", "--accel", ",".join(PROBES), env=LIMIT)
    assert done.returncode == ExitCode.NO_ACCELERATOR
    for case in PROBES:
        assert done.stderr.decode().count(f"  {case}: {found[case]['reason']}\n") == 1
    assert site.run("run", "w.toml", "--accel", "raises,spins,mock", env=LIMIT).returncode == 0


@pytest.mark.parametrize("limit", ["soon", "0", "-1", "nan", "inf"])
def test_probe_limit_that_is_no_time_is_a_usage_error(accelctl: Accelctl, limit: str) -> None:
    done = accelctl("list", env={"ACCEL_PROBE_TIMEOUT": limit})
    assert done.returncode == 2
    assert done.stderr.decode() == (
        f"accelctl: ACCEL_PROBE_TIMEOUT = '{limit}': must be a number of seconds, above 0\n"
    )


# errors of plugins while something runs


VCPU_THAT_RAISES = """
class ToyVcpu(accel.VcpuBackend):
    record, io_data = memoryview(bytearray(24)).cast("Q"), memoryview(bytearray(8))

    def load_program(self, program):
        pass

    def run(self):
        raise KeyError("own")

    def kick(self, thread_id):
        pass

    def close(self):
        pass


class ToyVm(accel.VmBackend):
    def memory_listener(self):
        return accel.MemoryListener()

    def create_vcpu(self, index):
        return ToyVcpu()

    def close(self):
        pass
"""


def run_toy(site: Site, more: str) -> tuple[str, list[str]]:
    """Run a guest on an accelerator with this text after it; return its path, and the lines on standard error."""
    text = ACCELERATOR.replace("raise NotImplementedError", "return ToyVm()")
    path = site.install("accel-z", "z", text + more)
    (site.folder / "w.toml").write_text("format = 1\nimage = {program = [{op = 'halt'}]}\n")
    done = site.run("run", str(site.folder / "w.toml"), "--accel", "toy")
    assert done.returncode == ExitCode.HOST_FAILED
    return str(path), done.stderr.decode().splitlines()


def test_accelerator_that_raises_in_a_run_is_named(site: Site) -> None:
    values = {"name": "toy", "package": "z", "distribution": "z", "version": "1"}
    text = next(text for path, text in scaffold(values) if path.name == "plugin.py")
    right, wrong = "        return next(self._steps, ExitKind.HALT)\n", "        raise ValueError(f'half way {1:#x}')\n"
    assert right in text
    path = site.install("accel-z", "z", text.replace(right, wrong))
    line = path.read_text().splitlines().index(wrong.rstrip()) + 1
    (site.folder / "w.toml").write_text("format = 1\nimage = {program = [{op = 'halt'}]}\n")
    done = site.run("run", "w.toml", "--accel", "toy")
    assert done.returncode == ExitCode.HOST_FAILED
    assert done.stderr.decode() == (
        f"accelctl: plugin 'z' (from accel-z 1.5): accelerator 'toy' failed: ValueError: half way 0x1 ({path}:{line}); "
        "to do without it: accelctl -p no:z, or ACCEL_BLOCK_PLUGINS=z\n"
    )


def test_accelerator_whose_vm_lacks_a_method_is_named(site: Site) -> None:
    text = ACCELERATOR.replace("raise NotImplementedError", "return ToyVm()")
    path = site.install("accel-z", "z", text + "\nclass ToyVm(accel.VmBackend):\n    pass\n")
    (site.folder / "w.toml").write_text("format = 1\nimage = {program = [{op = 'halt'}]}\n")
    done = site.run("run", "w.toml", "--accel", "toy")
    assert done.returncode == ExitCode.HOST_FAILED
    message = done.stderr.decode()
    assert message.startswith("accelctl: plugin 'z' (from accel-z 1.5): ")
    assert "TypeError: Can't instantiate abstract class ToyVm" in message
    assert f"({path}:" in message
    assert "Traceback" not in message
