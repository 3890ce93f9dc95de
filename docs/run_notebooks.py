"""Runs notebooks at full size and keeps their outputs for the site: python docs/run_notebooks.py [01_first_model ...]."""

import subprocess
import sys
import time
from pathlib import Path


HOOKS = Path(__file__).parent / "hooks"
sys.path.insert(0, str(HOOKS))

import notebooks  # noqa: E402


for path in sorted(notebooks.SOURCES.glob("*.py")):
    if sys.argv[1:] and path.stem not in sys.argv[1:]:
        continue
    if not sys.argv[1:] and notebooks.outputs(path):
        print(f"{path.stem}: outputs are up to date")
        continue
    started = time.perf_counter()
    # in a process of its own: notebooks set options of jax
    subprocess.run([sys.executable, str(HOOKS / "notebooks.py"), str(path)], check=True)
    print(f"{path.stem}: {time.perf_counter() - started:.0f} s, outputs in {notebooks.CACHE / path.stem}")
