"""The Gaussian whose covariance is a few directions plus a diagonal, over all sites together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayes_sym._precision import full_precision
from bayes_sym.errors import OptionError
from bayes_sym.representations import Representation

from ..blocks import Layout
from ..prior_parts import PriorPart
from .factorised import moved, precision_diagonal, projected
from .family import Closedness, Family, Moments, Reps, Values, group_of
from .mean_field import check_scale, flat_normals


__all__ = ["LowRankGaussian", "LowRankParams"]


class LowRankParams(NamedTuple):
    """N(mean, U U' + diag(scale^2)); `factor` holds the columns of U by site, (rank, *shape)."""

    mean: Values
    log_scale: Values
    factor: Values


@dataclass(frozen=True)
class LowRankGaussian(Family):
    """N(mean, U U' + D) with U of a few columns and D diagonal.

    Attributes:
        rank: columns of U.
        init_scale: standard deviation of the diagonal part at the start; U starts at a tenth of it, in all directions.
    """

    rank: int = 4
    init_scale: float = 0.05

    def __post_init__(self) -> None:
        check_scale(self.init_scale)
        if self.rank < 1:
            raise OptionError(f"LowRankGaussian needs a rank of at least 1, got {self.rank}: MeanField() has none")

    def init(self, z: Values) -> LowRankParams:
        """Centred at `z`."""
        layout = Layout.of(z)
        dtype = jnp.result_type(*z.values())
        columns = jax.random.normal(jax.random.key(0), (self.rank, layout.size), dtype)  # any directions that differ
        factor = layout.unflatten(0.1 * self.init_scale * columns)
        return LowRankParams(dict(z), {n: jnp.full_like(v, math.log(self.init_scale)) for n, v in z.items()}, factor)

    def noise(self, key: jax.Array, params: LowRankParams, n: int) -> tuple[Values, jax.Array]:
        """Standard normals for the diagonal part and for the columns, in antithetic pairs if `n` is even."""
        key_scale, key_factor = jax.random.split(key)
        rank = next(iter(params.factor.values())).shape[0]
        dtype = jnp.result_type(*params.mean.values())
        columns = jax.random.normal(key_factor, (n if n % 2 else n // 2, rank), dtype)
        return flat_normals(key_scale, params.mean, n), columns if n % 2 else jnp.concatenate([columns, -columns])

    def sample(self, params: LowRankParams, noise: tuple[Values, jax.Array]) -> Values:
        """mean + scale * noise + U columns."""
        white, columns = noise
        return {
            name: mean + jnp.exp(params.log_scale[name]) * white[name] + jnp.tensordot(columns, params.factor[name], 1)
            for name, mean in params.mean.items()
        }

    def _flat(self, params: LowRankParams) -> tuple[jax.Array, jax.Array, jax.Array]:
        """mean (d,), log scale (d,), U' (rank, d)."""
        layout = Layout.of(params.mean)
        return layout.flatten(params.mean), layout.flatten(params.log_scale), layout.flatten(params.factor)

    def _inner(self, log_scale: jax.Array, factor: jax.Array) -> jax.Array:
        """The Cholesky factor of I + U' D^-1 U."""
        white = factor * jnp.exp(-log_scale)[None]
        return jnp.linalg.cholesky(jnp.eye(factor.shape[0], dtype=factor.dtype) + white @ white.T)

    @full_precision
    def log_prob(self, params: LowRankParams, values: Values) -> jax.Array:
        """By Woodbury's identity."""
        mean, log_scale, factor = self._flat(params)
        white = (Layout.of(params.mean).flatten(values) - mean) * jnp.exp(-log_scale)
        inner = self._inner(log_scale, factor)
        along = jax.scipy.linalg.solve_triangular(inner, (factor * jnp.exp(-log_scale)[None]) @ white, lower=True)
        log_det = log_scale.sum() + jnp.log(jnp.diagonal(inner)).sum()
        return -0.5 * ((white**2).sum() - (along**2).sum()) - log_det - 0.5 * white.size * math.log(2 * math.pi)

    @full_precision
    def entropy(self, params: LowRankParams) -> jax.Array:
        """log|D|/2 + log|I + U' D^-1 U|/2 + d log(2 pi e)/2."""
        _, log_scale, factor = self._flat(params)
        log_det = log_scale.sum() + jnp.log(jnp.diagonal(self._inner(log_scale, factor))).sum()
        return log_det + 0.5 * log_scale.size * (1 + math.log(2 * math.pi))

    @full_precision
    def kl(self, params: LowRankParams, other: LowRankParams) -> jax.Array:
        """(log|S'| - log|S| + tr(S'^-1 S) + gap' S'^-1 gap - d)/2, with Woodbury's identity for S'^-1."""
        mean, log_scale, factor = self._flat(params)
        mean_, log_scale_, factor_ = self._flat(other)
        inner_ = self._inner(log_scale_, factor_)
        white_ = factor_ * jnp.exp(-log_scale_)[None]

        def energy(rows: jax.Array) -> jax.Array:
            """The sum over rows r of r S'^-1 r'."""
            scaled = rows * jnp.exp(-log_scale_)[None]
            along = jax.scipy.linalg.solve_triangular(inner_, white_ @ scaled.T, lower=True)
            return (scaled**2).sum() - (along**2).sum()

        ratio = jnp.exp(2 * (log_scale - log_scale_))
        along = jax.scipy.linalg.solve_triangular(inner_, white_, lower=True)
        diagonal = ratio.sum() - (along**2 * ratio[None]).sum()
        gap = energy(jnp.concatenate([factor, (mean - mean_)[None]]))
        log_det = (log_scale_ - log_scale).sum()
        log_det = log_det + jnp.log(jnp.diagonal(inner_)).sum() - jnp.log(jnp.diagonal(self._inner(log_scale, factor))).sum()
        return log_det + 0.5 * (diagonal + gap - mean.size)

    def moments(self, params: LowRankParams) -> Moments:
        """The means and scale^2 + the squared columns."""
        variance = {
            name: jnp.exp(2 * log_scale) + (params.factor[name] ** 2).sum(axis=0) for name, log_scale in params.log_scale.items()
        }
        return Moments(params.mean, variance)

    def scatter(self, params: LowRankParams, name: str, part: PriorPart) -> jax.Array | None:
        """Of correlated priors with a known diagonal of the precision, too: the prior whitens the columns."""
        diagonal = precision_diagonal(part)
        if diagonal is None:
            return None
        columns = params.factor[name].reshape(params.factor[name].shape[0], -1)
        along = (jax.vmap(part.whiten)(columns + part.mean[None]) ** 2).sum()
        own = (jnp.exp(2 * params.log_scale[name].reshape(-1)) * diagonal).sum()
        return part.scatter(params.mean[name].reshape(-1)) + own + along

    def closedness(self, rep: Representation) -> Closedness:
        """Under signed permutations: columns move, the diagonal is permuted."""
        if not rep.is_monomial:
            return Closedness(False, False, False, "the diagonal part does not stay diagonal when coordinates are mixed")
        reason = "averages over the group multiply the rank by its order"
        return Closedness(True, False, False, reason)

    def push(self, params: LowRankParams, reps: Reps, g: int | jax.Array) -> LowRankParams:
        """mean -> rho mean, D -> rho D rho', U -> rho U."""
        return LowRankParams(
            moved(params.mean, reps, g, signed=True),
            moved(params.log_scale, reps, g, signed=False),
            jax.vmap(lambda column: moved(column, reps, g, signed=True))(params.factor),
        )

    def project(self, params: LowRankParams, reps: Reps) -> LowRankParams:
        """The mean projected and the covariance averaged over the group: |G| times as many columns, U_sym = [rho(g) U] / sqrt|G|."""
        order = group_of(reps).order
        factor = {}
        for name, columns in params.factor.items():
            orbit = jnp.broadcast_to(columns, (order, *columns.shape))
            if name in reps:
                orbit = reps[name].orbit(columns, tuple(range(1, columns.ndim)))
            factor[name] = orbit.reshape(-1, *columns.shape[1:]) / math.sqrt(order)
        variance = projected({n: jnp.exp(2 * s) for n, s in params.log_scale.items()}, reps, signed=False)
        log_scale = {name: 0.5 * jnp.log(value) for name, value in variance.items()}
        return LowRankParams(projected(params.mean, reps, signed=True), log_scale, factor)
