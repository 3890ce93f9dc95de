"""The wheel and the source distribution: complete, small, typed, and at work in a clean environment and another folder."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import bayes_sym


ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FLOORS = {"bayes_sym": "bayes_sym", "inference": "bayes_sym/inference", "models": "bayes_sym/models"}
FLOORS["experiments"] = "bayes_sym/experiments"


def run(*command, cwd, **environment):
    """Runs a command in another folder; returns what it printed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution of a copy of the repository, and the wheel that is built from it, not from the copy."""
    folder = tmp_path_factory.mktemp("source")
    copied = [*FLOORS, "tests", "notebooks", "docs", "benchmarks"]
    for name in copied:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(folder), cwd=out)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def environment(folder, wheel):
    """A new environment with the wheel and nothing else: its python and the folder of its packages."""
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--no-deps", "--no-index", str(wheel), cwd=folder)
    (packages,) = {path.parent for path in folder.rglob("bayes_sym") if path.is_dir()}
    return python, packages


def test_every_folder_of_the_packages_is_listed():
    folders = {
        ".".join([*target.split("/"), *init.parent.relative_to(ROOT / source).parts])
        for source, target in FLOORS.items()
        for init in (ROOT / source).rglob("__init__.py")
    }
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert set(listed) == folders, "list new folders under [tool.setuptools] packages in pyproject.toml"
    assert listed == sorted(listed)


def test_the_wheel_has_every_module_and_nothing_else(built):
    expected = {
        f"{target}/{path.relative_to(ROOT / source).as_posix()}"
        for source, target in FLOORS.items()
        for path in (ROOT / source).rglob("*.py")
    }
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        about = {name.split(".dist-info/")[1] for name in wheel.namelist() if ".dist-info/" in name}
    assert names == expected | {"bayes_sym/py.typed"}
    assert {"METADATA", "licenses/LICENSE", "entry_points.txt"} <= about


def test_the_source_distribution_has_what_it_takes(built):
    with tarfile.open(built[0]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "pyproject.toml"} <= names
    top = {name.split("/")[0] for name in names if "/" in name}
    assert top == {*FLOORS, "bayes_sym.egg-info"}  # no tests, notebooks, docs or benchmarks


def test_there_is_one_version():
    version = PROJECT["project"]["version"]
    assert bayes_sym.__version__ == version
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    found = [path for path in ROOT.glob("bayes_sym/**/*.py") if re.search(r"""["']\d+\.\d+\.\d+["']""", path.read_text())]
    assert not found, "the version stands in pyproject.toml only"


def test_the_citation_names_whom_it_should():
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    keys = [line.split(":")[0] for line in lines if re.match(r"\w", line)]
    assert {"cff-version", "message", "type", "title", "version", "license", "authors", "references"} <= set(keys)
    assert f"license: {PROJECT['project']['license']}" in lines
    for title in ("Learning Layer-wise", "Deep invariant networks", "Equivariance and Augmentation"):
        assert any(re.match(rf' +title: "{title}', line) for line in lines)
    assert not any("\t" in line or line.endswith(" ") for line in lines)


SMOKE = """
import sys
from pathlib import Path

import bayes_sym
import bayes_sym.models

assert Path(bayes_sym.__file__).is_relative_to(sys.prefix), bayes_sym.__file__
assert Path(bayes_sym.models.__file__).is_relative_to(sys.prefix)
loaded = {"arviz", "matplotlib", "sklearn", "pandas", "pooch", "requests"} & set(sys.modules)
assert not loaded, loaded

import importlib
import pkgutil

for module in pkgutil.walk_packages(bayes_sym.__path__, "bayes_sym."):
    if module.name != "bayes_sym.inference.audit":
        importlib.import_module(module.name)

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bayes_sym import datasets, groups, layers, representations
from bayes_sym.diagnostics import check_equivariance
from bayes_sym.inference import MAP, Problem, fit, predict

data = datasets.rings(40, 10, 10)
spec = layers.Dense(2, 1)


def model(x, y=None):
    net = layers.random_module("net", spec)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=net(x)[:, 0]), obs=y)


found = fit(Problem(model), MAP(), jax.random.key(0), *data.train, num_steps=5, progress=False)
assert predict(Problem(model), found, jax.random.key(1), data.test.x, num_draws=1).shape == (1, 10)
plane = representations.permutation(groups.cyclic(4), [[[1, 0], [-1, 1]]])
assert check_equivariance(layers.Dense(2, 2), groups.cyclic(4), input=plane, output=plane, key=jax.random.key(2))
print(bayes_sym.__version__)
"""


def test_the_installed_wheel_works_from_another_folder(built, tmp_path):
    (tmp_path / "environment").mkdir()
    python, packages = environment(tmp_path / "environment", built[1])
    # what it needs comes from this environment, as a path only: the editable install in there is not read
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    work = tmp_path / "work"
    (work / "models").mkdir(parents=True)  # folders of these names in a user's project are not ours
    (work / "inference.py").write_text("raise RuntimeError")
    (work / "smoke.py").write_text(SMOKE)
    assert run(str(python), "smoke.py", cwd=work).split() == [bayes_sym.__version__]
    assert "digits-c4" in run(str(python.parent / "bayes-sym"), "list", cwd=work)


USER = """
from bayes_sym import datasets, groups, layers, representations
from bayes_sym.inference import MAP, Problem


def plan(order: int) -> representations.Representation:
    group: groups.FiniteGroup = groups.cyclic(order)
    return representations.regular(group) + representations.trivial(group, 2)


net = layers.Sequential([layers.Dense(2, 4), layers.Activation("tanh")])
count: int = net.num_weights() + plan(4).dim + len(datasets.rings().train.x)
"""

WRONG = """
plan("four")
groups.cyclic(None)
layers.Dense("two", 4)
"""


def test_types_of_the_installed_wheel_are_seen(built, tmp_path):
    """A user's script passes; with wrong types in it, it does not: so the types are those of the package, not `Any`."""
    (tmp_path / "environment").mkdir()
    # the wheel without what it needs: reading the types of jax would take minutes
    python, _ = environment(tmp_path / "environment", built[1])
    mypy = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--cache-dir", "cache", "--strict"]
    (tmp_path / "user.py").write_text(USER)
    run(*mypy, "user.py", cwd=tmp_path)
    (tmp_path / "wrong.py").write_text(USER + WRONG)
    done = subprocess.run([*mypy, "wrong.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.count("[arg-type]") == 3, done.stdout + done.stderr


def test_extras_name_what_they_are_for():
    extras = PROJECT["project"]["optional-dependencies"]
    assert {"audit", "bench", "data", "dev", "docs", "notebooks"} <= set(extras)
    assert "bayes-sym[audit,data,docs]" in extras["dev"]  # what the tests use
