"""Runs what a page of the documentation shows; a program of its own, so that each page has a fresh process.

Reads the steps as JSON from the file that it is given, runs them in order in the current folder, and writes what
each printed, as JSON, to the file beside it. Ends with 1 at the first block of Python that raises.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from edit_page import merged


def main(steps_path: str, results_path: str) -> int:
    """Run the steps; return the exit code."""
    sys.path.insert(0, os.getcwd())
    namespace: dict[str, Any] = {"__name__": "__main__"}
    results: list[dict[str, Any]] = []
    code = 0
    for step in json.loads(Path(steps_path).read_text(encoding="utf-8")):
        if step["kind"] == "file":
            target = Path(step["name"])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(step["text"], encoding="utf-8")
            results.append({})
        elif step["kind"] == "edit":
            target = Path(step["name"])
            target.write_text(merged(target.read_text(encoding="utf-8"), step["text"]), encoding="utf-8")
            results.append({})
        elif step["kind"] == "command":
            results.append(_command(step["text"]))
        else:
            results.append(_python(step, namespace))
            if results[-1]["code"]:
                code = 1
                break
    Path(results_path).write_text(json.dumps(results), encoding="utf-8")
    return code


def _command(text: str) -> dict[str, Any]:
    words = shlex.split(text, comments=True)
    if words[0] in ("export", "unset"):
        name, _, value = words[1].partition("=")
        os.environ.pop(name, None)
        if words[0] == "export":
            os.environ[name] = value
        return {"output": "", "code": 0}
    if words[0] == "python":
        words[0] = sys.executable
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, timeout=250, **both)
    return {"output": done.stdout.decode(errors="replace"), "code": done.returncode}


def _python(step: dict[str, Any], namespace: dict[str, Any]) -> dict[str, Any]:
    """Run a block with the process's standard output in a file, whoever writes to it and how."""
    sys.stdout.flush()
    kept = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            # The blank lines give each line the number that it has on the page.
            source = "\n" * (step["line"] - 1) + step["text"]
            exec(compile(source, step["page"], "exec"), namespace)
            code = 0
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
        file.seek(0)
        return {"output": file.read().decode(errors="replace"), "code": code}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
