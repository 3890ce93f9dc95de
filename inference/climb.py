"""Moving the sites that are optimised up the evidence: steps within a trust region, taken back where they lower it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from bayes_sym import _numpyro
from bayes_sym._precision import full_precision

from .curvature.dependence import dependent_outputs, traced
from .curvature.measure import measure, measure_basis
from .curvature.pieces import Piece
from .evidence import (
    Evidence,
    as_probes,
    evaluate,
    evidence_kind,
    log_likelihood_and_gradient,
    log_likelihood_at,
    price,
    settled,
)
from .problem import Problem, Values
from .rows import Data


if TYPE_CHECKING:
    from .laplace import Laplace, LaplaceState

__all__ = ["climb_evidence", "constrained", "split_weights"]

_LONGEST = 2.0  # the longest step of a log strength by the fixed point


def split_weights(scheme: Laplace, problem: Problem, state: LaplaceState, data: Data) -> tuple[Values, Values]:
    """The unconstrained sites to integrate over, and the other weights."""
    names = scheme.integrated(problem, problem.structure(*data))
    rest = {name: value for name, value in state.z.items() if name not in names}
    return {name: state.z[name] for name in names}, rest


def constrained(problem: Problem, state: LaplaceState, held: Values, data: Data) -> Values:
    """The constrained values of the sites in `held`, given the weights of the state."""
    sites, _ = problem.latent_trace(data, unconstrained={**state.z, **held})
    return {name: sites[name]["value"] for name in held}


@partial(jax.jit, static_argnames=("scheme", "problem"))
@full_precision
def climb_evidence(scheme: Laplace, problem: Problem, key: jax.Array, state: LaplaceState, data: Data) -> LaplaceState:
    """`hyper_steps` steps of the optimised sites; none ends farther than `trust` from where it starts.

    A step that lowers the evidence, worked out anew at its end, is taken back, and the next one goes half as far. A model that draws
    noise, as for augmentation, has other noise at every update, and within one the same, so that steps can be compared.
    """
    with _numpyro.noise(key):
        return _climb(scheme, problem, key, state, data)


def _climb(scheme: Laplace, problem: Problem, key: jax.Array, state: LaplaceState, data: Data) -> LaplaceState:
    objective = scheme.objective or scheme.curvature
    assert objective is not None
    probes = as_probes(scheme.probes, key)
    z, rest = split_weights(scheme, problem, state, data)

    def held(hyper: Values) -> Values:
        return constrained(problem, state, {**rest, **hyper}, data)

    basis = None
    if objective == "ekfac":
        basis = measure_basis(problem, z, held(state.hyper), data, probes=probes, chunk=scheme.chunk)

    def measured(hyper: Values) -> tuple[Piece, ...]:
        return measure(
            problem,
            z,
            held(hyper),
            data,
            objective,
            probes=probes,
            basis=basis,
            block_size=scheme.block_size,
            chunk=scheme.chunk,
        )

    def likelihood_at(hyper: Values) -> jax.Array:
        return log_likelihood_at(problem, z, fixed=held(hyper), data=data, factor=None)

    # A curvature that does not move with the hyperparameters (prior strengths of centred weights) is measured once.
    depends, again = traced(lambda hyper: (measured(hyper), likelihood_at(hyper)), state.hyper)
    kind = evidence_kind(objective, probes.count)
    if any(jax.tree.leaves(depends)):

        def evidence(hyper: Values) -> Evidence:
            return evaluate(problem, z, held(hyper), data, measured(hyper), kind, correction=scheme.correction)
    else:
        pieces, likelihood = again(state.hyper)
        point, gradient = held(state.hyper), None
        if scheme.correction == "newton":
            _, gradient = log_likelihood_and_gradient(problem, z, fixed=point, data=data, factor=None, pieces=pieces)
        once = settled(problem, z, point, data, pieces)

        def evidence(hyper: Values) -> Evidence:
            return price(problem, z, held(hyper), data, once, likelihood, gradient, kind, (), scheme.correction)

    strengths = _strengths(problem, state.hyper, data, evidence) if scheme.update == "mackay" else []

    def descent(hyper: Values) -> tuple[jax.Array, Values]:
        return jax.value_and_grad(lambda hyper: -evidence(hyper).value)(hyper)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        """Looks at the proposal, takes it or not, and proposes anew; so one program serves the start too.

        The optimiser goes on where a step is taken back: momentum that led uphill meets the gradient there again.
        """
        kept, proposal, optimizer, reach = carry
        loss, gradient = descent(proposal)
        loss = loss.astype(kept[1].dtype)
        better = loss <= kept[1]  # not so where it is NaN
        kept = jax.tree.map(partial(jnp.where, better), (proposal, loss, gradient), kept)
        reach = jnp.where(better, jnp.minimum(1.0, 2 * reach), reach / 2)
        hyper, _, gradient = kept
        updates, optimizer = scheme.hyper_optimizer.update(gradient, optimizer, hyper)
        target = optax.apply_updates(hyper, updates)
        if strengths:
            target = {**target, **_fixed_point(evidence, hyper, strengths, scheme.correction == "newton")}
        proposal = jax.tree.map(
            lambda old, new, first: jnp.clip(old + reach * (new - old), first - scheme.trust, first + scheme.trust),
            hyper,
            target,
            state.hyper,
        )
        return (kept, proposal, optimizer, reach), None

    nowhere = (state.hyper, jnp.full((), jnp.inf), jax.tree.map(jnp.zeros_like, state.hyper))
    start = (nowhere, state.hyper, state.hyper_optimizer, jnp.full((), 0.5))
    ((hyper, *_), _, optimizer, _), _ = jax.lax.scan(step, start, None, length=scheme.hyper_steps + 1)
    return state._replace(hyper=hyper, hyper_optimizer=optimizer)


def _strengths(problem: Problem, hyper: Values, data: Data, evidence: Callable[[Values], Evidence]) -> list[str]:
    """The positive sites that only priors depend on."""
    sites, found = problem.structure(*data).latent, []
    for name in hyper:

        def log_likelihood(value: jax.Array, name: str = name) -> jax.Array:
            return evidence({**hyper, name: value}).log_likelihood

        if not dependent_outputs(log_likelihood, hyper[name]) and sites[name].positive:
            found.append(name)
    return found


def _fixed_point(evidence: Callable[[Values], Evidence], hyper: Values, names: list[str], corrected: bool) -> Values:
    """MacKay's update of log strengths.

    For variances proportional to h^p the scatter is E h^-p, and the log-determinant has the derivative p gamma in log h,
    gamma being the number of effective parameters. The evidence is stationary where E h^-p = gamma, so
    log h <- log h + log(E h^-p / gamma) / p, with p from the second derivative of the scatter. Where the evidence has the
    Newton correction, E h^-p is the scatter at the mode of the linearised model, whose derivative is that of scatter - decrement.
    """
    chosen = {name: hyper[name] for name in names}
    flat, unflatten = jax.flatten_util.ravel_pytree(chosen)

    def scatter(flat: jax.Array) -> jax.Array:
        return evidence({**hyper, **unflatten(flat)}).scatter

    def at_mode(flat: jax.Array) -> jax.Array:
        found = evidence({**hyper, **unflatten(flat)})
        return found.scatter - found.newton_decrement if corrected else found.scatter

    def log_det_ratio(flat: jax.Array) -> jax.Array:
        return evidence({**hyper, **unflatten(flat)}).log_det_ratio

    slope = jax.grad(scatter)(flat)
    power = -jnp.diagonal(jax.hessian(scatter)(flat)) / slope
    if corrected:
        slope = jax.grad(at_mode)(flat)
    step = jnp.log(-slope / jax.grad(log_det_ratio)(flat)) / power
    usable = jnp.isfinite(step)
    return unflatten(flat + jnp.clip(jnp.where(usable, step, 0.0), -_LONGEST, _LONGEST))
