"""The documentation builds without a warning, has every public name, and all of its code and commands work."""

import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from bayes_sym.experiments import EXPERIMENTS
from bayes_sym.experiments.cli import app


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]  # their python runs in test_readme.py and test_extension.py
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^(?:    |\$ )((?:make|bayes-sym|python) .*)$", re.MULTILINE)


def hook(name):
    """A module that the build of the site uses."""
    sys.path.insert(0, str(DOCS / "hooks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def python_of(path):
    return [code for kind, code in BLOCK.findall(path.read_text()) if kind in ("python", "py")]


def commands_of(path):
    """Every command line of a page: those in shell blocks, and those that stand alone, indented."""
    text = path.read_text()
    lines = [
        line for kind, code in BLOCK.findall(text) if kind in ("shell", "bash", "console", "sh") for line in code.splitlines()
    ]
    lines += INDENTED.findall(BLOCK.sub("", text))
    lines += re.findall(r"`(bayes-sym [^`\n]*)`", BLOCK.sub("", text))
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if line.strip()]


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="the extra [docs] is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_without_a_warning(site):
    assert (site / "index.html").exists() and (site / "decisions" / "index.html").exists()
    assert not list(site.rglob("*.py")) and not (site / "hooks").exists()


def test_every_public_name_has_an_entry(site):
    reference, missing, count = hook("reference"), [], 0
    for package in reference.PACKAGES:
        html = (site / "reference" / package / "index.html").read_text()
        for name in reference.public_names(importlib.import_module(package)):
            count += 1
            if f'id="{reference.anchor(package, name)}"' not in html:
                missing.append(f"{package}.{name}")
    assert not missing and count > 200


def test_every_package_with_public_names_has_a_page():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    internal = {"bayes_sym.inference.curvature"}
    assert set(packages) - internal <= set(hook("reference").PACKAGES)


def test_every_notebook_has_a_tutorial(site):
    for path in (ROOT / "notebooks").glob("*.py"):
        html = (site / "tutorials" / path.stem / "index.html").read_text()
        assert hook("notebooks").title(path.read_text()).split(":")[0] in html


def test_the_reference_shows_arguments_errors_and_formulas():
    page = hook("reference").docstring(
        "One sentence with theta* and f(x)[0](1) < 2.\n\n    y = a * b\n\nArgs:\n    x, y: two arrays\n        of one shape.\n\n"
        "Returns:\n    Their *sum*.\n\nRaises:\n    ShapeError: other shapes.\n"
    )
    assert r"theta\*" in page and "&lt; 2" in page and r"]\(" in page and "    y = a * b" in page
    assert "- `x`, `y`: two arrays\n    of one shape." in page
    assert "**Returns**\n\nTheir \\*sum\\*." in page and "- `ShapeError`: other shapes." in page


# Notebooks as pages

NOTEBOOK = """# ---
# jupyter: header
# ---

# %% [markdown]
# # A title: of a notebook
#
# Text with `code`.

# %%
import matplotlib.pyplot as plt

print("seen", 1 + 1)

# %%
plt.plot([1, 2])
plt.show()
"""


def test_notebooks_become_pages_with_the_outputs_of_their_own_source(tmp_path):
    notebooks, path = hook("notebooks"), tmp_path / "99_test.py"
    path.write_text(NOTEBOOK)
    assert notebooks.title(NOTEBOOK) == "A title: of a notebook"
    assert [cell.is_text for cell in notebooks.cells(NOTEBOOK)] == [True, False, False]
    bare = notebooks.page(path, notebooks.outputs(path, tmp_path))
    assert bare.startswith("# A title: of a notebook\n\nText with `code`.") and "without outputs" in bare and "header" not in bare
    notebooks.run(path, tmp_path)
    full = notebooks.page(path, notebooks.outputs(path, tmp_path))
    assert "```text\nseen 2\n```" in full and "(99_test-2-0.png)" in full
    assert (tmp_path / "99_test" / "2-0.png").stat().st_size > 1000
    assert json.loads((tmp_path / "99_test" / "outputs.json").read_text())["cells"]["1"]["figures"] == []
    path.write_text(NOTEBOOK + "\nprint('changed')\n")
    assert notebooks.outputs(path, tmp_path) == {}


# The code on the pages


@pytest.mark.parametrize("path", [path for path in PAGES if python_of(path)], ids=name_of)
def test_the_code_of_a_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for code in python_of(path):
        exec(compile(code, name_of(path), "exec"), namespace)


def test_all_code_is_of_a_known_kind():
    kinds = {kind for path in [*PAGES, *GUIDES] for kind, _ in BLOCK.findall(path.read_text())}
    assert kinds <= {"python", "shell", "text"}  # anything else would not be run


@pytest.mark.parametrize("path", [path for path in [*PAGES, *GUIDES] if commands_of(path)], ids=name_of)
def test_the_commands_of_a_page_exist(path):
    for program, *arguments in commands_of(path):
        check = {"bayes-sym": check_bayes_sym, "make": check_make, "python": check_python, "mkdocs": check_mkdocs}.get(program)
        assert check is not None, f"an unknown program in {name_of(path)}: {program} {arguments}"
        check(arguments)


def check_bayes_sym(arguments):
    """Parses the command as the program would, without running it."""
    group = typer.main.get_command(app)
    if not arguments:
        return
    command = group.commands[arguments[0]]
    with command.make_context(arguments[0], list(arguments[1:])) as context:
        name = context.params.get("name")
        if name is not None:
            assert name in EXPERIMENTS, f"there is no experiment {name!r}"
            for option, known in (("task", EXPERIMENTS[name].tasks), ("group", EXPERIMENTS[name].groups)):
                assert context.params[option] is None or context.params[option] in known, f"{name} has no {option} of {arguments}"


def check_make(arguments):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [word for word in arguments if "=" not in word][0] in targets


def check_python(arguments):
    if arguments[:3] == ["-m", "pip", "install"]:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = [extra for word in arguments for extras in re.findall(r"\[(.*)\]", word) for extra in extras.split(",")]
        assert set(asked) <= set(known)
    else:
        assert (ROOT / arguments[0]).exists(), f"there is no {arguments[0]}"


def check_mkdocs(arguments):
    assert arguments[0] in ("build", "serve")


def test_every_experiment_is_in_the_map_of_the_papers():
    page = (DOCS / "papers.md").read_text()
    assert not [name for name in EXPERIMENTS if f"bayes-sym run {name}" not in page and f"bayes-sym compare {name}" not in page]


def test_commands_that_do_not_exist_are_found():
    with pytest.raises(AssertionError, match="no experiment"):
        check_bayes_sym(["run", "circles"])
    with pytest.raises(AssertionError, match="no task"):
        check_bayes_sym(["run", "quadrant", "--task", "octant"])
    with pytest.raises(Exception, match="(?i)no such option"):
        check_bayes_sym(["run", "digits-c4", "--sead", "1"])


# Links


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_what_a_guide_names_exists(path):
    named = re.findall(
        r"`((?:docs|notebooks|tests|benchmarks|inference|models|bayes_sym|experiments)/[\w./-]*\w)`", path.read_text()
    )
    assert named and not [name for name in named if not (ROOT / name).exists()]
