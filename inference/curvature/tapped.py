"""Structured curvature of the weights that taps mark: what one backward pass per column of the Fisher root tells.

A tap gives inputs a (rows, positions, in) and gradients g (rows, positions, out) of a pre-activation; the gradient of a
weight for one data row is the sum over positions of a g'. Several taps of one weight count as more positions. A grouped
tap gives (rows, positions, groups, in) and (rows, positions, groups, out), a matrix for each group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayes_sym import _numpyro
from bayes_sym.errors import PriorError, TapError
from bayes_sym.taps import TapMeta, TapRecorder

from .. import rows
from ..blocks import Layout
from ..prior_parts import PriorPart
from .eigen import eigh
from .fisher import Root
from .gram import Gram
from .kronecker import Kronecker
from .pieces import Piece
from .rowwise import check_dense
from .spectrum import Spectrum, as_matrix, as_vector, pair_products, rotate
from .view import Probes, View, mixer, moving, over_chunks, roots_of, summed, visit


__all__ = [
    "Basis",
    "Uses",
    "blocks",
    "check_priors",
    "eigenbasis",
    "factors",
    "find_uses",
    "gradients_of",
    "site_rows",
    "spectra",
    "together",
]

Basis = Mapping[str, tuple[jax.Array, jax.Array]]
"""By weight site: orthonormal columns for its inputs, and for its outputs."""


class Use(NamedTuple):
    """How a weight site is used: its taps, and its shape as a matrix, or as a stack of matrices side by side."""

    taps: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool

    def vector(self, matrices: jax.Array) -> jax.Array:
        """The flat values of the site from matrices (..., *shape)."""
        return as_vector(matrices, self.transposed, len(self.shape))


class Uses(NamedTuple):
    """The tapped sites that are integrated over: weights, and biases with their taps."""

    weights: dict[str, Use]
    biases: dict[str, tuple[str, ...]]


def _metas(view: View, data: Any) -> dict[str, TapMeta]:
    """The taps of sites that are integrated over, with shapes for these rows."""
    taps = view.problem.structure(*data).taps
    return {name: meta for name, meta in taps.items() if meta.weight in view.z or meta.bias in view.z}


def find_uses(view: View) -> Uses:
    """Which sites of `view.z` are tapped; gradients of taps are those of real-valued sites only.

    Raises:
        TapError: the shape of a site does not fit its tap.
    """
    recorder = TapRecorder()
    example = view.problem.take(view.data, slice(0, 1))
    real: set[str] = set()

    def inputs() -> Any:
        sites, _ = view.problem.trace(example, unconstrained=view.z, constrained=view.fixed, recorder=recorder)
        real.update(name for name in view.z if _numpyro.is_real(sites[name]["fn"].support))
        return recorder.inputs

    shapes = jax.eval_shape(inputs)
    metas = _metas(view, example)
    weights, biases = {}, {}
    for weight in dict.fromkeys(meta.weight for meta in metas.values()):
        names = tuple(name for name, meta in metas.items() if meta.weight == weight)
        if weight in real:
            a, b, groups = shapes[names[0]].shape[-1], metas[names[0]].shape[-1], metas[names[0]].groups
            shape, stack = view.z[weight].shape, (groups,) if groups > 1 else ()
            if stack and shape[:1] != stack:
                raise TapError(
                    f"the grouped tap of {weight!r} has {groups} groups, but the site has shape {shape}: its first axis must count "
                    "the groups"
                )
            weights[weight] = Use(names, (*stack, a, b), _transposed(weight, shape[len(stack) :], a, b))
    for bias in dict.fromkeys(meta.bias for meta in metas.values()):
        names = tuple(name for name, meta in metas.items() if meta.bias == bias)
        if bias is not None and bias in real:
            outputs = metas[names[0]].shape[-1]
            if view.z[bias].size != outputs:
                raise TapError(
                    f"a tap of bias {bias!r} has {outputs} outputs, but the site has shape {view.z[bias].shape}: name as bias= only a site "
                    "with one entry per output, and leave others to be treated as sites without a tap"
                )
            biases[bias] = names
    return Uses(weights, biases)


def _transposed(weight: str, shape: tuple[int, ...], inputs: int, outputs: int) -> bool:
    if math.prod(shape) != inputs * outputs:
        raise TapError(
            f"the tap of {weight!r} has {inputs} inputs and {outputs} outputs, but the site has shape {shape} with {math.prod(shape)} "
            "entries: pass the arrays that the weight multiplies as inputs=, e.g. the patches of a convolution"
        )
    if not shape or shape[-1] == outputs or inputs == outputs:
        return False
    sizes = [math.prod(shape[:i]) for i in range(len(shape) + 1)]
    if inputs not in sizes and outputs not in sizes:
        raise TapError(
            f"the site {weight!r} of shape {shape} is neither an ({inputs}, {outputs}) nor an ({outputs}, {inputs}) matrix, as its tap "
            "says: give the site one of these shapes, or axes that can be merged into one of them"
        )
    return shape[0] == outputs or inputs not in sizes


class Backward(NamedTuple):
    """One chunk of rows: the taps' inputs, and what gives their gradients for each visited column of the Fisher root.

    `mixed` gives those of any mix of columns, from signs (columns, rows).
    """

    inputs: dict[str, jax.Array]
    gradients: Callable[[jax.Array], dict[str, jax.Array]]
    visits: jax.Array
    mixed: Callable[[jax.Array], dict[str, jax.Array]]


def gradients_of(view: View, probes: Probes, present: jax.Array, names: list[str] | None = None) -> Backward:
    """Runs the model on the rows of the view; inputs and gradients are (rows, positions, *stack, features), 0 for padding.

    `names` are the distribution parameters whose roots count, by default those that depend on a tap.
    """
    metas = _metas(view, view.data)

    def forward(shifts: dict[str, jax.Array]) -> tuple[dict[str, Root], dict[str, jax.Array]]:
        recorder = TapRecorder(shifts=shifts)
        return roots_of(view.observations(view.z, view.data, recorder), view.stream), recorder.inputs

    shifts = {name: jnp.zeros(meta.shape, meta.dtype) for name, meta in metas.items()}
    if names is None:
        names = moving(lambda s: {name: root.parameter for name, root in forward(s)[0].items()}, shifts)

    def chosen(shifts: dict[str, jax.Array]) -> tuple[dict[str, Any], Any]:
        found, inputs = forward(shifts)
        return {name: found[name].parameter for name in names}, ({name: found[name].columns for name in names}, inputs)

    _, pull, (found, inputs) = jax.vjp(chosen, shifts, has_aux=True)
    cotangents, visits = visit(found, probes, present)

    def pulled(cotangents: Any) -> dict[str, jax.Array]:
        return {name: _positions(g, metas[name]) for name, g in pull(cotangents)[0].items()}

    return Backward(
        {name: _positions(inputs[name] * _beside(present, inputs[name]), metas[name]) for name in metas},
        lambda index: pulled(cotangents(index)),
        visits,
        lambda signs: pulled(mixer(found)(signs)),
    )


def _positions(array: jax.Array, meta: TapMeta) -> jax.Array:
    """(rows, positions, *stack, features)."""
    stack = (meta.groups,) if meta.groups > 1 else ()
    return array.reshape(array.shape[0], -1, *stack, array.shape[-1])


def _beside(vector: jax.Array, array: jax.Array) -> jax.Array:
    """`vector` (rows,) with as many axes as `array`."""
    return vector.reshape(-1, *(1,) * (array.ndim - 1))


def _of_rows(a: jax.Array, g: jax.Array) -> jax.Array:
    """The gradients of a weight, (rows, *shape): for each row the sum over positions of a g'."""
    return jnp.einsum("nr...a,nr...b->n...ab", a, g)


def together(taps: tuple[str, ...], arrays: Mapping[str, jax.Array], axis: int = 1) -> jax.Array:
    """The taps of one site, one after the other along the axis of positions."""
    return arrays[taps[0]] if len(taps) == 1 else jnp.concatenate([arrays[name] for name in taps], axis=axis)


def _entries(view: View, per_weight: bool) -> int:
    """About how many numbers one row of the data needs."""
    example = view.problem.take(view.data, slice(0, 1))
    metas = _metas(view, example)
    recorder = TapRecorder()

    def inputs() -> Any:
        view.observations(view.z, example, recorder)
        return {name: recorder.inputs[name] for name in metas}

    total = sum(3 * math.prod(meta.shape) for meta in metas.values())
    total += sum(2 * leaf.size for leaf in jax.eval_shape(inputs).values())
    if per_weight:
        total += 2 * sum(view.z[name].size for name in {meta.weight for meta in metas.values()} & set(view.z))
    columns = jax.eval_shape(lambda: {k: root.columns for k, root in roots_of(view.observations(view.z, example)).items()})
    return total + sum(leaf.size for leaf in jax.tree.leaves((example, columns)))


# Kronecker factors: expand has A = mean_{n,r} a a' and B = sum_{n,k,r} g g'; reduce has a = mean_r a and g = sum_r g.


def factors(view: View, uses: Uses, probes: Probes, *, reduce: bool, limit: int | None = None) -> dict[str, Piece]:
    """Kronecker factors of the tapped weights, and the output factor for their biases."""

    # A weight and its bias share their taps, so one factor serves both. But groups share a bias: they are positions to it.
    stacked = {use.taps for use in uses.weights.values() if len(use.shape) > 2}
    wanted = {(use.taps, False) for use in uses.weights.values()}
    wanted |= {(taps, taps in stacked) for taps in uses.biases.values()}

    def pool(terms: jax.Array, how: Any) -> jax.Array:
        return how(terms, axis=1) if reduce else terms.reshape(-1, *terms.shape[2:])

    def outputs(taps: tuple[str, ...], merged: bool, gradients: dict[str, jax.Array]) -> jax.Array:
        g = together(taps, gradients)
        return g.reshape(len(g), -1, g.shape[-1]) if merged else g

    def of_chunk(view: View, probes: Probes, present: jax.Array) -> Any:
        back = gradients_of(view, probes, present)
        inner = {name: pool(together(use.taps, back.inputs), jnp.mean) for name, use in uses.weights.items()}

        def outer(visit: jax.Array) -> dict[tuple[tuple[str, ...], bool], jax.Array]:
            gradients = back.gradients(visit)
            return {which: _gram(pool(outputs(*which, gradients), jnp.sum)) for which in sorted(wanted)}

        return {name: _gram(a) for name, a in inner.items()}, summed(outer, back.visits)

    inner, outer = over_chunks(view, probes, _entries(view, False), of_chunk, limit)
    count = rows.num_rows(view.data)
    positions = _count_positions(view, uses)
    pieces: dict[str, Piece] = {}
    for name, use in uses.weights.items():
        terms = count if reduce else count * positions[name]
        pieces[name] = Kronecker(Layout.of(view.z, (name,)), inner[name] / terms, outer[use.taps, False], use.transposed)
    for name, taps in uses.biases.items():
        pieces[name] = Gram(Layout.of(view.z, (name,)), outer[taps, taps in stacked])
    return pieces


def _gram(terms: jax.Array) -> jax.Array:
    """terms' terms; wide ones in blocks, of which those below the diagonal are copies."""
    size = terms.shape[-1]
    if terms.ndim > 2 or size < 512:
        return jnp.einsum("n...a,n...b->...ab", terms, terms)
    first, second = terms[:, : size // 2], terms[:, size // 2 :]
    corner = first.T @ second
    return jnp.block([[_gram(first), corner], [corner.T, _gram(second)]])


def _count_positions(view: View, uses: Uses) -> dict[str, int]:
    metas = _metas(view, view.problem.take(view.data, slice(0, 1)))
    return {
        name: sum(math.prod(metas[tap].shape[1:-1]) // metas[tap].groups for tap in use.taps)
        for name, use in uses.weights.items()
    }


def eigenbasis(view: View, uses: Uses, probes: Probes, limit: int | None = None) -> Basis:
    """The eigenvectors of the Kronecker factors, held constant under differentiation."""
    z, fixed, data = jax.lax.stop_gradient((view.z, view.fixed, view.data))
    still = view._replace(z=z, fixed=fixed, data=data)
    pieces = factors(still, uses, probes, reduce=False, limit=limit)
    found = {}
    for name in uses.weights:
        piece = pieces[name]
        assert isinstance(piece, Kronecker)
        found[name] = (eigh(piece.inputs)[1], eigh(piece.outputs)[1])
    return found


def blocks(view: View, uses: Uses, probes: Probes, limit: int | None = None) -> dict[str, Piece]:
    """The exact block of every tapped site."""
    for name in (*uses.weights, *uses.biases):
        check_dense(view.z[name].size, Layout.of(view.z, (name,)))

    def of_chunk(view: View, probes: Probes, present: jax.Array) -> Any:
        back = gradients_of(view, probes, present)

        def outer(visit: jax.Array) -> dict[str, jax.Array]:
            return {name: rows_.T @ rows_ for name, rows_ in site_rows(uses, back.inputs, back.gradients(visit)).items()}

        return summed(outer, back.visits)

    sums = over_chunks(view, probes, _entries(view, True), of_chunk, limit)
    return {name: Gram(Layout.of(view.z, (name,)), matrix) for name, matrix in sums.items()}


def site_rows(uses: Uses, inputs: Mapping[str, jax.Array], gradients: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The gradient of every tapped site, (rows, size): the sum over positions of a g', or of g for a bias."""
    found = {}
    for name, use in uses.weights.items():
        found[name] = use.vector(_of_rows(together(use.taps, inputs), together(use.taps, gradients)))
    for name, taps in uses.biases.items():
        found[name] = _summed_positions(together(taps, gradients))
    return found


def _summed_positions(g: jax.Array) -> jax.Array:
    """The gradient of a bias for each row: the sum over positions and groups."""
    return g.reshape(g.shape[0], -1, g.shape[-1]).sum(axis=1)


def spectra(
    view: View,
    uses: Uses,
    probes: Probes,
    basis: Basis | None,
    priors: Mapping[str, PriorPart],
    whole_sites: Collection[str] = (),
    limit: int | None = None,
) -> dict[str, Piece]:
    """The diagonal of every tapped weight's curvature in a Kronecker basis, and the exact block of every tapped bias.

    Without a basis, the diagonal of weights and biases as they stand. The weights in `whole_sites` get exact blocks too.
    """
    rotations = {name: (None, None) if basis is None else basis[name] for name in uses.weights}
    terms = {name: priors[name].terms() for name in (*uses.weights, *uses.biases)}
    plain = {name: len(found) == 1 and found[0].part is None for name, found in terms.items()}
    positions = _count_positions(view, uses)
    simple = [name for name in uses.weights if plain[name] and positions[name] == 1 and name not in whole_sites]

    def turned(array: jax.Array, by: jax.Array | None) -> jax.Array:
        return array if by is None else jnp.einsum("n...i,...ij->n...j", array, by)

    def of_chunk(view: View, probes: Probes, present: jax.Array) -> Any:
        back = gradients_of(view, probes, present)
        inner = {name: together(use.taps, back.inputs) for name, use in uses.weights.items()}

        def outer(visit: jax.Array) -> dict[str, jax.Array]:
            gradients = back.gradients(visit)
            sums = {}
            for name, use in uses.weights.items():
                g, (left, right) = together(use.taps, gradients), rotations[name]
                if name in simple:
                    sums[name] = turned(g[:, 0], right) ** 2  # with one position the sum over rows is a product of matrices
                elif name in whole_sites:
                    whole = use.vector(_of_rows(inner[name], g))
                    sums[name] = whole.T @ whole
                elif plain[name]:
                    sums[name] = (_of_rows(turned(inner[name], left), turned(g, right)) ** 2).sum(axis=0)[None]
                else:
                    whole = use.vector(_of_rows(inner[name], g))
                    sums[name] = pair_products(
                        [rotate(as_matrix(term.apply(whole), use.shape, use.transposed), left, right) for term in terms[name]]
                    )
            for name, taps in uses.biases.items():
                g = _summed_positions(together(taps, gradients))
                sums[name] = g.T @ g if basis is not None else pair_products([term.apply(g)[..., None] for term in terms[name]])
            return sums

        sums = summed(outer, back.visits)
        for name in simple:
            squares = turned(inner[name][:, 0], rotations[name][0]) ** 2
            sums[name] = jnp.einsum("n...a,n...b->...ab", squares, sums[name])[None]
        return sums

    sums = over_chunks(view, probes, _entries(view, len(simple) < len(uses.weights)), of_chunk, limit)
    pieces: dict[str, Piece] = {}
    for name, use in uses.weights.items():
        layout = Layout.of(view.z, (name,))
        if name in whole_sites:
            pieces[name] = Gram(layout, sums[name])
        else:
            left, right = rotations[name]
            pieces[name] = Spectrum(layout, sums[name], left, right, use.transposed)
    for name in uses.biases:
        layout = Layout.of(view.z, (name,))
        pieces[name] = Gram(layout, sums[name]) if basis is not None else Spectrum(layout, sums[name], None, None, False)
    return pieces


def check_priors(view: View, priors: Mapping[str, PriorPart], curvature: str) -> None:
    """Refuses tapped weights whose prior is not Gaussian: a dense Hessian of theirs would not fit the structure."""
    for meta in view.problem.structure(*view.data).taps.values():
        name = meta.weight
        if name in view.z and priors[name].fn is None:
            raise PriorError(
                f"curvature={curvature!r} needs Gaussian priors on tapped weights, and that of {name!r} is not Gaussian: use "
                "curvature='full' or 'block', or a Gaussian prior whose strength has a hyperprior"
            )
