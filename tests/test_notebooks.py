"""Every notebook runs from top to bottom at its small size, says first what it is good for, and shows pictures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, quick_compiler):
    environment = {**os.environ, "SMOKE": "1", "MPLBACKEND": "Agg", "XLA_FLAGS": quick_compiler}
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_says_what_the_reader_will_be_able_to_do(path):
    source = path.read_text()
    first = re.split(r"^# %%.*$", source, flags=re.MULTILINE)[1]
    assert re.match(r"\n# # .+\n#\n# After this notebook you can ", first) and "SMOKE=1" in first.replace("\n# ", " ")
    assert "plt.show()" in source


def test_notebooks_are_numbered_without_a_gap():
    assert [path.stem[:3] for path in NOTEBOOKS] == [f"{i:02}_" for i in range(1, len(NOTEBOOKS) + 1)] and len(NOTEBOOKS) >= 8
