"""One linear representation of a finite group, and how it acts on arrays.

Convention. A monomial representation stores, for every element g, where each coordinate comes from:

    (rho(g) v)[i] = sign[g, i] * v[source[g, i]],     hence   source[g h] = source[h][source[g]].

A matrix representation stores rho(g) itself. Representations are orthogonal unless you build another kind by
`matrix`; they carry a `shape`, so that one object acts on images, kernels and weights as well as on plain vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import GroupActionError, ShapeError
from ..groups import FiniteGroup, Subgroup


__all__ = ["Representation", "check_size"]

_LARGEST = 2**27  # entries of a matrix representation that we are willing to hold


@dataclass(frozen=True, eq=False)
class Representation:
    """A linear action of `group` on arrays of `shape`.

    Build one with the functions of this module. Hashable, so usable as a static argument of jitted functions.

    Attributes:
        group: the group that acts.
        shape: the shape of one vector seen as an array, e.g. ``(height, width)``; its product is `dim`.
        source: integers (order, dim) for permutation and signed forms, else None.
        sign: +1 or -1 of shape (order, dim) for signed forms, else None.
        mats: floats (order, dim, dim) for matrix forms, else None.
    """

    group: FiniteGroup
    shape: tuple[int, ...]
    source: np.ndarray | None = None
    sign: np.ndarray | None = None
    mats: np.ndarray | None = None

    def __post_init__(self) -> None:
        # one dtype per field, so that equal tables are equal values however they were made
        for name, dtype in (("source", np.int32), ("sign", float), ("mats", float)):
            if getattr(self, name) is not None:
                table = np.array(getattr(self, name), dtype)
                table.setflags(write=False)
                object.__setattr__(self, name, table)

    @property
    def dim(self) -> int:
        """The dimension of the space acted on."""
        return math.prod(self.shape)

    @property
    def is_permutation(self) -> bool:
        """Whether every element only moves coordinates (so that it commutes with every pointwise map)."""
        return self.source is not None and self.sign is None

    @property
    def is_monomial(self) -> bool:
        """Whether every element moves coordinates up to sign (so that it commutes with odd pointwise maps)."""
        return self.source is not None

    @property
    def is_trivial(self) -> bool:
        """Whether every element acts as the identity."""
        return self.is_permutation and bool(np.all(self.source == np.arange(self.dim)))

    @cached_property
    def is_orthogonal(self) -> bool:
        """Whether every matrix is orthogonal, to 1e-6."""
        if self.mats is None:
            return True
        return bool(np.allclose(self.mats @ self.mats.swapaxes(1, 2), np.eye(self.dim), atol=1e-6))

    def act(self, g: int | jax.Array, x: jax.Array, axis: int | Sequence[int] = -1) -> jax.Array:
        """rho(g) applied to `x` along `axis`.

        Args:
            g: the element, an integer in 0..order-1; may be traced.
            x: an array whose size along `axis` is `dim`.
            axis: one axis, or several whose sizes multiply to `dim` (in the order given), e.g. ``(1, 2)`` for the
                pixels of NHWC images.

        Returns:
            An array like `x`.
        """
        flat, restore = self._flatten(x, axis)
        if self.source is not None:
            moved = jnp.take(flat, jnp.asarray(self.source)[g], axis=-1)
            if self.sign is None:
                return restore(moved)
            return restore(moved * jnp.broadcast_to(jnp.asarray(self.sign, moved.dtype)[g], moved.shape))
        return restore(jnp.einsum("ij,...j->...i", jnp.asarray(self.mats, flat.dtype)[g], flat, precision="highest"))

    def orbit(self, x: jax.Array | np.ndarray, axis: int | Sequence[int] = -1) -> jax.Array:
        """rho(g) x for every g, stacked along a new first axis of length `group.order`."""
        array = jnp.asarray(x)
        return jax.vmap(lambda g: self.act(g, array, axis))(jnp.arange(self.group.order))

    def transform(self, g: int | jax.Array, batch: jax.Array) -> jax.Array:
        """rho(g) applied to each member of a batch (batch, *shape, ...): the action on images, sequences or vectors."""
        if batch.ndim < 1 + len(self.shape) or batch.shape[1 : 1 + len(self.shape)] != self.shape:
            raise ShapeError(
                f"{self.group.name} acts on arrays of shape (batch, {', '.join(map(str, self.shape))}, ...), got "
                f"{batch.shape}; build the representation for the shape of your data"
            )
        return self.act(g, batch, tuple(range(1, 1 + len(self.shape))))

    def project(self, x: jax.Array, axis: int | Sequence[int] = -1) -> jax.Array:
        """The orthogonal projection onto the invariant vectors: the mean of rho(g) x over the group.

        Monomial forms use signed means over orbits, O(dim); matrix forms one (dim, dim) projector.
        """
        flat, restore = self._flatten(x, axis)
        if self.source is None:
            return restore(jnp.einsum("ij,...j->...i", jnp.asarray(self.projector, flat.dtype), flat, precision="highest"))
        label, weight, size = self.orbits
        relative = jnp.broadcast_to(jnp.asarray(weight, flat.dtype), flat.shape)
        zeros = jnp.zeros((*flat.shape[:-1], len(size)), flat.dtype)
        total = zeros.at[..., jnp.asarray(label)].add(flat * relative)
        mean = total / jnp.broadcast_to(jnp.asarray(size, flat.dtype), total.shape)
        return restore(jnp.take(mean, jnp.asarray(label), axis=-1) * relative)

    @cached_property
    def orbits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a monomial form: (orbit label of each coordinate, its sign relative to the orbit, size of each orbit).

        The sign is 0 where an element maps a coordinate to its own negative: no invariant vector has weight there.
        """
        if self.source is None:
            raise GroupActionError("a matrix representation moves coordinates into mixtures: it has no orbits")
        _, label = np.unique(self.source.min(axis=0), return_inverse=True)
        weight = np.ones(self.dim)
        if self.sign is not None:
            first = self.source.min(axis=0)
            # an element g with source[g, i] = first[i] gives coordinate i the sign sign[g, i] of its representative
            towards = (self.source == first) * self.sign
            weight = np.where(np.abs(towards.sum(axis=0)) == (towards != 0).sum(axis=0), np.sign(towards.sum(axis=0)), 0)
        return label.reshape(self.dim), weight, np.bincount(label.reshape(self.dim))

    @cached_property
    def projector(self) -> np.ndarray:
        """The dense projector onto the invariant vectors, (dim, dim)."""
        return self.matrices().mean(axis=0)

    @cached_property
    def projector_diagonal(self) -> np.ndarray:
        """The diagonal of `projector`, (dim,), without forming it for monomial forms."""
        if self.source is None:
            return np.diagonal(self.projector).copy()
        label, weight, size = self.orbits
        return np.abs(weight) / size[label]

    @property
    def rank(self) -> int:
        """The dimension of the invariant vectors: the mean of the character."""
        return round(float(self.character().mean()))

    def character(self) -> np.ndarray:
        """The trace of rho(g) for every g, floats (order,)."""
        if self.source is None:
            return np.trace(self.matrices(), axis1=1, axis2=2)
        fixed = (self.source == np.arange(self.dim)) * (1 if self.sign is None else self.sign)
        return fixed.sum(axis=1).astype(float)

    def matrices(self) -> np.ndarray:
        """rho(g) for every g as dense matrices, floats (order, dim, dim)."""
        if self.mats is not None:
            return self.mats
        assert self.source is not None
        check_size(self.group, self.dim)
        dense = np.zeros((self.group.order, self.dim, self.dim))
        g, i = np.indices(self.source.shape)
        dense[g, i, self.source] = 1.0 if self.sign is None else self.sign
        return dense

    def restrict(self, subgroup: Subgroup) -> Representation:
        """The same action, of the elements of `subgroup` only."""
        if not isinstance(subgroup, Subgroup) or subgroup.parent != self.group:
            raise GroupActionError(
                f"restrict needs a subgroup of {self.group.name}, got {subgroup!r}; build it with group.subgroup(elements)"
            )
        keep = list(subgroup.elements)
        pick = lambda table: None if table is None else table[keep]  # noqa: E731
        return Representation(subgroup.group, self.shape, pick(self.source), pick(self.sign), pick(self.mats))

    def reshape(self, *shape: int) -> Representation:
        """The same action on arrays of another shape with the same number of entries (C order)."""
        if math.prod(shape) != self.dim:
            raise ShapeError(f"a representation of dimension {self.dim} cannot act on arrays of shape {shape}")
        return Representation(self.group, tuple(shape), self.source, self.sign, self.mats)

    def __add__(self, other: Representation) -> Representation:
        """The direct sum: acts on concatenated vectors."""
        self._check_same_group(other, "+")
        shape = (self.dim + other.dim,)
        if self.source is not None and other.source is not None:
            source = np.concatenate([self.source, other.source + self.dim], axis=1)
            sign = None
            if self.sign is not None or other.sign is not None:
                sign = np.concatenate([self._signs, other._signs], axis=1)
            return Representation(self.group, shape, source, sign)
        check_size(self.group, shape[0])
        dense = np.zeros((self.group.order, shape[0], shape[0]))
        dense[:, : self.dim, : self.dim] = self.matrices()
        dense[:, self.dim :, self.dim :] = other.matrices()
        return Representation(self.group, shape, mats=dense)

    def __mul__(self, other: Representation) -> Representation:
        """The tensor product: acts on arrays of shape ``self.shape + other.shape``, each factor on its own axes."""
        self._check_same_group(other, "*")
        shape = self.shape + other.shape
        dim = self.dim * other.dim
        if self.source is not None and other.source is not None:
            source = self.source[:, :, None] * other.dim + other.source[:, None, :]
            sign = None
            if self.sign is not None or other.sign is not None:
                sign = (self._signs[:, :, None] * other._signs[:, None, :]).reshape(-1, dim)
            return Representation(self.group, shape, source.reshape(-1, dim), sign)
        check_size(self.group, dim)
        dense = np.einsum("gij,gkl->gikjl", self.matrices(), other.matrices()).reshape(-1, dim, dim)
        return Representation(self.group, shape, mats=dense)

    @property
    def _signs(self) -> np.ndarray:
        assert self.source is not None
        return np.ones(self.source.shape) if self.sign is None else self.sign

    def _check_same_group(self, other: Representation, symbol: str) -> None:
        if self.group != other.group:
            raise GroupActionError(
                f"{symbol} needs two representations of one group, got {self.group.name} and {other.group.name}"
            )

    def _flatten(self, x: jax.Array, axis: int | Sequence[int]) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """Moves `axis` to the end as one axis of length `dim`; also the way back."""
        x = jnp.asarray(x)
        axes = (axis,) if isinstance(axis, int) else tuple(axis)
        sizes = tuple(x.shape[a] for a in axes)
        if math.prod(sizes) != self.dim:
            raise ShapeError(
                f"a representation of {self.group.name} on {self.shape} acts on {self.dim} entries, got axes {axes} of an "
                f"array of shape {x.shape}, which hold {math.prod(sizes)}"
            )
        last = tuple(range(-len(axes), 0))
        moved = jnp.moveaxis(x, axes, last)

        def restore(flat: jax.Array) -> jax.Array:
            return jnp.moveaxis(flat.reshape(moved.shape), last, axes)

        return moved.reshape(*moved.shape[: moved.ndim - len(axes)], self.dim), restore

    @cached_property
    def _key(self) -> tuple:
        parts = (None if a is None else a.tobytes() for a in (self.source, self.sign, self.mats))
        return (self.group, self.shape, *parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Representation) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        form = "permutation" if self.is_permutation else "signed" if self.is_monomial else "matrix"
        return f"Representation({self.group.name}, {form}, shape={self.shape})"


def check_size(group: FiniteGroup, dim: int) -> None:
    """Refuses dense matrices that would not fit in memory."""
    if group.order * dim * dim > _LARGEST:
        raise GroupActionError(
            f"dense matrices of {group.name} in dimension {dim} would take {group.order * dim * dim * 8 / 2**30:.1f} GiB; "
            "use a permutation or signed representation, which is never made dense"
        )
