"""Optimisers that move some sites faster or slower than others, and let some stand still at first."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bayes_sym.errors import OptionError


__all__ = ["Pace", "paced"]


@dataclass(frozen=True)
class Pace:
    """How fast the sites of a pattern move.

    Attributes:
        sites: a pattern of site names, with ``*`` and ``?`` as in file names.
        rate: what the optimiser's updates are multiplied with; for Adam, the learning rate relative to that of the other sites.
        rest: steps for which they stand still at first.
    """

    sites: str
    rate: float = 1.0
    rest: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate < math.inf:
            raise OptionError(f"rate multiplies the updates of {self.sites!r}, so it must be 0 or positive, got {self.rate}")
        if not isinstance(self.rest, int) or self.rest < 0:
            raise OptionError(f"rest is a number of steps for which {self.sites!r} stand still, got {self.rest!r}")


class PacedState(NamedTuple):
    """The optimiser's state, and the number of steps taken."""

    optimizer: Any
    step: jax.Array


@lru_cache(maxsize=256)
def paced(optimizer: optax.GradientTransformation, *paces: Pace) -> optax.GradientTransformation:
    """The optimiser, with the updates of some sites multiplied; the first pace whose pattern matches a site counts.

    It serves every scheme that takes an optimiser: sites are found by name wherever they stand in what is optimised, also in the
    parameters of variational families that keep one array per site. Ranges of augmentation need this: while a net is
    untrained, the likelihood pushes them down, and a range that is small once does not come back
    (docs/decisions.md). So let them stand still until the net can tell what a range costs::

        MAP(paced(optax.adam(3e-3), Pace("*.magnitude", rate=7, rest=500)))

    The same arguments give the same object, so that schemes built twice are equal and compile once.

    Args:
        optimizer: of all sites.
        paces: for some of them.

    Raises:
        OptionError: when the first state is made, if a pattern matches no site.
    """

    def pace_of(path: Any) -> Pace | None:
        names = _names(path)
        return next((pace for pace in paces if any(fnmatch.fnmatchcase(name, pace.sites) for name in names)), None)

    def init(params: Any) -> PacedState:
        sites = [name for path, _ in jax.tree_util.tree_leaves_with_path(params) for name in _names(path)]
        for pace in paces:
            if not fnmatch.filter(sites, pace.sites):
                raise OptionError(f"no site that is optimised here matches {pace.sites!r}; there are {sorted(set(sites))}")
        return PacedState(optimizer.init(params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: PacedState, params: Any = None) -> tuple[Any, PacedState]:
        updates, inner = optimizer.update(updates, state.optimizer, params)

        def moved(path: Any, update: jax.Array) -> jax.Array:
            pace = pace_of(path)
            if pace is None:
                return update
            return jnp.where(state.step < pace.rest, 0.0, pace.rate).astype(update.dtype) * update

        return jax.tree_util.tree_map_with_path(moved, updates), PacedState(inner, state.step + 1)

    return optax.GradientTransformation(init, update)


def _names(path: Any) -> list[str]:
    return [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, str)]
