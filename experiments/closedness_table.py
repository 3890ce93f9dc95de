"""Which variational family is closed under which action, and a check of every claim by log-densities."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym import groups, representations
from bayes_sym.errors import ClosednessError
from bayes_sym.inference import (
    Beta,
    FullGaussian,
    Gamma,
    LogNormal,
    LowRankGaussian,
    MatrixNormal,
    MeanField,
    MeanFieldLaplace,
    closedness,
)
from bayes_sym.inference.families import Family
from bayes_sym.inference.families.averages import check_signs
from bayes_sym.representations import Representation


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ACTIONS", "FAMILIES", "closedness_rows", "draw_closedness"]


def _actions() -> dict[str, Representation]:
    third, quarter = groups.cyclic(3), groups.cyclic(4)
    turn = representations.matrix(third, [np.array([[-0.5, -np.sqrt(0.75)], [np.sqrt(0.75), -0.5]])])
    signed = representations.permutation(quarter, [np.array([[1, 0], [-1, 1]])])  # a quarter turn of the plane
    return {
        "permutation": representations.image(quarter, (2, 2)) * representations.trivial(quarter, 2),
        "signed": signed * representations.trivial(quarter, 2),
        "matrix": turn * representations.trivial(third, 2),
    }


ACTIONS = _actions()
"""Of each kind, one that acts on the inputs of a weight: pixels of filters, coordinates of the plane."""

FAMILIES: dict[str, Family] = {
    "MeanField": MeanField(0.5),
    "FullGaussian": FullGaussian(0.5),
    "MatrixNormal": MatrixNormal(0.5),
    "LowRankGaussian": LowRankGaussian(2, 0.5),
    "MeanFieldLaplace": MeanFieldLaplace(0.5),
    "LogNormal, constant signs": LogNormal(0.5),
    "LogNormal, random signs": LogNormal(0.5),
    "Gamma": Gamma(),
    "Beta": Beta(),
}
"""By name; the signs of a LogNormal are part of its parameters, and the same on every orbit or not."""

_LEVELS = ("push_forward", "log_affine", "moment")
_WORDS: dict[tuple[bool, ...], str] = {
    (True, True, True): "transforms and both means",
    (True, False, True): "transforms, moments",
    (True, False, False): "transforms only",
    (False, False, False): "not closed",
}


def closedness_rows(seed: int, draws: int = 4) -> list[dict[str, Any]]:
    """A row per family and action: the three levels, why one fails, and the largest error of a log-density where q moves.

    That error is |log q(theta) - log (g # q)(rho(g) theta)| over all g and `draws` draws theta of a q without symmetry, in float64.
    """
    with jax.enable_x64(True):
        return [row for name, family in FAMILIES.items() for row in _of_family(name, family, seed, draws)]


def _of_family(name: str, family: Family, seed: int, draws: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    levels = {kind: closedness(family, rep) for kind, rep in ACTIONS.items()}
    params = {
        kind: _without_symmetry(name, family, ACTIONS[kind].shape, generator)
        for kind, found in levels.items()
        if found.push_forward
    }
    errors = _push_errors(family, params, jax.random.key(seed), draws)
    rows = []
    for kind, found in levels.items():
        reason = _differing_signs(family, params[kind], ACTIONS[kind]) if kind in params else None
        holds = {level: bool(getattr(found, level)) and reason is None for level in _LEVELS}
        row = {"part": "closedness", "family": name, "under": kind, **holds}
        row["push_error"] = float(errors[kind]) if kind in params else None
        rows.append({**row, "reason": reason or found.reason or None})
    return rows


def _without_symmetry(name: str, family: Family, shape: tuple[int, ...], generator: np.random.Generator) -> Any:
    z = generator.standard_normal(shape)
    if family.support != "real":
        z = np.exp(z) if family.support == "positive" else 1 / (1 + np.exp(-z))
    if name == "LogNormal, constant signs":
        z = -np.abs(z)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * generator.standard_normal(leaf.shape), family.init({"w": jnp.asarray(z)}))
    return params._replace(sign=family.init({"w": jnp.asarray(z)}).sign) if isinstance(family, LogNormal) else params


def _differing_signs(family: Family, params: Any, rep: Representation) -> str | None:
    """Why the transforms of a LogNormal do not have its fixed signs."""
    try:
        check_signs(family, params, {"w": rep})
    except ClosednessError as error:
        return str(error)
    return None


@partial(jax.jit, static_argnames=("family", "draws"))
def _push_errors(family: Family, params: dict[str, Any], key: jax.Array, draws: int) -> dict[str, jax.Array]:
    """By kind of action; one program, since each by itself takes as long to compile."""
    found = {}
    for kind, q in params.items():
        rep = ACTIONS[kind]
        theta = jax.vmap(partial(family.sample, q))(family.noise(key, q, draws))
        here = jax.vmap(partial(family.log_prob, q))(theta)

        def error(g: jax.Array, rep: Representation = rep, q: Any = q, theta: Any = theta, here: jax.Array = here) -> jax.Array:
            law = partial(family.log_prob, family.push(q, {"w": rep}, g))
            return jnp.abs(jax.vmap(law)({"w": rep.transform(g, theta["w"])}) - here).max()

        found[kind] = jax.lax.map(error, jnp.arange(rep.group.order)).max()
    return found


def draw_closedness(rows: list[dict[str, Any]], figure: Figure) -> None:
    """A cell per family and action: dark where the transforms and both of their means stay in the family."""
    axes = figure.add_subplot()
    families, actions = list(FAMILIES), list(ACTIONS)
    found = {(row["family"], row["under"]): row for row in rows if row["part"] == "closedness"}
    held = np.array([[sum(found[f, a][level] for level in _LEVELS) for a in actions] for f in families], float)
    axes.imshow(held, cmap="Blues", vmin=0, vmax=4, aspect="auto")
    for i, family in enumerate(families):
        for j, action in enumerate(actions):
            levels = tuple(bool(found[family, action][level]) for level in _LEVELS)
            text = _WORDS.get(levels, ", ".join(level for level, holds in zip(_LEVELS, levels, strict=True) if holds))
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if held[i, j] > 2 else "0.25")
    axes.set_xticks(range(len(actions)), actions)
    axes.set_yticks(range(len(families)), families)
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(actions) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(families) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
