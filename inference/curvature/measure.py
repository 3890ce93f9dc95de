"""Measuring curvature: one entry for every kind, which gives pieces that cover all sites."""

from __future__ import annotations

import jax

from bayes_sym._precision import full_precision
from bayes_sym.errors import CurvatureError, OptionError, PriorError

from ..blocks import Layout
from ..problem import Problem, Values
from ..rows import Data
from .data_side import data_side
from .dual import dual
from .pieces import Piece
from .rowwise import dense, diagonal, full, hessian
from .site_priors import prior_parts
from .tapped import Basis, blocks, check_priors, eigenbasis, factors, find_uses, spectra
from .view import EXACT, Probes, View


__all__ = ["BOUNDS", "CURVATURES", "measure", "measure_basis", "untapped"]

CURVATURES = ("full", "block", "ekfac", "kfac", "kfac_reduce", "diag", "ntk", "dual", "hessian")
"""The curvatures that can be measured."""

BOUNDS = ("block", "ekfac", "diag", "ntk")
"""Those whose log-determinant is never below that of the full generalised Gauss-Newton matrix."""

TAPPED = ("ekfac", "kfac", "kfac_reduce", "ntk", "dual")
"""Those that see weights through taps."""

_LARGEST_FALLBACK = 1024  # parameters of a site without a tap, or with a correlated prior, that still gets a dense block


@full_precision
def measure(
    problem: Problem,
    z: Values,
    fixed: Values,
    data: Data,
    curvature: str,
    *,
    probes: Probes = EXACT,
    basis: Basis | None = None,
    block_size: int = 128,
    chunk: int | None = None,
    factor: float | jax.Array | None = None,
) -> tuple[Piece, ...]:
    """The curvature of the negative log likelihood at `z`, in pieces that cover every site.

    All but ``"hessian"`` are of the generalised Gauss-Newton matrix G.

    Args:
        problem: the model.
        z: unconstrained values of the sites that the evidence integrates over.
        fixed: constrained values of the others.
        data: the rows.
        curvature: one of `CURVATURES`. ``"full"`` is the exact matrix; ``"block"`` its blocks per site; ``"diag"`` its
            diagonal; ``"kfac"`` and ``"kfac_reduce"`` Kronecker factors per tapped weight (outer products before or after
            sums over shared axes); ``"ekfac"`` the exact diagonal in the basis of these factors, with exact blocks for
            biases and for small sites with a correlated prior; ``"ntk"`` kernels of blocks of data rows; ``"dual"`` one
            kernel of all rows, exact like ``"full"``, or of `probes.count` columns drawn by weight; ``"hessian"``
            minus the Hessian of the log likelihood. Sites without a tap get dense blocks, or diagonals where large.
        probes: whether all columns of the Fisher roots are visited, or random mixes of them.
        basis: for ``"ekfac"``, from `measure_basis`; None to measure it here.
        block_size: for ``"ntk"``, data rows per block.
        chunk: the most data rows at a time; None for as many as a fixed amount of memory holds.
        factor: N/B where the data are B of N rows.

    Raises:
        CurvatureError: unknown or too large.
        PriorError: a prior that this curvature cannot price.
        TapError: a tap that does not fit its site.
    """
    view = View(problem, z, fixed, data, factor)
    if curvature not in CURVATURES:
        raise CurvatureError(f"unknown curvature {curvature!r}: choose one of {', '.join(CURVATURES)}")
    if probes.count is not None and probes.key is None:
        raise OptionError(f"probes={probes.count} draws random signs: pass key=jax.random.key(...), or probes='exact'")
    layouts = {name: Layout.of(z, (name,)) for name in z}
    if curvature == "full":
        return (full(view, Layout.of(z), probes),)
    if curvature == "hessian":
        return (hessian(view, Layout.of(z)),)
    uses = find_uses(view)
    priors = {
        name: part for name, (part, _) in zip(z, prior_parts(problem, z, fixed, data, tuple(layouts.values())), strict=True)
    }
    if curvature in ("ntk", "dual"):
        joint, _ = prior_parts(problem, z, fixed, data, (Layout.of(z),))[0]
        if any(part.fn is None for part in priors.values()) or (len(z) > 1 and joint.components is None):
            raise PriorError(
                f"curvature={curvature!r} needs independent Gaussian priors on all sites that are integrated over, and some are not "
                f"Gaussian or depend on each other: name strengths and other hyperparameters in optimise=(...). The sites are {list(z)}"
            )
        return (data_side(view, uses, priors, probes, block_size) if curvature == "ntk" else dual(view, uses, priors, probes),)

    if curvature in TAPPED:
        check_priors(view, priors, curvature)
    pieces: dict[str, Piece] = {}
    if uses.weights or uses.biases:
        if curvature == "block":
            pieces = blocks(view, uses, probes, chunk)
        elif curvature == "diag":
            pieces = spectra(view, uses, probes, None, priors, limit=chunk)
        elif curvature == "ekfac":
            basis = eigenbasis(view, uses, probes, chunk) if basis is None else basis
            # A Kronecker basis is not that of a correlated prior: the bound stays one, but where the prior leaves few directions
            # open it counts them in all. Blocks that fit are taken whole.
            correlated = [n for n in uses.weights if priors[n].variance is None and layouts[n].size <= _LARGEST_FALLBACK]
            pieces = spectra(view, uses, probes, basis, priors, correlated, chunk)
        else:
            pieces = factors(view, uses, probes, reduce=curvature == "kfac_reduce", limit=chunk)
    for name, layout in layouts.items():
        if name not in pieces:
            small = curvature == "block" or (curvature != "diag" and layout.size <= _LARGEST_FALLBACK)
            pieces[name] = dense(view, layout, probes, chunk) if small else diagonal(view, layout, probes, priors[name], chunk)
    return tuple(pieces[name] for name in z)


@full_precision
def measure_basis(
    problem: Problem,
    z: Values,
    fixed: Values,
    data: Data,
    *,
    probes: Probes = EXACT,
    chunk: int | None = None,
    factor: float | jax.Array | None = None,
) -> Basis:
    """The basis of ``"ekfac"``: eigenvectors of Kronecker factors, by tapped weight, constant under differentiation."""
    view = View(problem, z, fixed, data, factor)
    uses = find_uses(view)
    return eigenbasis(view, uses, probes, chunk) if uses.weights else {}


def untapped(problem: Problem, z: Values, data: Data, curvature: str) -> tuple[str, ...]:
    """The sites that a structured curvature treats by dense blocks or diagonals, for want of a tap."""
    if curvature not in TAPPED:
        return ()
    taps = problem.structure(*data).taps.values()
    return tuple(name for name in z if all(name not in (meta.weight, meta.bias) for meta in taps))
