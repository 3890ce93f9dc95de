"""Values on a pixel grid from values at a few anchors, by kernel regression: the basis of the sparse layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from .. import representations
from ..errors import GroupActionError, OptionError
from ..representations import Representation
from .layer import Field, Site, Weights


__all__ = ["Anchors", "Interpolation"]

Anchors: TypeAlias = int | tuple[tuple[float, float], ...]  # a number, or positions (y, x)

_LENGTHSCALE_SPREAD = 0.5  # standard deviation of a learned lengthscale's logarithm
_ANCHOR_SPREAD = 0.5  # standard deviation of a learned anchor's position, in pixels
_PLASTIC = 1.32471795724474602596  # the root of x^3 = x + 1: the golden ratio of two dimensions


@dataclass(frozen=True)
class Interpolation:
    """The linear map L from Z anchor values to the T values on a grid, values = L' u, by kernel regression:

        L = (K_ZZ + noise^2 I)^-1 K_ZT,     K(a, b) = exp(-|a - b|^2 / (2 lengthscale^2)).

    Positions are in pixels from the centre of the grid, so a grid of k pixels spans [-(k-1)/2, (k-1)/2]. A number of
    anchors is placed deterministically: on the grid itself if there is one per pixel; else, if the number is a square, on a
    lattice in the middle of equal cells of the grid; else along the additive recurrence of the plastic number (R2, Roberts
    2018), a low-discrepancy sequence. Anchors far apart compared with the lengthscale leave the pixels between them at zero.

    A fixed map is computed once, in float64. A learned lengthscale or learned positions are sample sites of kind
    ``"form"`` with priors of their own, LogNormal(log(lengthscale), 0.5) and Normal(positions, 0.5 pixels), and L is
    computed in jax, differentiably, by a Cholesky decomposition. In float32 that loses digits where anchors are close for
    their lengthscale: of 512 on 32 x 32 pixels the error is 1e-6 at a lengthscale of 1 and 4e-3 at 2.

    Attributes:
        grid: (height, width) in pixels.
        anchors: how many, or their positions, (y, x) each.
        lengthscale: in pixels.
        noise: standard deviation; where it is small the values pass through those at the anchors.
        learn_lengthscale: whether the lengthscale is a site.
        learn_anchors: whether the positions are a site.

    Raises:
        OptionError: an option out of its range, or anchors too close to be told apart in float64.
    """

    grid: tuple[int, int]
    anchors: Anchors
    lengthscale: float = 1.0
    noise: float = 0.01
    learn_lengthscale: bool = False
    learn_anchors: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchors", as_anchors(self.anchors))
        height, width = self.grid
        if isinstance(self.anchors, int) and not 1 <= self.anchors <= height * width:
            raise OptionError(
                f"anchors must be 1 to {height * width} for a grid of {height} x {width} pixels, got {self.anchors}: more would "
                "not make more filters. Give fewer, or use the layer without interpolation"
            )
        if not self.lengthscale > 0:
            raise OptionError(f"lengthscale must be positive, in pixels, got {self.lengthscale}")
        learns = self.learn_lengthscale or self.learn_anchors
        if not (self.noise > 0 or (self.noise == 0 and not learns)):
            raise OptionError(
                f"noise must be positive (or 0 where nothing is learned), got {self.noise}: it keeps the kernel matrix invertible "
                "when anchors meet. Use noise=0.01"
            )

    @property
    def count(self) -> int:
        """The number of anchors, Z."""
        return self.anchors if isinstance(self.anchors, int) else len(self.anchors)

    @property
    def learns(self) -> bool:
        """Whether the map depends on sites."""
        return self.learn_lengthscale or self.learn_anchors

    @property
    def lattice(self) -> tuple[int, int] | None:
        """(rows, columns) of anchors that stand on a symmetric lattice, else None."""
        if not isinstance(self.anchors, int):
            return None
        if self.anchors == math.prod(self.grid):
            return self.grid
        side = math.isqrt(self.anchors)
        return (side, side) if side * side == self.anchors and side <= min(self.grid) else None

    @cached_property
    def positions(self) -> np.ndarray:
        """Where the anchors are, or start: (Z, 2) in pixels from the centre."""
        if not isinstance(self.anchors, int):
            return np.array(self.anchors, float)
        if self.lattice is not None:
            return _cells(self.grid, self.lattice)
        steps = np.arange(1, self.anchors + 1)[:, None] / np.array([_PLASTIC, _PLASTIC**2])
        return ((0.5 + steps) % 1 - 0.5) * (np.array(self.grid) - 1)

    @property
    def matrix(self) -> np.ndarray:
        """L at the lengthscale and positions of the specification, float64 (Z, T)."""
        return _solved(self)

    @property
    def power(self) -> float:
        """The squared Frobenius norm of L: the sum of the grid values' variances for anchor values of variance 1."""
        return float((self.matrix**2).sum())

    def sites(self, prefix: str = "") -> tuple[Site, ...]:
        """What is learned: ``lengthscale`` () and ``anchors`` (Z, 2), after the prefix."""
        found = []
        if self.learn_lengthscale:
            prior = dist.LogNormal(math.log(self.lengthscale), _LENGTHSCALE_SPREAD)
            found.append(Site(f"{prefix}lengthscale", (), 1, "form", prior=prior))
        if self.learn_anchors:
            prior = dist.Normal(self.positions, _ANCHOR_SPREAD).to_event(2)
            found.append(Site(f"{prefix}anchors", (self.count, 2), 1, "form", prior=prior))
        return tuple(found)

    def at(self, weights: Weights, dtype: Any, prefix: str = "") -> jax.Array:
        """L (Z, T) at the values of its sites, if it has any."""
        if not self.learns:
            return jnp.asarray(self.matrix, dtype)
        lengthscale = weights[f"{prefix}lengthscale"] if self.learn_lengthscale else self.lengthscale
        anchors = weights[f"{prefix}anchors"] if self.learn_anchors else self.positions
        return _learned(jnp.asarray(anchors, dtype), jnp.asarray(lengthscale, dtype), self.grid, self.noise)

    def start(self, weights: Weights, prefix: str = "") -> dict[str, jax.Array]:
        """Values of the sites after a change of anchors: the lengthscale is kept, positions are the specification's."""
        found = {}
        if self.learn_lengthscale:
            found[f"{prefix}lengthscale"] = weights[f"{prefix}lengthscale"]
        if self.learn_anchors:
            old = weights[f"{prefix}anchors"]
            found[f"{prefix}anchors"] = jnp.asarray(self.positions, old.dtype)
        return found

    def action(self, what: str, field: Field) -> Representation:
        """How the group moves the anchors' values: as it moves the pixels of their lattice.

        Raises:
            GroupActionError: the anchors are learned, or not on a symmetric lattice.
        """
        if field.group.order == 1:
            return field.on_grid((self.count, 1))
        if self.lattice is None or self.learn_anchors:
            got = "learned anchors" if self.learn_anchors else f"{self.count} anchors off a lattice"
            raise GroupActionError(
                f"{what} has {got}, which {field.group.name} does not map to themselves: use a square number of anchors, fixed, "
                "e.g. anchors=4 and learn_anchors=False"
            )
        return field.on_grid(self.lattice)

    def form_representations(self, field: Field, prefix: str = "") -> dict[str, Representation]:
        """The action on the sites of the map itself: none, since the kernel depends on distances only."""
        return {
            site.name: representations.trivial(field.group, math.prod(site.shape)).reshape(*site.shape)
            for site in self.sites(prefix)
        }


def as_anchors(anchors: Any) -> Anchors:
    """A number of anchors, or positions as a tuple of pairs.

    Raises:
        OptionError: anything else.
    """
    if isinstance(anchors, (int, np.integer)) and not isinstance(anchors, bool):
        return int(anchors)
    try:
        positions = np.asarray(anchors, float)
    except (TypeError, ValueError):  # ragged, or no numbers
        positions = np.zeros(0)
    if positions.ndim != 2 or positions.shape[1] != 2 or not len(positions) or not np.isfinite(positions).all():
        raise OptionError(f"anchors must be a number, or positions (y, x) of shape (number, 2) in pixels, got {anchors!r}")
    return tuple((float(y), float(x)) for y, x in positions)


def refit(values: jax.Array, matrix: jax.Array) -> jax.Array:
    """The anchor values (Z, ...) whose grid values ``matrix' u`` are closest to `values` (T, ...) in least squares."""
    inverse = jnp.asarray(np.linalg.pinv(np.asarray(matrix, float).T), values.dtype)  # of numpy: jax compiles an SVD for seconds
    return jnp.tensordot(inverse, values, axes=1)


def _cells(window: tuple[int, int], lattice: tuple[int, int]) -> np.ndarray:
    """The centres of the rows x columns cells of a window, (cells, 2), in C order."""
    axes = [(np.arange(n) + 0.5) * size / n - size / 2 for size, n in zip(window, lattice, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def _squared_distances(a: Any, b: Any) -> Any:
    """(len(a), len(b)), of numpy or jax arrays."""
    return ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=-1)


@lru_cache(maxsize=64)
def _solved(interpolation: Interpolation) -> np.ndarray:
    """L in float64."""
    anchors, pixels = interpolation.positions, _cells(interpolation.grid, interpolation.grid)
    scale = -2 * interpolation.lengthscale**2
    near = np.exp(_squared_distances(anchors, anchors) / scale) + interpolation.noise**2 * np.eye(len(anchors))
    try:
        left = np.diagonal(np.linalg.cholesky(near)).min() ** 2  # the least variance that an anchor has, given those before it
    except np.linalg.LinAlgError:
        left = 0.0
    if left < 1e-13:
        raise OptionError(
            f"{interpolation.count} anchors cannot be told apart at lengthscale {interpolation.lengthscale} and noise "
            f"{interpolation.noise}: their kernel matrix is singular in float64. Use a shorter lengthscale, more noise, or anchors "
            "that are farther apart"
        )
    found = np.linalg.solve(near, np.exp(_squared_distances(anchors, pixels) / scale))
    found.setflags(write=False)
    return found


@partial(jax.jit, static_argnames=("grid", "noise"))
def _learned(anchors: jax.Array, lengthscale: jax.Array, grid: tuple[int, int], noise: float) -> jax.Array:
    """L at learned positions and lengthscale, in jax."""
    pixels, scale = jnp.asarray(_cells(grid, grid), anchors.dtype), -2 * lengthscale**2
    near = jnp.exp(_squared_distances(anchors, anchors) / scale) + noise**2 * jnp.eye(len(anchors), dtype=anchors.dtype)
    onto = jnp.exp(_squared_distances(anchors, pixels) / scale)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(near, lower=True), onto)
