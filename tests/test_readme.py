"""The README's examples are short, run as they stand one after the other, and print numbers."""

import re
import subprocess
import sys
from pathlib import Path


README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_examples_run(tmp_path):
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert all(len(example.splitlines()) <= 25 for example in examples)
    whole = "\n".join(examples)
    done = subprocess.run([sys.executable, "-c", whole], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert len(printed) == 4 and all(re.search(r"\d\.\d", line) for line in printed), done.stdout


def test_the_table_has_its_place():
    assert README.count("<!-- compare:begin -->") == README.count("<!-- compare:end -->") == 1
