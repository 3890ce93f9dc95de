"""How far the cheap curvatures are from the exact one: its log-determinant by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym._precision import full_precision
from bayes_sym.errors import BayesSymError, CurvatureError, OptionError, PriorError

from . import rows
from .blocks import Block, Layout
from .curvature.gram import Gram
from .curvature.kronecker import Kronecker
from .curvature.measure import BOUNDS, CURVATURES, measure
from .curvature.pieces import Piece
from .curvature.product import curvature_product
from .curvature.site_priors import prior_parts
from .curvature.view import View
from .evidence import log_evidence, split_sites, unconstrained
from .prior_parts import PriorPart
from .problem import Problem, Values
from .rows import Data


__all__ = ["Audit", "audit"]

Map = Callable[[jax.Array], jax.Array]

_DENSE = ("full", "block", "hessian")  # quadratic in the number of parameters: compared with only if asked for
_NO_ROOT = ("ntk", "dual", "hessian")  # no covariance of the weights, or an indefinite one: cannot precondition
_LARGEST_DENSE = 4096  # parameters of a Kronecker block that is written out because its prior has no scalar variance
_KRYLOV_ENTRIES = 2**25  # entries of Krylov bases that are held at once


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["log_det_ratio", "standard_error", "change", "slack"],
    meta_fields=["curvature", "num_matvecs", "num_probes", "size", "plain", "left_out"],
)
@dataclass(frozen=True)
class Audit:
    """An estimate of the exact log-determinant ratio, and what the cheaper curvatures lose against it.

    The estimate has two errors. The random one is `standard_error`. The other is a bias of the quadrature, which is
    never negative and falls as `num_matvecs` grows; `change` shows its size. A bias makes every slack too small.

    Attributes:
        log_det_ratio: the estimate of log|G + D| - log|D|, in nats.
        standard_error: its standard error over the probes.
        change: the estimate minus that from the first half of the matrix-vector products of every probe, never
            positive. A rule of thumb: what bias is left is smaller than this.
        slack: by curvature, the evidence with the exact curvature minus the evidence with this one, in nats of evidence:
            half of the difference of the log-determinant ratios (and of the scatters, which differ only where the prior
            of one site depends on another). Positive where the curvature gives a lower bound.
        curvature: the curvature that preconditions, or None.
        num_matvecs: matrix-vector products per probe.
        num_probes: the number of probes.
        size: the number of parameters.
        plain: sites that were not preconditioned, because their curvature has no root under their prior.
        left_out: curvatures that cannot price this model, each with the reason.
    """

    log_det_ratio: jax.Array
    standard_error: jax.Array
    change: jax.Array
    slack: dict[str, jax.Array]
    curvature: str | None
    num_matvecs: int
    num_probes: int
    size: int
    plain: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def slack_error(self) -> jax.Array:
        """The standard error of every slack, in nats of evidence: half of that of the log-determinant ratio."""
        return self.standard_error / 2

    def __str__(self) -> str:
        """A table in words and numbers."""
        how = "no preconditioner" if self.curvature is None else f"preconditioned by {self.curvature}"
        lines = [
            f"exact log-determinant ratio  {self.log_det_ratio:.2f} +- {self.standard_error:.2f} nats",
            f"  {self.size} parameters, {self.num_probes} probes of {self.num_matvecs} products each, {how}",
            f"  the second half of the products changed it by {self.change:.2f}",
        ]
        if self.plain:
            lines.append(f"  not preconditioned: {', '.join(self.plain)}")
        if self.slack:
            lines.append("evidence lost by a curvature against the exact one, in nats of evidence")
            width = max(map(len, self.slack))
            for name, slack in self.slack.items():
                bound = "  (a bound)" if name in BOUNDS else ""
                lines.append(f"  {name:<{width}}  {slack:10.2f} +- {self.slack_error:.2f}{bound}")
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.left_out])


@full_precision
def audit(
    problem: Problem,
    params: Values,
    *data: Any,
    key: jax.Array,
    curvature: str | None = "kfac",
    optimise: Sequence[str] = (),
    num_matvecs: int = 20,
    num_probes: int = 10,
    against: Sequence[str] | None = None,
    chunk: int | None = None,
) -> Audit:
    """Estimates the exact log-determinant ratio without forming a matrix, and the slack of the cheaper curvatures.

    With prior covariance L L', generalised Gauss-Newton matrix G = J' S S' J (S the root of the Fisher information) and
    a preconditioner K = W^-T W^-1, the curvature `curvature` plus the prior precision D = (L L')^-1,

        log|I + L' G L| = log|K| - log|D| + tr log(W' (G + D) W),
        tr log A ~ mean over probes v of v' log(A) v,    v uniform on {-1, 1}^size,

    and v' log(A) v = size * sum_j w_j log t_j, with t the eigenvalues of the tridiagonal matrix of `num_matvecs` Lanczos
    steps from v and w the squared first entries of its eigenvectors (Ubaru, Chen and Saad 2017, "Fast estimation of
    tr(f(A)) via stochastic Lanczos quadrature", SIAM J. Matrix Anal. Appl. 38). Without a preconditioner W = L. A good
    one matters where priors are weak: then the eigenvalues of I + L' G L span many orders of magnitude.

    A matrix-vector product is one forward and one backward derivative of the model. Rows go in chunks, so its memory
    does not grow with their number. The Lanczos vectors of a probe take num_matvecs * size numbers; probes run together
    where all of theirs are few. Needs the library matfree: ``pip install bayes-sym[audit]``. Not for use under jit.

    Args:
        problem: the model. Its operations need a forward-mode derivative.
        params: constrained values of all latent sites.
        data: the arguments of the model.
        key: the random key of the probes.
        curvature: the preconditioner, one of the curvatures of `log_evidence` that give a covariance of the weights, or
            None. It changes the errors of the estimate, not what is estimated. Sites whose prior it cannot price are not
            preconditioned.
        optimise: patterns of sites that are held at their values instead of integrated over, as in `log_evidence`.
        num_matvecs: matrix-vector products per probe; more lower the bias.
        num_probes: random vectors, at least 2; more lower the standard error.
        against: the curvatures whose slack is reported; None for all that price this model and are not dense.
        chunk: the most rows that are treated at a time; None for what a fixed amount of memory holds.

    Returns:
        The audit; print it for a table.

    Raises:
        OptionError: matfree is missing, sites are missing from `params`, or an option is out of its range.
        CurvatureError: an unknown curvature, a likelihood without a Fisher root, or numbers that are not finite, such as
            those of a prior whose Hessian is indefinite.
        PriorError: a curvature named in `against` cannot price a prior.
    """
    hessenberg = _lanczos_of_matfree()
    _check_options(curvature, num_matvecs, num_probes, against, chunk)
    data = rows.as_arrays(data)
    free, fixed = split_sites(problem, params, data, optimise)
    chosen = _preconditioner(problem, free, fixed, data, curvature, chunk)
    size = sum(layout.size for layout in chosen.layouts)
    steps = min(num_matvecs, size)
    diagonal, below = _tridiagonals(problem, chosen, fixed, data, key, hessenberg, steps, num_probes, chunk)
    probes, halved = (_quadratures(size, diagonal[:, :k], below[:, : k - 1]) for k in (steps, max(1, steps // 2)))
    dtype = chosen.log_det.dtype
    log_det_ratio = jnp.asarray(float(chosen.log_det) + probes.mean(), dtype)
    slack, left_out = {}, {}
    for name in CURVATURES if against is None else against:
        if against is None and name in _DENSE:
            continue
        try:
            found = log_evidence(problem, params, *data, curvature=name, optimise=optimise, chunk=chunk)
        except BayesSymError as error:
            if against is not None:
                raise
            left_out[name] = str(error)
        else:
            slack[name] = (found.log_det_ratio + found.scatter - log_det_ratio - chosen.scatter) / 2
    return Audit(
        log_det_ratio,
        standard_error=jnp.asarray(probes.std(ddof=1) / math.sqrt(num_probes), dtype),
        change=jnp.asarray(probes.mean() - halved.mean(), dtype),
        slack=slack,
        curvature=curvature,
        num_matvecs=steps,
        num_probes=num_probes,
        size=size,
        plain=chosen.plain if curvature is not None else (),
        left_out=tuple(left_out.items()),
    )


def _check_options(
    curvature: str | None, num_matvecs: int, num_probes: int, against: Sequence[str] | None, chunk: int | None
) -> None:
    if isinstance(against, str):
        raise OptionError(f"against must be a tuple of curvatures, got {against!r}: write against=({against!r},)")
    for name in (*(() if curvature is None else (curvature,)), *(against or ())):
        if name not in CURVATURES:
            raise CurvatureError(f"unknown curvature {name!r}: choose one of {', '.join(CURVATURES)}")
    if curvature in _NO_ROOT:
        raise OptionError(
            f"curvature={curvature!r} cannot precondition, because it gives no positive definite curvature of the weights: use 'kfac', "
            "'ekfac', 'diag' or None. It may stand in against=(...)"
        )
    if num_matvecs < 1 or (chunk is not None and chunk < 1):
        raise OptionError(f"num_matvecs and chunk must be at least 1, got {num_matvecs} and {chunk}")
    if num_probes < 2:
        raise OptionError(f"num_probes must be at least 2, got {num_probes}: one probe has no standard error")


def _lanczos_of_matfree() -> Callable[..., Any]:
    try:
        from matfree import decomp
    except ImportError as error:
        raise OptionError(
            "audit needs the library matfree, which is not installed: pip install bayes-sym[audit]. Without it, "
            "log_evidence(..., curvature='full') gives the exact log-determinant ratio of small models"
        ) from error
    # tridiag_sym is this factorisation too, but it averages the entries above and below the diagonal. Those below are
    # the lengths of the residuals, from which a breakdown can be seen.
    return decomp.hessenberg


# The coordinates in which Lanczos runs: a root W of a covariance that is near the posterior's, block by block


@partial(jax.tree_util.register_dataclass, data_fields=["z", "blocks", "log_det", "scatter"], meta_fields=["layouts"])
@dataclass(frozen=True)
class _Preconditioner:
    """The map W, where it stands, and its log-determinant.

    Attributes:
        z: unconstrained values of the sites that are integrated over.
        blocks: per layout, a Gaussian with covariance W W', or None where W is the root of the prior.
        log_det: -2 log|W| - log|D|, with D the exact prior precision.
        scatter: of the exact prior.
        layouts: the sites of every block, in the order of the vectors that W takes.
    """

    z: Values
    blocks: tuple[Block | None, ...]
    log_det: jax.Array
    scatter: jax.Array
    layouts: tuple[Layout, ...]

    @property
    def plain(self) -> tuple[str, ...]:
        """The sites where W is the root of the prior."""
        pairs = zip(self.layouts, self.blocks, strict=True)
        return tuple(name for layout, block in pairs if block is None for name in layout.names)

    def half(self, parts: tuple[PriorPart, ...], u: jax.Array) -> jax.Array:
        """W' u for a vector u in the order of `z`, given the prior of every layout."""
        values, found = Layout.of(self.z).unflatten(u), []
        for layout, block, part in zip(self.layouts, self.blocks, parts, strict=True):
            own = layout.flatten(values)
            found.append(part.root_transposed(own) if block is None else block.half(own))
        return jnp.concatenate(found)


@partial(jax.jit, static_argnames=("problem", "curvature", "chunk"))
def _preconditioner(
    problem: Problem, free: Values, fixed: Values, data: Data, curvature: str | None, chunk: int | None
) -> _Preconditioner:
    z = unconstrained(problem, free, fixed, data)
    ((whole, scatter),) = prior_parts(problem, z, fixed, data, (Layout.of(z),))
    if curvature is None:
        return _Preconditioner(z, (None,), jnp.zeros_like(scatter), scatter, (Layout.of(z),))
    pieces = measure(problem, z, fixed, data, curvature, chunk=chunk)
    layouts = tuple(piece.layout for piece in pieces)
    parts = [part for part, _ in prior_parts(problem, z, fixed, data, layouts)]
    blocks, ratios = zip(*(_block(piece, part) for piece, part in zip(pieces, parts, strict=True)), strict=True)
    # zero, unless the prior of one site depends on another
    between = whole.log_det_root - sum((part.log_det_root for part in parts), jnp.zeros(()))
    return _Preconditioner(z, blocks, sum(ratios, jnp.zeros(())) + 2 * between, scatter, layouts)


def _block(piece: Piece, part: PriorPart) -> tuple[Block | None, jax.Array]:
    """The posterior block of a piece and its log-determinant ratio; none where the piece cannot price the prior."""
    for candidate in (piece, _written_out(piece)):
        if candidate is not None:
            try:
                return candidate.posterior(part, part.mean), candidate.log_det_ratio(part)
            except PriorError:
                continue
    return None, jnp.zeros(())


def _written_out(piece: Piece) -> Gram | None:
    """A small Kronecker piece as a dense matrix, which any prior can price."""
    if not isinstance(piece, Kronecker) or piece.layout.size > _LARGEST_DENSE:
        return None
    factors = (piece.outputs, piece.inputs) if piece.transposed else (piece.inputs, piece.outputs)
    return Gram(piece.layout, jnp.kron(*factors))


# Lanczos, with the exact curvature


@partial(jax.jit, static_argnames=("problem", "hessenberg", "steps", "num_probes", "chunk"))
def _tridiagonals(
    problem: Problem,
    chosen: _Preconditioner,
    fixed: Values,
    data: Data,
    key: jax.Array,
    hessenberg: Callable[..., Any],
    steps: int,
    num_probes: int,
    chunk: int | None,
) -> tuple[jax.Array, jax.Array]:
    """For every probe the tridiagonal matrix of W' (G + D) W: its diagonal (probes, steps), and what is below it."""
    layout = Layout.of(chosen.z)
    ((prior, _),) = prior_parts(problem, chosen.z, fixed, data, (layout,))
    parts = tuple(part for part, _ in prior_parts(problem, chosen.z, fixed, data, chosen.layouts))
    half = partial(chosen.half, parts)
    root = jax.linear_transpose(half, prior.mean)
    whiten = jax.linearize(prior.whiten, prior.mean)[1]  # v -> L^-1 v, without the rounding of subtracting the mean
    unwhiten = jax.linear_transpose(whiten, prior.mean)
    together = num_probes if num_probes * steps * layout.size <= _KRYLOV_ENTRIES else 1
    curvature = curvature_product(View(problem, chosen.z, fixed, data), together, chunk)

    def product(v: jax.Array) -> jax.Array:
        (moved,) = root(v)
        return half(curvature(moved) + unwhiten(whiten(moved))[0])

    def of_probe(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        matrix = hessenberg(steps, reortho="full", custom_vjp=False)(product, v).J_small
        return jnp.diagonal(matrix), jnp.diagonal(matrix, -1)

    probes = jax.random.rademacher(key, (num_probes, layout.size), prior.mean.dtype)
    return jax.vmap(of_probe)(probes) if together == num_probes else jax.lax.map(of_probe, probes)


# Quadrature, on the host: the matrices are tiny, and their eigen-decompositions stay out of the compiled program


def _quadratures(size: int, diagonals: jax.Array, belows: jax.Array) -> np.ndarray:
    """v' log(A) v for every probe, from tridiagonal matrices."""
    return np.array([_quadrature(size, d, b) for d, b in zip(np.asarray(diagonals), np.asarray(belows), strict=True)])


def _quadrature(size: int, diagonal: np.ndarray, below: np.ndarray) -> float:
    """|v|^2 e1' log(T) e1, with T cut where Lanczos broke down.

    A residual of length zero up to rounding means that the Krylov space is complete, and the leading part of T exact.
    What follows it is noise, or NaN.
    """
    steps, tolerance = len(diagonal), 10 * np.finfo(diagonal.dtype).eps
    for end in range(1, steps + 1):
        if not np.isfinite(diagonal[end - 1]):
            raise CurvatureError(
                "the curvature is not finite at this point: params or data hold NaN or infinity, or the Hessian of a prior is "
                "indefinite. Name scale hyperparameters in optimise=(...)"
            )
        largest = max(np.abs(diagonal[:end]).max(), np.abs(below[: end - 1]).max(initial=0))
        if end == steps or below[end - 1] <= tolerance * largest:
            break
    matrix = np.diag(diagonal[:end].astype(float))
    matrix += np.diag(below[: end - 1].astype(float), -1) + np.diag(below[: end - 1].astype(float), 1)
    values, vectors = np.linalg.eigh(matrix)
    # A is positive definite; by rounding, an eigenvalue far below the largest can come out negative.
    return size * float(vectors[0] ** 2 @ np.log(np.maximum(values, np.finfo(diagonal.dtype).eps * values[-1])))
