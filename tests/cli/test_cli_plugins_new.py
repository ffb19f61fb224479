"""accelctl plugins new: what it writes installs, runs and conforms at once; a real environment, without a network."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import accel
from accel.cli.plugins_new import _LONGEST, scaffold, write

Accelctl = Callable[..., subprocess.CompletedProcess[bytes]]

#: Only what hangs takes so long; the whole suite in a process of its own takes a minute on a busy host.
pytestmark = pytest.mark.timeout(400)

ROOT = Path(accel.__file__).parent.parent
#: Where the modules are that this process uses.
PACKAGES = sysconfig.get_paths()["purelib"]


class Environment:
    """A virtual environment that has what this one has, and nothing of one's own yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "env", with_pip=False)
        self.python = folder / "env" / "bin" / "python"
        self.site = Path(self.output("-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
        # As a line of code, so that .pth files there are read too: this project may be installed by one.
        (self.site / "outer.pth").write_text(f"import site; site.addsitedir({PACKAGES!r})\n")

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python."""
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ACCEL_LOCKDEP")}
        return subprocess.run(
            [self.python, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=cwd or self.folder,
            env=environment,
            timeout=300,
            check=False,
        )

    def output(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Return what the environment's Python prints, which must succeed."""
        done = self.run(*arguments, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def accelctl(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "accel", *arguments)


def _missing() -> str:
    """Return what is missing to install a folder without a network, or an empty string."""
    if find_spec("pip") is None:
        return "pip"
    # What it makes of a folder by itself, since then.
    return "" if int(version("setuptools").partition(".")[0]) >= 71 else "setuptools 71 or later"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the plugin ``my-toy``: made with `accelctl plugins new`, and installed with pip."""
    if missing := _missing():
        assert "CI" not in os.environ, missing
        pytest.skip(f"needs {missing}")
    environment = Environment(tmp_path_factory.mktemp("made"))
    assert "my-toy" not in environment.accelctl("list").stdout
    environment.output("-m", "accel", "plugins", "new", "my-toy")
    # A copy: pip leaves a folder behind in what it builds.
    quiet = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    environment.output(*quiet, "install", "--no-index", "--no-deps", "--no-build-isolation", "./accel-my-toy")
    return environment


def test_plugin_that_was_made_is_listed_and_runs(made: Environment) -> None:
    (entry,) = json.loads(made.accelctl("list", "accelerators", "my-toy", "--json").stdout)["accelerators"]
    assert entry["available"] is True
    assert entry["distribution"] == "accel-my-toy 0.1.0"
    done = made.accelctl("run", "accel-my-toy/hello.toml")
    assert (done.returncode, done.stdout) == (0, "hello from my-toy\n")
    assert "ran on    my-toy, 1 vCPU" in done.stderr


def test_plugin_that_was_made_conforms(made: Environment) -> None:
    done = made.accelctl("conformance", "my-toy")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^my-toy conforms: 1\d\d passed", done.stdout, re.MULTILINE)


def test_plugin_that_was_made_runs_its_own_tests_and_the_suite_with_pytest_alone(made: Environment) -> None:
    folder = made.folder / "accel-my-toy"
    # Of the suite one group, since all of it has just run.
    text = made.output("-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", "runs_a_program or exits", cwd=folder)
    assert "tests/test_plugin.py::test_it_is_found_and_runs_a_program PASSED" in text
    assert re.search(r"::test_exits_out_gives_port_size_and_data\[my-toy.*\] PASSED", text)
    text = made.output("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=folder)
    assert re.search(r"^2 passed", text, re.MULTILINE)


#: A mistake → the test of the suite that finds it, with its group.
BUGS = {
    "an access is taken for one byte": (
        "is_out=True, size=size",
        "is_out=True, size=1",
        "exits",
        "out_gives_port_size",
    ),
    "a kick is kept": ("self._kicked = False\n", "self._kicked = True\n", "kicks", "are_taken_back_by_the_run"),
    "an access across two pages": (
        "if size > room:",
        "if size > PAGE_SIZE:",
        "memory",
        "across",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_plugin_with_a_bug_is_caught_by_the_name_of_the_rule(made: Environment, bug: str) -> None:
    right, wrong, group, rule = BUGS[bug]
    module = made.site / "accel_my_toy" / "plugin.py"
    text = module.read_text()
    assert text.count(right) == 1
    try:
        module.write_text(text.replace(right, wrong))
        done = made.accelctl("conformance", "my-toy", "--group", group, "--timeout", "1")
    finally:
        module.write_text(text)
    assert done.returncode == 1
    assert re.search(rf"^FAILED {group}: \w*{rule}", done.stdout, re.MULTILINE), done.stdout
    assert "my-toy does not conform" in done.stdout


def test_plugin_that_was_made_is_clean_to_ruff_and_mypy(made: Environment) -> None:
    folder = made.folder / "accel-my-toy"
    made.output("-m", "ruff", "check", "--no-cache", ".", cwd=folder)
    made.output("-m", "ruff", "format", "--no-cache", "--check", "accel_my_toy", "tests", cwd=folder)
    # By its path, since mypy reads no editable installs.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "accel_my_toy", "tests"],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


# what it writes

VALUES = {"name": "my-toy", "package": "accel_my_toy", "distribution": "accel-my-toy", "version": "0.1.0"}


def test_scaffold_stays_formatted_with_the_longest_name(tmp_path: Path) -> None:
    name = "x" * _LONGEST
    write(name, tmp_path / "it")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--no-cache", "--check", tmp_path / "it"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_scaffold_accelerator_is_a_short_lesson() -> None:
    files = {str(path): text for path, text in scaffold(VALUES)}
    text = files["accel_my_toy/plugin.py"]
    assert len(text.splitlines()) < 120
    assert sum(isinstance(node, ast.ClassDef) for node in ast.parse(text).body) == 3
    assert max(map(len, text.splitlines())) <= 120
    assert set(files) == {
        ".gitignore",
        "README.md",
        "accel_my_toy/__init__.py",
        "accel_my_toy/plugin.py",
        "accel_my_toy/py.typed",
        "hello.toml",
        "pyproject.toml",
        "tests/test_plugin.py",
    }
    assert not [path for path, text in files.items() if "$n" in text or "$p" in text]


@pytest.mark.parametrize("where", [".", "sub", "absolute"])
def test_new_writes_the_folder_and_says_what_is_next(accelctl: Accelctl, tmp_path: Path, where: str) -> None:
    folder = tmp_path / "sub dir" if where == "absolute" else tmp_path / where
    folder.mkdir(exist_ok=True)
    given = str(folder) if where == "absolute" else where
    done = accelctl("plugins", "new", "toy", *(() if where == "." else ("--dir", given)))
    assert (done.returncode, done.stderr) == (0, b"")
    target = {".": "./accel-toy", "sub": "./sub/accel-toy", "absolute": f"{folder}/accel-toy"}[where]
    text = done.stdout.decode()
    assert f"  pip install -e '{target}[test]'\n" in text
    hello = f"{target}/hello.toml"
    assert f"  accelctl run {repr(hello) if ' ' in hello else hello}\n" in text
    assert "accelctl conformance toy" in text
    assert (folder / "accel-toy" / "accel_toy" / "plugin.py").is_file()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Toy", "'Toy' cannot be a plugin's name: lower-case letters and digits, with '-' or '_' between"),
        ("1toy", "cannot be a plugin's name"),
        ("a/../b", "cannot be a plugin's name"),
        ("toy-", "cannot be a plugin's name"),
        ("to\u00fd", "cannot be a plugin's name"),
        ("x" * 31, "cannot be a plugin's name"),
        ("accel-toy", "leave out 'accel-', which the distribution gets: accelctl plugins new toy"),
        ("builtin", "stands for what is built in"),
        ("kvm", "the name is taken by plugin 'kvm' (from accel "),
        ("hvf-stub", "accel-hvf-stub, or a package accel_hvf_stub, is installed already"),
    ],
)
def test_new_name_that_cannot_be_is_refused(accelctl: Accelctl, tmp_path: Path, name: str, problem: str) -> None:
    done = accelctl("plugins", "new", name)
    assert done.returncode == 2
    assert problem in done.stderr.decode()
    assert list(tmp_path.iterdir()) == []


def test_new_overwrites_nothing(accelctl: Accelctl, tmp_path: Path) -> None:
    for path in (tmp_path / "accel-file", tmp_path / "accel-folder" / "mine"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for name in ("file", "folder"):
        done = accelctl("plugins", "new", name)
        assert done.returncode == 2
        assert done.stderr.decode() == f"accelctl: accel-{name} is there already; nothing was written\n"
    assert [str(one.relative_to(tmp_path)) for one in sorted(tmp_path.rglob("*"))] == [
        "accel-file",
        "accel-folder",
        "accel-folder/mine",
    ]
    done = accelctl("plugins", "new", "toy", "--dir", "nothere")
    assert done.returncode == 2
    assert b"nothere" in done.stderr


def test_new_that_cannot_be_written_leaves_nothing(accelctl: Accelctl, tmp_path: Path) -> None:
    shm = Path("/dev/full")
    assert shm.exists()
    done = subprocess.run(
        # The largest file that it may write.
        ["/bin/sh", "-c", f'ulimit -f 1; exec "{sys.executable}" -m accel plugins new toy'],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.decode() == "accelctl: accel-toy: File too large; nothing was kept\n"
    assert list(tmp_path.iterdir()) == []
