"""Gaussian blocks: how a posterior holds the covariance of one group of sites (dense, Kronecker or diagonal)."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .prior_parts import PriorPart, gaussian_part


__all__ = ["Block", "DenseBlock", "DiagonalBlock", "KroneckerBlock", "Layout", "WhitenedBlock"]

Values = dict[str, jax.Array]


class Layout(NamedTuple):
    """Which sites a flat vector holds: names and shapes, in order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, values: Values, names: tuple[str, ...] | None = None) -> Layout:
        """The layout of `values`, or of some of them."""
        names = tuple(values) if names is None else names
        return cls(names, tuple(values[name].shape for name in names))

    @property
    def size(self) -> int:
        """The length of the vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    def flatten(self, values: Values) -> jax.Array:
        """One vector (..., size) from the sites' values (..., *shape)."""
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            batch = values[name].shape[: values[name].ndim - len(shape)]
            parts.append(values[name].reshape(*batch, math.prod(shape)))
        return jnp.concatenate(parts, axis=-1)

    def unflatten(self, vector: jax.Array) -> Values:
        """The sites' values (..., *shape) from one vector (..., size)."""
        values, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            size = math.prod(shape)
            values[name] = vector[..., start : start + size].reshape(*vector.shape[:-1], *shape)
            start += size
        return values


class Block(abc.ABC):
    """A Gaussian over some sites, in unconstrained coordinates."""

    layout: Layout

    @abc.abstractmethod
    def sample(self, key: jax.Array, n: int) -> Values:
        """`n` draws."""

    @abc.abstractmethod
    def log_prob(self, z: Values) -> jax.Array:
        """The log-density at `z`, which may hold other sites too."""

    @abc.abstractmethod
    def center(self) -> Values:
        """The mean by site."""

    @abc.abstractmethod
    def half(self, rows: jax.Array) -> jax.Array:
        """`rows` (..., size) times a square root of the covariance: H (..., size) with H H' = rows covariance rows'."""

    @abc.abstractmethod
    def left_open(self, priors: Mapping[str, PriorPart]) -> dict[str, jax.Array]:
        """tr(D covariance) of every site with a prior of precision D here: the number of directions the data leave open."""


def _standard_normal(whitened: jax.Array, log_det_scale: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(whitened**2) - 0.5 * whitened.size * math.log(2 * math.pi) - log_det_scale


@partial(jax.tree_util.register_dataclass, data_fields=["mean", "root"], meta_fields=["layout"])
@dataclass(frozen=True)
class DenseBlock(Block):
    """N(mean, root root') over one flat vector.

    Attributes:
        layout: the sites.
        mean: (size,).
        root: any square root of the covariance, (size, size).
    """

    layout: Layout
    mean: jax.Array
    root: jax.Array

    def sample(self, key: jax.Array, n: int) -> Values:
        """mean + root z, z standard normal."""
        z = jax.random.normal(key, (n, self.mean.size), self.mean.dtype)
        return self.layout.unflatten(self.mean[None] + z @ self.root.T)

    def log_prob(self, z: Values) -> jax.Array:
        """By one LU factorisation of the root."""
        whitened = jnp.linalg.solve(self.root, self.layout.flatten(z) - self.mean)
        return _standard_normal(whitened, jnp.linalg.slogdet(self.root)[1])

    def center(self) -> Values:
        """The mean by site."""
        return self.layout.unflatten(self.mean)

    def half(self, rows: jax.Array) -> jax.Array:
        """rows root."""
        return rows @ self.root

    def left_open(self, priors: Mapping[str, PriorPart]) -> dict[str, jax.Array]:
        """From the rows of the root that belong to each site."""
        ends = np.cumsum([math.prod(shape) for shape in self.layout.shapes])
        roots = zip(self.layout.names, jnp.split(self.root, ends[:-1]), strict=True)
        found = {}
        for name, root in roots:
            if name in priors:
                columns = root.T + priors[name].mean[None]
                found[name] = (jax.vmap(priors[name].whiten)(columns) ** 2).sum()
        return found


@partial(jax.tree_util.register_dataclass, data_fields=["mean", "scale"], meta_fields=["layout"])
@dataclass(frozen=True)
class DiagonalBlock(Block):
    """Independent coordinates.

    Attributes:
        layout: the sites.
        mean: (size,).
        scale: standard deviations, (size,).
    """

    layout: Layout
    mean: jax.Array
    scale: jax.Array

    def sample(self, key: jax.Array, n: int) -> Values:
        """mean + scale z, z standard normal."""
        z = jax.random.normal(key, (n, self.mean.size), self.mean.dtype)
        return self.layout.unflatten(self.mean[None] + self.scale[None] * z)

    def log_prob(self, z: Values) -> jax.Array:
        """The sum over coordinates."""
        return _standard_normal((self.layout.flatten(z) - self.mean) / self.scale, jnp.log(self.scale).sum())

    def center(self) -> Values:
        """The mean by site."""
        return self.layout.unflatten(self.mean)

    def half(self, rows: jax.Array) -> jax.Array:
        """rows * scale."""
        return rows * jnp.broadcast_to(self.scale, rows.shape)

    def left_open(self, priors: Mapping[str, PriorPart]) -> dict[str, jax.Array]:
        """Ratios of variances, summed."""
        found = {}
        for name, scale in self.layout.unflatten(self.scale).items():
            variances = priors[name].variances if name in priors else None
            if variances is not None:
                found[name] = (scale.reshape(-1) ** 2 / variances).sum()
        return found


@partial(jax.tree_util.register_dataclass, data_fields=["mean", "left", "right", "scale"], meta_fields=["layout", "transposed"])
@dataclass(frozen=True)
class KroneckerBlock(Block):
    """One weight matrix, or several side by side (then all arrays have an axis of groups in front), in the basis left (x) right.

    Attributes:
        layout: the one site.
        mean: (inputs, outputs).
        left: orthonormal columns (inputs, inputs).
        right: orthonormal columns (outputs, outputs).
        scale: standard deviations in that basis, where entries are independent, (inputs, outputs).
        transposed: whether the site holds (outputs, inputs).
    """

    layout: Layout
    mean: jax.Array
    left: jax.Array
    right: jax.Array
    scale: jax.Array
    transposed: bool

    def sample(self, key: jax.Array, n: int) -> Values:
        """mean + left (scale * z) right', z standard normal."""
        z = self.scale[None] * jax.random.normal(key, (n, *self.mean.shape), self.mean.dtype)
        draws = self.mean[None] + jnp.einsum("...ia,n...ab,...ob->n...io", self.left, z, self.right)
        flat = jnp.swapaxes(draws, -1, -2) if self.transposed else draws
        return self.layout.unflatten(flat.reshape(n, -1))

    def log_prob(self, z: Values) -> jax.Array:
        """By rotating into the basis."""
        centred = self._matrices(self.layout.flatten(z)) - self.mean
        rotated = jnp.einsum("...ia,...io,...ob->...ab", self.left, centred, self.right)
        return _standard_normal(rotated / self.scale, jnp.log(self.scale).sum())

    def center(self) -> Values:
        """The mean by site."""
        return self.layout.unflatten((self.mean.mT if self.transposed else self.mean).reshape(-1))

    def half(self, rows: jax.Array) -> jax.Array:
        """By rotating every row into the basis, where coordinates are independent."""
        flat = self._matrices(rows.reshape(-1, rows.shape[-1]))
        rotated = jnp.einsum("...ia,n...io,...ob->n...ab", self.left, flat, self.right)
        return (rotated * self.scale[None]).reshape(rows.shape)

    def left_open(self, priors: Mapping[str, PriorPart]) -> dict[str, jax.Array]:
        """The prior's variance is one number, the same in every basis."""
        name = self.layout.names[0]
        variance = priors[name].variance if name in priors else None
        return {} if variance is None else {name: (self.scale**2).sum() / variance}

    def _matrices(self, vectors: jax.Array) -> jax.Array:
        """The site's matrices from its flat values (..., size)."""
        shape = (self.mean.mT if self.transposed else self.mean).shape
        matrices = vectors.reshape(*vectors.shape[:-1], *shape)
        return jnp.swapaxes(matrices, -1, -2) if self.transposed else matrices


@partial(jax.tree_util.register_dataclass, data_fields=["mean", "whitened", "prior"], meta_fields=[])
@dataclass(frozen=True)
class WhitenedBlock(Block):
    """mean + L y, with L the root of a correlated prior's covariance and y a block of its own.

    Attributes:
        mean: (size,).
        whitened: the distribution of y, with mean zero.
        prior: the distribution that L belongs to.
    """

    mean: jax.Array
    whitened: KroneckerBlock
    prior: Any

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        """The one site."""
        return self.whitened.layout

    @property
    def _part(self) -> PriorPart:
        part = gaussian_part(self.prior, self.layout.shapes[0])
        assert part is not None
        return part

    def sample(self, key: jax.Array, n: int) -> Values:
        """mean + L y."""
        y = self.layout.flatten(self.whitened.sample(key, n))
        return self.layout.unflatten(self.mean[None] + self._part.root(y))

    def log_prob(self, z: Values) -> jax.Array:
        """That of y, less log |L|."""
        part = self._part
        y = part.whiten(self.layout.flatten(z)) - part.whiten(self.mean)
        return self.whitened.log_prob(self.layout.unflatten(y)) - part.log_det_root

    def center(self) -> Values:
        """The mean by site."""
        return self.layout.unflatten(self.mean)

    def half(self, rows: jax.Array) -> jax.Array:
        """L' first, then as y does."""
        return self.whitened.half(self._part.root_transposed(rows))

    def left_open(self, priors: Mapping[str, PriorPart]) -> dict[str, jax.Array]:
        """That of y, whose prior is white."""
        return {self.layout.names[0]: (self.whitened.scale**2).sum()}
