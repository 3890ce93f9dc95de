"""Importing the package: it allocates nothing, loads nothing heavy, lists its names, and imports point down."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import bayes_sym


ROOT = Path(__file__).parent.parent
ABOVE = {  # what each floor must not import
    "bayes_sym": {"models", "inference", "experiments"},
    "inference": {"models", "experiments"},
    "models": {"inference", "experiments"},
}


def test_importing_allocates_nothing_and_loads_nothing_heavy():
    script = (
        "import sys, jax, bayes_sym\n"
        "assert jax.live_arrays() == [], jax.live_arrays()\n"
        "heavy = {'arviz', 'matplotlib', 'sklearn', 'bayes_sym.inference', 'bayes_sym.models'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_public_names_are_listed_in_order_and_exist():
    assert list(bayes_sym.__all__) == sorted(bayes_sym.__all__)
    assert set(bayes_sym.__all__) == {
        "datasets",
        "diagnostics",
        "errors",
        "groups",
        "layers",
        "priors",
        "representations",
        "tap",
        "transforms",
    }
    assert all(hasattr(bayes_sym, name) for name in bayes_sym.__all__)
    assert bayes_sym.__version__ == importlib.metadata.version("bayes-sym")


@pytest.mark.parametrize("module", [bayes_sym.datasets, bayes_sym.diagnostics, bayes_sym.layers, bayes_sym.priors])
def test_rooms_list_their_names_in_order(module):
    tree = ast.parse(Path(module.__file__).read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    assert [node.module for node in imports] == sorted(node.module for node in imports)


def test_every_error_is_a_named_value_error():
    for name in bayes_sym.errors.__all__:
        expected = UserWarning if name.endswith("Warning") else bayes_sym.errors.BayesSymError
        assert issubclass(getattr(bayes_sym.errors, name), expected)
    assert issubclass(bayes_sym.errors.BayesSymError, ValueError)
    error = bayes_sym.errors.NonFiniteError("the loss is nan", step=7, sites=("net.0.weight",))
    assert (error.step, error.sites, str(error)) == (7, ("net.0.weight",), "the loss is nan")


@pytest.mark.parametrize("floor", ABOVE)
def test_imports_point_down(floor):
    files = [path for path in (ROOT / floor).rglob("*.py")]
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
            above = {part for name in names for part in name.split(".")} & ABOVE[floor]
            assert not above, f"{path.relative_to(ROOT)} imports from {sorted(above)}"


def test_the_compiler_adds_up():
    """jaxlib 0.10.2 does not: github.com/jax-ml/jax/issues/39103."""

    def squares(x):
        return jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(x)

    x = jnp.zeros((32_769, 3)).at[:, 0].set(jnp.arange(32_769.0))
    assert float(jax.jit(squares)(x)[-1]) == float(squares(x)[-1]) == 32_768.0**2
