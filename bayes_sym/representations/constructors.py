"""Constructors: trivial, regular and quotient representations, and those given by permutations or matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..errors import GroupActionError
from ..groups import FiniteGroup, Subgroup
from .representation import Representation, check_size


__all__ = ["matrix", "permutation", "quotient", "regular", "trivial"]


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
    check_size(group, dim)
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
