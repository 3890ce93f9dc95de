"""The matrix-normal Gaussian: for every weight matrix, one covariance of its inputs times one of its outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym._precision import full_precision
from bayes_sym.errors import ClosednessError
from bayes_sym.representations import Representation

from .dense import triangle_of, triangular
from .family import Closedness, Family, Moments, Reps, Values
from .mean_field import check_scale, flat_normals


__all__ = ["MatrixNormal", "MatrixNormalParams", "kronecker_factors"]


class MatrixNormalParams(NamedTuple):
    """Per site, mean + L Z R' with Z standard normal: W (inputs, outputs) has covariance (L L') x (R R').

    `left` and `right` hold L and R below the diagonal and the logs of their diagonals on it.
    """

    mean: Values
    left: Values
    right: Values


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """A site's (inputs, outputs): its last axis counts outputs; a bias has one input."""
    return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)


@dataclass(frozen=True)
class MatrixNormal(Family):
    """Independent sites, each with a Kronecker-factored covariance, as a KFAC posterior has.

    A site's last axis counts outputs and the others inputs (a filter's pixels and channels), as in the taps of our layers.

    Attributes:
        init_scale: standard deviation at the start.
    """

    init_scale: float = 0.05

    def __post_init__(self) -> None:
        check_scale(self.init_scale)

    def init(self, z: Values) -> MatrixNormalParams:
        """Centred at `z`, with independent coordinates."""
        half = 0.5 * math.log(self.init_scale)
        left = {name: half * jnp.eye(_matrix(v.shape)[0], dtype=v.dtype) for name, v in z.items()}
        right = {name: half * jnp.eye(_matrix(v.shape)[1], dtype=v.dtype) for name, v in z.items()}
        return MatrixNormalParams(dict(z), left, right)

    def noise(self, key: jax.Array, params: MatrixNormalParams, n: int) -> Values:
        """Standard normals."""
        return flat_normals(key, params.mean, n)

    def sample(self, params: MatrixNormalParams, noise: Values) -> Values:
        """mean + L noise R'."""
        values = {}
        for name, mean in params.mean.items():
            left, right = triangular(params.left[name]), triangular(params.right[name])
            values[name] = mean + (left @ noise[name].reshape(_matrix(mean.shape)) @ right.T).reshape(mean.shape)
        return values

    def _white(self, params: MatrixNormalParams, name: str, gap: jax.Array) -> jax.Array:
        """L^-1 gap R^-T."""
        solve = jax.scipy.linalg.solve_triangular
        half = solve(triangular(params.left[name]), gap.reshape(_matrix(gap.shape)), lower=True)
        return solve(triangular(params.right[name]), half.T, lower=True).T

    def _log_det(self, params: MatrixNormalParams, name: str) -> jax.Array:
        inputs, outputs = params.left[name].shape[0], params.right[name].shape[0]
        return outputs * jnp.trace(params.left[name]) + inputs * jnp.trace(params.right[name])

    @full_precision
    def log_prob(self, params: MatrixNormalParams, values: Values) -> jax.Array:
        """By two triangular solves per site."""
        total = jnp.zeros(())
        for name, mean in params.mean.items():
            white = self._white(params, name, values[name] - mean)
            total = total - 0.5 * (white**2).sum() - self._log_det(params, name) - 0.5 * mean.size * math.log(2 * math.pi)
        return total

    @full_precision
    def entropy(self, params: MatrixNormalParams) -> jax.Array:
        """outputs log|L| + inputs log|R| + d log(2 pi e)/2 per site."""
        terms = (self._log_det(params, n) + 0.5 * m.size * (1 + math.log(2 * math.pi)) for n, m in params.mean.items())
        return sum(terms, jnp.zeros(()))

    @full_precision
    def kl(self, params: MatrixNormalParams, other: MatrixNormalParams) -> jax.Array:
        """tr(D' S) factorises into one trace per side."""
        solve = jax.scipy.linalg.solve_triangular
        total = jnp.zeros(())
        for name, mean in params.mean.items():
            left = solve(triangular(other.left[name]), triangular(params.left[name]), lower=True)
            right = solve(triangular(other.right[name]), triangular(params.right[name]), lower=True)
            gap = self._white(other, name, mean - other.mean[name])
            energy = (left**2).sum() * (right**2).sum() + (gap**2).sum() - mean.size
            total = total + self._log_det(other, name) - self._log_det(params, name) + 0.5 * energy
        return total

    def moments(self, params: MatrixNormalParams) -> Moments:
        """The means and the products of the factors' diagonals."""
        variance = {}
        for name, mean in params.mean.items():
            inputs, outputs = ((triangular(factor[name]) ** 2).sum(axis=1) for factor in (params.left, params.right))
            variance[name] = jnp.outer(inputs, outputs).reshape(mean.shape)
        return Moments(params.mean, variance)

    def closedness(self, rep: Representation) -> Closedness:
        """Under actions that are themselves an action on the inputs times one on the outputs."""
        if kronecker_factors(rep, _matrix(rep.shape)) is None:
            reason = "the action does not factor into one on the inputs and one on the outputs: use BlockGaussian()"
            return Closedness(False, False, False, reason)
        reason = "a mean of Kronecker products is no Kronecker product; the factors can be averaged one by one"
        return Closedness(True, False, False, reason)

    def push(self, params: MatrixNormalParams, reps: Reps, g: int | jax.Array) -> MatrixNormalParams:
        """mean -> rho mean, L -> rho_in L, R -> rho_out R."""
        mean, left, right = dict(params.mean), dict(params.left), dict(params.right)
        for name, rep in reps.items():
            inputs, outputs = _factors(rep)
            mean[name] = rep.act(g, mean[name], tuple(range(mean[name].ndim)))
            left[name] = triangle_of(jnp.asarray(inputs, mean[name].dtype)[g] @ triangular(left[name]))
            right[name] = triangle_of(jnp.asarray(outputs, mean[name].dtype)[g] @ triangular(right[name]))
        return MatrixNormalParams(mean, left, right)

    def project(self, params: MatrixNormalParams, reps: Reps) -> MatrixNormalParams:
        """The mean projected; each factor of the covariance averaged over the group: invariant, but not the closest in KL."""
        mean, left, right = dict(params.mean), dict(params.left), dict(params.right)
        for name, rep in reps.items():
            inputs, outputs = _factors(rep)
            mean[name] = rep.project(mean[name], tuple(range(mean[name].ndim)))
            for factor, mats in ((left, inputs), (right, outputs)):
                orbit = jnp.asarray(mats, mean[name].dtype) @ triangular(factor[name])[None]
                lower = jnp.linalg.cholesky((orbit @ orbit.mT).mean(axis=0))
                factor[name] = jnp.tril(lower, -1) + jnp.diag(jnp.log(jnp.diagonal(lower)))
        return MatrixNormalParams(mean, left, right)


def _factors(rep: Representation) -> tuple[np.ndarray, np.ndarray]:
    found = kronecker_factors(rep, _matrix(rep.shape))
    if found is None:
        raise ClosednessError(
            f"MatrixNormal is not closed under {rep}: the action does not factor into one on inputs and one on outputs"
        )
    return found


def kronecker_factors(rep: Representation, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | None:
    """The matrices (order, inputs, inputs) and (order, outputs, outputs) whose Kronecker product `rep` is, or None.

    Each side is known up to sign: those of the outputs have determinant 1 or -1, so covariances can be averaged on either side.
    """
    inputs, outputs = shape
    if rep.source is not None:
        right = rep.source[:, :outputs] % outputs
        left = rep.source[:, ::outputs] // outputs
        if not np.array_equal(rep.source, (left[:, :, None] * outputs + right[:, None, :]).reshape(len(left), -1)):
            return None
        sign = np.ones(rep.source.shape) if rep.sign is None else rep.sign
        sign_left, sign_right = sign[:, ::outputs] * sign[:, :1], sign[:, :outputs]
        if not np.array_equal(sign, (sign_left[:, :, None] * sign_right[:, None, :]).reshape(len(left), -1)):
            return None
        return _monomial(left, sign_left), _monomial(right, sign_right)
    pieces = rep.matrices().reshape(-1, inputs, outputs, inputs, outputs)
    lefts, rights = [], []
    for piece in pieces:  # piece[i, o, j, p] = left[i, j] right[o, p]
        i, j = np.unravel_index(np.abs(piece).sum(axis=(1, 3)).argmax(), (inputs, inputs))
        right = piece[i, :, j]
        log_volume = np.linalg.slogdet(right)[1]
        if not np.isfinite(log_volume):
            return None  # a factor of an invertible matrix is invertible
        right = right / np.exp(log_volume / outputs)
        left = np.einsum("iojp,po->ij", piece, np.linalg.inv(right)) / outputs
        if not np.allclose(np.einsum("ij,op->iojp", left, right), piece, atol=1e-6):
            return None
        lefts.append(left)
        rights.append(right)
    return np.stack(lefts), np.stack(rights)


def _monomial(source: np.ndarray, sign: np.ndarray) -> np.ndarray:
    dense = np.zeros((*source.shape, source.shape[1]))
    g, i = np.indices(source.shape)
    dense[g, i, source] = sign
    return dense
