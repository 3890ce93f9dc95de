"""An exact test of the hypothesis that a posterior's predictions are equivariant, for defects near 0."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from ..errors import GroupActionError, OptionError, ShapeError
from ..groups import FiniteGroup
from ..representations import Representation
from .orbits import mapped_back, on_orbit


__all__ = ["EquivarianceTest", "equivariance_test"]

_ENTRIES = 2**24  # of the arrays that are held at once


class EquivarianceTest(NamedTuple):
    """The result of `equivariance_test`.

    Attributes:
        p_value: of the hypothesis of equivariance; at least 1/(num_permutations + 1).
        statistic: mean_x mean_g |mean prediction at g x, mapped back - its mean over g|^2.
        num_permutations: how many rearrangements it was compared with.
        num_draws: draws per element.
    """

    p_value: float
    statistic: float
    num_permutations: int
    num_draws: int


def equivariance_test(
    draws: ArrayLike,
    group: FiniteGroup,
    output: Representation | None = None,
    *,
    key: jax.Array,
    common: bool = True,
    num_permutations: int = 999,
) -> EquivarianceTest:
    """Tests whether the predictions have the same law all along the orbits, by rearranging draws along them.

    Let z_t(g, x) = rho_out(g)^-1 F_t(g x). If the law of the weights is invariant, so is that of the functions, and then

    - with common draws (the same weights at every g), (z_t(g))_g has the law of (z_t(h g))_g for every h, at all x together: each draw
      is moved along its orbit by an element h_t of its own, at random;
    - with independent draws, all z_t(g) have one law, at all x together: they are exchanged at random.

    A draw is rearranged as a whole, for all examples at once. So the p-value is exact for any number of draws and examples, however the
    examples depend on each other through the draws, and there is one p-value for all examples and elements, with nothing to
    correct for. (Inputs are taken as given.) It has power against differences of mean predictions; it may also reject where
    these are equal and another part of the law differs. Common draws see far smaller defects.

    Args:
        draws: (num_draws, group, num_examples, *outputs), not mapped back, with the identity at g = 0; at least 2 draws.
            Draws must be independent: thin a Markov chain.
        group: the group.
        output: the representation on the outputs; None for invariant outputs.
        key: for the rearrangements.
        common: whether draws[t] are predictions of one set of weights, or every draws[t, g] of a set of its own.
        num_permutations: how many rearrangements.

    Raises:
        ShapeError: the draws do not have these axes, or not one entry per element.
        GroupActionError: `output` represents another group.
        OptionError: there is one draw or one element, or `num_permutations` is below 1.
        DataError: a prediction is not finite.
    """
    if output is not None and output.group != group:
        raise GroupActionError(f"the test is of {group.name}, but the output representation of {output.group.name}")
    values = mapped_back(output, on_orbit(draws, output))
    count, order, examples = values.shape[:3]
    if order != group.order:
        raise ShapeError(f"axis 1 of the draws runs over the {group.order} elements of {group.name}, got shape {values.shape}")
    if count < 2 or order < 2 or num_permutations < 1:
        raise OptionError(
            f"the test needs at least 2 draws, 2 elements and 1 permutation, got {count}, {order} and {num_permutations}"
        )
    flat = values.reshape(count * order, -1)
    flat = flat - flat.mean(axis=0)
    gram = flat @ flat.T / (examples * order * count**2)
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    observed = float(_between(gram, np.tile(np.arange(order), count)[None], order)[0])
    reached, left = 0, num_permutations
    while left:
        size = min(left, max(1, _ENTRIES // (len(gram) * order)))
        if common:
            elements = generator.integers(order, size=(size, count))
            places = group.table[elements].reshape(size, -1)  # what stood at g goes to h g
        else:
            places = generator.permuted(np.tile(np.tile(np.arange(order), count), (size, 1)), axis=1)
        # rearrangements that give the same statistic differ by rounding
        reached += int((_between(gram, places, order) >= observed * (1 - 1e-9)).sum())
        left -= size
    return EquivarianceTest((1 + reached) / (1 + num_permutations), observed, num_permutations, count)


def _between(gram: np.ndarray, places: np.ndarray, order: int) -> np.ndarray:
    """sum_g |sum of what stands at g|^2 for each of `places` (rearrangements, draws * order), from inner products."""
    member = (places[:, :, None] == np.arange(order)).astype(gram.dtype)
    sums = np.tensordot(member, gram, axes=(1, 0))  # (rearrangements, order, draws * order)
    return np.einsum("bgi,big->b", sums, member)
