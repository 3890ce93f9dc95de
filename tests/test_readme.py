"""The README's example is short, runs as it stands, and prints numbers."""

import re
import subprocess
import sys
from pathlib import Path


README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.splitlines()) <= 25
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert len(printed) == 3 and all(re.search(r"\d\.\d", line) for line in printed), done.stdout


def test_the_table_has_its_place():
    assert README.count("<!-- compare:begin -->") == README.count("<!-- compare:end -->") == 1
