"""The page's example prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_readme_example_prints_what_it_shows():
    found = re.search(r"```python\n(.*?)```\n\nIt prints:\n\n```text\n(.*?)```", README.read_text(), re.S)
    assert found
    done = subprocess.run([sys.executable, "-c", found[1]], capture_output=True, text=True, check=True)
    assert done.stdout == found[2]
