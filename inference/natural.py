"""Natural-gradient steps of Gaussian families, from the gradients that any estimator of the ELBO gives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayes_sym._precision import full_precision
from bayes_sym.errors import OptionError

from .families import Family, PerSite
from .families.dense import DenseParams, triangle_of, triangular
from .families.matrix_normal import MatrixNormalParams
from .families.mean_field import MeanFieldParams


__all__ = ["NaturalGradient", "check_natural", "natural_step"]

_SMALLEST = 1e-8


class NaturalState(NamedTuple):
    """The running mean of the gradients with respect to means."""

    momentum: Any


@dataclass(frozen=True)
class NaturalGradient:
    """Steps along the natural gradient of a Gaussian q, in place of an optax optimiser.

    With D the precision of q, S its covariance and E the ELBO in nats, a step of rate r is

        D <- (1 - r) D + r D*,    D* = D - 2 dE/dS,        mean <- mean + m S dE/dmean    (S after the step)

    which is a coordinate-wise average in the natural parameters (Khan and Rue 2023). D* is -E[Hessian of the log joint]; it comes
    from the ordinary gradient with respect to a square root L of S, as L' D* L = 1 - sym(L' dE/dL), so the estimator is that of IVON
    (Shen et al. 2024) for a factorised q, its dense form for `FullGaussian` and `BlockGaussian`, and its Kronecker form for
    `MatrixNormal`. Every covariance stays positive: an eigenvalue of L' D* L below zero (noise, or a log joint that curves the
    wrong way) shrinks the precision by at most 4/(1 - r) in a step. On a linear-Gaussian model with ``hessian="exact"``, one step of rate
    1 is the exact posterior.

    Attributes:
        rate: r, between 0 and 1.
        mean_rate: m; None for the same as `rate`.
        momentum: of the gradients with respect to the means.
        hessian: ``"estimated"`` from gradients, or ``"exact"`` by one Hessian per draw (dense families of few weights only).
        max_step: the largest move of a mean, in standard deviations of q; longer moves are cut. None for no limit.
    """

    rate: float = 0.05
    mean_rate: float | None = None
    momentum: float = 0.0
    hessian: str = "estimated"
    max_step: float | None = None

    def __post_init__(self) -> None:
        for name in ("rate", "mean_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise OptionError(f"NaturalGradient({name}={value}) must be in (0, 1]: 1 jumps to the optimum of the local model")
        if not 0 <= self.momentum < 1:
            raise OptionError(f"NaturalGradient(momentum={self.momentum}) must be in [0, 1)")
        if self.hessian not in ("estimated", "exact"):
            raise OptionError(f"NaturalGradient(hessian={self.hessian!r}) must be 'estimated' or 'exact'")
        if self.max_step is not None and not self.max_step > 0:
            raise OptionError(f"NaturalGradient(max_step={self.max_step}) must be positive, or None")

    def init(self, params: Any) -> NaturalState:
        """No momentum yet."""
        return NaturalState(jax.tree.map(jnp.zeros_like, params))

    def update(self, gradient: Any, state: NaturalState, params: Any, curvature: Any = None) -> tuple[Any, NaturalState]:
        """The parameters after one step.

        Args:
            gradient: of -ELBO in nats with respect to the parameters.
            state: the momentum.
            params: the parameters.
            curvature: L' D* L per block of a dense family, measured; None to take it from the gradient.
        """
        momentum = jax.tree.map(lambda m, g: self.momentum * m + (1 - self.momentum) * g, state.momentum, gradient)
        if isinstance(params, dict):  # of PerSite
            moved = {i: natural_step(own, gradient[i], momentum[i], self, None) for i, own in params.items()}
        else:
            moved = natural_step(params, gradient, momentum, self, curvature)
        return moved, NaturalState(momentum)


def check_natural(optimizer: NaturalGradient, family: Family, params: Any) -> None:
    """Refuses families without a natural-gradient step."""
    members = family._members(params) if isinstance(family, PerSite) else [("", family)]
    for i, member in members:
        own = params[i] if isinstance(family, PerSite) else params
        if natural_step.dispatch(type(own)) is natural_step.dispatch(object):
            raise OptionError(
                f"NaturalGradient has no step for {type(member).__name__}: use an optax optimiser, or MeanField(), FullGaussian(), "
                "BlockGaussian() or MatrixNormal()"
            )
    if optimizer.hessian == "exact" and not isinstance(params, DenseParams):
        raise OptionError(
            "NaturalGradient(hessian='exact') needs FullGaussian() or BlockGaussian(), whose covariance it can fill"
        )


def _ratio(eigenvalue: jax.Array, rate: float) -> jax.Array:
    """The new precision over the old one: (1 - r) + r eigenvalue, bent below half of 1 - r so that it stays above a quarter."""
    least = max((1 - rate) / 2, _SMALLEST)
    straight = 1 - rate + rate * eigenvalue
    bent = least * jnp.exp(jnp.minimum(straight / least - 1, 0))
    return jnp.maximum(jnp.where(straight > least, straight, bent), least / 2)


def _cut(step: jax.Array, white: jax.Array, limit: float | None) -> jax.Array:
    """`step`, shortened coordinate by coordinate where `white` is longer than the limit."""
    return step if limit is None else step * jnp.minimum(1, limit / jnp.maximum(jnp.abs(white), 1e-30))


@singledispatch
def natural_step(params: Any, gradient: Any, momentum: Any, options: NaturalGradient, curvature: Any) -> Any:
    """The parameters after one step; `gradient` and `momentum` are of -ELBO in nats."""
    raise OptionError(f"NaturalGradient has no step for {type(params).__name__}")


@natural_step.register
def _factorised(
    params: MeanFieldParams, gradient: Any, momentum: Any, options: NaturalGradient, curvature: Any
) -> MeanFieldParams:
    mean, log_scale = {}, {}
    rate = options.rate if options.mean_rate is None else options.mean_rate
    for name, m in params.mean.items():
        # of -ELBO = E[-log joint] - sum log scale, so that scale^2 D* = 1 + gradient
        log_scale[name] = params.log_scale[name] - 0.5 * jnp.log(_ratio(1 + gradient.log_scale[name], options.rate))
        scale = jnp.exp(log_scale[name])
        step = rate * scale**2 * momentum.mean[name]
        mean[name] = m - _cut(step, step / scale, options.max_step)
    return MeanFieldParams(mean, log_scale)


@natural_step.register
@full_precision
def _dense(params: DenseParams, gradient: Any, momentum: Any, options: NaturalGradient, curvature: Any) -> DenseParams:
    means: dict[str, jax.Array] = {}
    triangles = []
    rate = options.rate if options.mean_rate is None else options.mean_rate
    for i, (layout, root) in enumerate(zip(params.layouts, params.roots, strict=True)):
        if curvature is None:
            inner = jnp.eye(layout.size, dtype=root.dtype) + _whitened_gradient(root, gradient.triangle[i])
        else:
            inner = curvature[i]
        new = _new_root(root, inner, options.rate)
        step = rate * (new @ (new.T @ layout.flatten(momentum.mean)))
        scale = jnp.sqrt((new**2).sum(axis=1))
        means |= layout.unflatten(layout.flatten(params.mean) - _cut(step, step / scale, options.max_step))
        triangles.append(triangle_of(new))
    return DenseParams({name: means[name] for name in params.mean}, tuple(triangles), params.layouts)


@natural_step.register
@full_precision
def _kronecker(
    params: MatrixNormalParams, gradient: Any, momentum: Any, options: NaturalGradient, curvature: Any
) -> MatrixNormalParams:
    mean, left, right = {}, {}, {}
    rate = options.rate if options.mean_rate is None else options.mean_rate
    for name, m in params.mean.items():
        before = triangular(params.left[name]), triangular(params.right[name])
        inputs, outputs = before[0].shape[0], before[1].shape[0]
        first = _whitened_gradient(before[0], gradient.left[name]) / outputs
        second = _whitened_gradient(before[1], gradient.right[name]) / inputs
        # both traces measure the scale of the product: the left factor alone follows it, or it would move twice
        second = second - jnp.trace(second) / outputs * jnp.eye(outputs, dtype=second.dtype)
        new = [
            _new_root(root, jnp.eye(root.shape[0], dtype=root.dtype) + inner, options.rate)
            for root, inner in zip(before, (first, second), strict=True)
        ]
        left[name], right[name] = triangle_of(new[0]), triangle_of(new[1])
        matrix = momentum.mean[name].reshape(inputs, outputs)
        step = rate * (new[0] @ (new[0].T @ matrix @ new[1]) @ new[1].T)
        scale = jnp.sqrt(jnp.outer((new[0] ** 2).sum(axis=1), (new[1] ** 2).sum(axis=1)))
        mean[name] = m - _cut(step, step / scale, options.max_step).reshape(m.shape)
    return MatrixNormalParams(mean, left, right)


def _whitened_gradient(root: jax.Array, triangle: jax.Array) -> jax.Array:
    """sym(L' dE/dL) from the gradient with respect to the triangle of L, whose diagonal is logarithmic.

    The gradient is L^-T times a symmetric matrix; the lower triangle of that matrix needs only the lower triangle of the gradient.
    """
    lower = jnp.tril(triangle, -1) + jnp.diag(jnp.diagonal(triangle) / jnp.diagonal(root))
    known = jnp.tril(root.T @ lower)
    return known + jnp.tril(known, -1).T


def _new_root(root: jax.Array, inner: jax.Array, rate: float) -> jax.Array:
    """A square root of the covariance after the step: root ((1 - r) + r inner)^-1/2."""
    values, vectors = jnp.linalg.eigh(inner)
    return root @ (vectors * (1 / jnp.sqrt(_ratio(values, rate)))[None])
