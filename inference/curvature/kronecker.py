"""Curvature of one weight matrix as a Kronecker product of two factors (KFAC)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym.errors import PriorError

from ..blocks import Block, Layout
from ..prior_parts import PriorPart
from .eigen import eigh, eigvalsh
from .pieces import Piece
from .spectrum import Spectrum, as_matrix


__all__ = ["Kronecker"]


@partial(jax.tree_util.register_dataclass, data_fields=["inputs", "outputs"], meta_fields=["layout", "transposed"])
@dataclass(frozen=True)
class Kronecker(Piece):
    """The curvature inputs (x) outputs of one weight (inputs, outputs), or (outputs, inputs) if `transposed`.

    Weights side by side have one factor each: (groups, inputs, inputs) and (groups, outputs, outputs).
    """

    layout: Layout
    inputs: jax.Array
    outputs: jax.Array
    transposed: bool

    def _variance(self, prior: PriorPart) -> jax.Array:
        if prior.variance is not None:
            return prior.variance
        if prior.variances is not None and not isinstance(prior.variances, jax.core.Tracer):
            values = np.asarray(prior.variances)
            if (values == values[0]).all():
                return prior.variances[0]
        raise PriorError(
            f"Kronecker curvature prices one scalar variance per site, and the prior of {list(self.layout.names)} is not of that kind: "
            "give it a scalar scale, as in dist.Normal(0, scale).expand(shape).to_event(), split it into pathways with a scale each, or "
            "use curvature='full' or 'block'"
        )

    def log_det_ratio(self, prior: PriorPart) -> jax.Array:
        """From eigenvalues only: their gradient is exact even where factors are rank-deficient."""
        a, b = (jnp.clip(eigvalsh(factor), 0) for factor in (self.inputs, self.outputs))
        return jnp.log1p(_outer(a, b) * self._variance(prior)).sum()

    def decrement(self, prior: PriorPart, gradient: jax.Array) -> jax.Array:
        """By an implicit solve of A X B + X / variance = gradient, whose derivative needs no eigenvectors."""
        shape = (*self.inputs.shape[:-1], self.outputs.shape[-1])
        matrix, precision = as_matrix(gradient, shape, self.transposed), 1 / self._variance(prior)
        a, left = eigh(self.inputs)
        b, right = eigh(self.outputs)
        spectrum = _outer(jnp.clip(a, 0), jnp.clip(b, 0)) + jax.lax.stop_gradient(precision)
        solution = jax.lax.custom_linear_solve(
            lambda x: self.inputs @ x @ self.outputs + precision * x,
            matrix,
            lambda _, right_side: left @ ((left.mT @ right_side @ right) / spectrum) @ right.mT,
            symmetric=True,
        )
        return (matrix * solution).sum()

    def settled(self, prior: PriorPart) -> Spectrum:
        """With the factors' eigenvalues in place of the factors."""
        a, left = eigh(self.inputs)
        b, right = eigh(self.outputs)
        return Spectrum(self.layout, _outer(jnp.clip(a, 0), jnp.clip(b, 0))[None], left, right, self.transposed)

    def posterior(self, prior: PriorPart, mean: jax.Array) -> Block:
        """Independent in the basis of the factors' eigenvectors."""
        self._variance(prior)
        return self.settled(prior).posterior(prior, mean)


def _outer(a: jax.Array, b: jax.Array) -> jax.Array:
    return a[..., :, None] * b[..., None, :]
