"""Linear representations of finite groups: gathers, signed gathers and matrices, and how each acts on arrays.

Convention. A monomial representation stores, for every element g, where each coordinate comes from:

    (rho(g) v)[i] = sign[g, i] * v[source[g, i]],     hence   source[g h] = source[h][source[g]].

A matrix representation stores rho(g) itself. Representations are orthogonal unless you build another kind by
`matrix`; they carry a `shape`, so that one object acts on images, kernels and weights as well as on plain vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from . import groups
from .errors import GroupActionError, ShapeError
from .groups import FiniteGroup, Subgroup


__all__ = ["Representation", "image", "matrix", "permutation", "quotient", "regular", "sequence", "trivial"]

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
        return restore(jnp.einsum("ij,...j->...i", jnp.asarray(self.mats, flat.dtype)[g], flat))

    def orbit(self, x: jax.Array | np.ndarray, axis: int | Sequence[int] = -1) -> jax.Array:
        """rho(g) x for every g, stacked along a new first axis of length `group.order`."""
        array = jnp.asarray(x)
        return jnp.stack([self.act(g, array, axis) for g in range(self.group.order)])

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
            return restore(jnp.einsum("ij,...j->...i", jnp.asarray(self.projector, flat.dtype), flat))
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
        _check_size(self.group, self.dim)
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
        _check_size(self.group, shape[0])
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
        _check_size(self.group, dim)
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


def _check_size(group: FiniteGroup, dim: int) -> None:
    if group.order * dim * dim > _LARGEST:
        raise GroupActionError(
            f"dense matrices of {group.name} in dimension {dim} would take {group.order * dim * dim * 8 / 2**30:.1f} GiB; "
            "use a permutation or signed representation, which is never made dense"
        )


def trivial(group: FiniteGroup, dim: int) -> Representation:
    """Every element acts as the identity on `dim` coordinates."""
    return Representation(group, (dim,), np.tile(np.arange(dim), (group.order, 1)))


def regular(group: FiniteGroup) -> Representation:
    """The group acts on its own elements by left multiplication: (rho(u) v)[g] = v[u^-1 g]."""
    return Representation(group, (group.order,), group.table[group.inverse])


def quotient(group: FiniteGroup, subgroup: Subgroup | Iterable[int]) -> Representation:
    """The group acts on the left cosets of `subgroup` (a Subgroup, or elements that generate one)."""
    if not isinstance(subgroup, Subgroup):
        subgroup = group.subgroup(subgroup)
    if subgroup.parent != group:
        raise GroupActionError(f"quotient needs a subgroup of {group.name}, got one of {subgroup.parent.name}")
    coset_of = {g: i for i, coset in enumerate(subgroup.cosets) for g in coset}
    leaders = [coset[0] for coset in subgroup.cosets]
    source = [[coset_of[int(group.table[group.inverse[u], g])] for g in leaders] for u in range(group.order)]
    return Representation(group, (len(leaders),), np.array(source))


Images = Mapping[int, np.ndarray] | Sequence[np.ndarray] | np.ndarray


def permutation(group: FiniteGroup, images: Images) -> Representation:
    """A representation by permutations of coordinates.

    Args:
        group: the group.
        images: for every generator (a sequence in the order of ``group.generators``, or a mapping from generator to
            image) or for every element (a sequence of length ``order``) the gather indices, integers (dim,):
            ``(rho(g) v)[i] = v[images[g][i]]``. An entry may be negated by adding a second row of signs: an array
            (2, dim) of (source, sign) makes a signed representation.

    Raises:
        GroupActionError: an image is not a permutation, or the images do not multiply as the group does.
    """
    given = _by_generator(group, images)
    sources, signs = [], []
    for s in group.generators:
        image_of = np.asarray(given[s])
        source, sign = (image_of[0], image_of[1]) if image_of.ndim == 2 else (image_of, np.ones(len(image_of)))
        if (np.sort(source) != np.arange(len(source))).any() or (np.abs(sign) != 1).any():
            raise GroupActionError(f"the image of generator {s} of {group.name} is not a (signed) permutation: {image_of}")
        sources.append(source.astype(np.int64))
        signs.append(sign.astype(float))
    if len({len(s) for s in sources}) > 1:
        raise GroupActionError(f"the images of the generators of {group.name} differ in length: {[len(s) for s in sources]}")
    dim = len(sources[0]) if sources else len(np.asarray(given[0]))
    table = np.empty((group.order, dim), np.int64)
    sign_table = np.ones((group.order, dim))
    for g, word in enumerate(group.words):
        source, sign = np.arange(dim), np.ones(dim)
        for position in word:  # rho(g s) v = rho(g)(rho(s) v): look up through g first
            sign = sign * signs[position][source]
            source = sources[position][source]
        table[g], sign_table[g] = source, sign
    rep = Representation(group, (dim,), table, None if (sign_table == 1).all() else sign_table)
    for position, s in enumerate(group.generators):
        for g in range(group.order):
            gs = group.table[g, s]
            same = (table[gs] == sources[position][table[g]]).all()
            if not same or (sign_table[gs] != sign_table[g] * signs[position][table[g]]).any():
                raise _not_homomorphic(group, g, s)
    return rep


def matrix(group: FiniteGroup, images: Images) -> Representation:
    """A representation by matrices.

    Args:
        group: the group.
        images: matrices (dim, dim), one per generator or one per element, as for `permutation`.

    Raises:
        GroupActionError: the matrices do not multiply as the group does (to 1e-6).
    """
    given = {g: np.asarray(m, float) for g, m in _by_generator(group, images).items()}
    dim = next(iter(given.values())).shape[0]
    if any(m.shape != (dim, dim) for m in given.values()):
        raise GroupActionError(f"matrices of {group.name} must all be ({dim}, {dim}), got {[m.shape for m in given.values()]}")
    _check_size(group, dim)
    mats = np.empty((group.order, dim, dim))
    for g, word in enumerate(group.words):
        mats[g] = np.eye(dim)
        for position in word:
            mats[g] = mats[g] @ given[group.generators[position]]
    for s in group.generators:
        for g in range(group.order):
            if not np.allclose(mats[group.table[g, s]], mats[g] @ given[s], atol=1e-6):
                raise _not_homomorphic(group, g, s)
    return Representation(group, (dim,), mats=mats)


def _by_generator(group: FiniteGroup, images: Images) -> dict[int, np.ndarray]:
    if isinstance(images, Mapping):
        missing = set(group.generators) - set(images)
        if missing or (not images):
            raise GroupActionError(f"{group.name} needs the images of its generators {group.generators}, got {sorted(images)}")
        return dict(images)
    if len(images) == group.order and len(images) != len(group.generators):
        return dict(enumerate(images))
    if len(images) != len(group.generators) or not len(images):
        raise GroupActionError(
            f"{group.name} needs one image per generator ({len(group.generators)}: {group.generators}) or one per element "
            f"({group.order}), got {len(images)}"
        )
    return dict(zip(group.generators, images, strict=True))


def _not_homomorphic(group: FiniteGroup, g: int, s: int) -> GroupActionError:
    return GroupActionError(
        f"the images do not represent {group.name}: rho({g}) rho({s}) differs from rho({int(group.table[g, s])}). For gathers "
        "check the convention (rho(g) v)[i] = v[source[g][i]], so source[g h] = source[h][source[g]]"
    )


def image(group: FiniteGroup, shape: tuple[int, int]) -> Representation:
    """The exact action on the pixels of images of `shape` (height, width), without interpolation.

    C_n with n in {1, 2, 4} rotates by 360/n degrees counter-clockwise; D_n with n in {1, 2, 4} also mirrors left and
    right.

    Raises:
        GroupActionError: the group does not map the pixel grid to itself.
    """
    height, width = (int(size) for size in shape)
    pixels = np.arange(height * width).reshape(height, width)
    rotate: dict[int, Callable[[np.ndarray], np.ndarray]] = {1: np.copy, 2: lambda p: np.rot90(p, 2), 4: np.rot90}
    if group.order == 1:
        return trivial(group, pixels.size).reshape(height, width)
    for n, turn in rotate.items():
        moves = {groups.cyclic(n): [turn], groups.dihedral(n): [turn, np.fliplr] if n > 1 else [np.fliplr]}.get(group)
        if moves is not None:
            if n == 4 and height != width:
                raise GroupActionError(
                    f"{group.name} turns images by 90 degrees, so they must be square, got height {height} and width "
                    f"{width}: crop or pad them to a square, or use cyclic(2) or dihedral(2)"
                )
            return permutation(group, [np.ravel(move(pixels)) for move in moves]).reshape(height, width)
    raise GroupActionError(
        f"{group.name} has no exact action on a pixel grid: only rotations by 90 or 180 degrees and mirrors map pixels to "
        "pixels. Use cyclic(2), cyclic(4), dihedral(1), dihedral(2) or dihedral(4), or give the gather indices yourself by "
        "representations.permutation(group, images).reshape(height, width)"
    )


def sequence(group: FiniteGroup, length: int) -> Representation:
    """The exact action on sequences of `length`: C_n shifts circularly by length/n steps, D_n also reverses.

    Raises:
        GroupActionError: n does not divide the length, or the group is neither cyclic nor dihedral.
    """
    steps = np.arange(int(length))
    if group.order == 1:
        return trivial(group, len(steps))
    for n, kind in ((group.order, groups.cyclic), (group.order // 2, groups.dihedral)):
        if n >= 1 and group == kind(n):
            if length % n:
                raise GroupActionError(
                    f"{group.name} shifts by length/{n} steps, so {n} must divide the length, got {length}: pad or crop the "
                    "sequences, or use a group whose order divides it"
                )
            shift, reverse = np.roll(steps, length // n), steps[::-1]
            moves = [shift] if kind is groups.cyclic else [shift, reverse] if n > 1 else [reverse]
            return permutation(group, moves)
    raise GroupActionError(f"{group.name} has no standard action on sequences; use cyclic(n) or dihedral(n), or permutation(...)")
