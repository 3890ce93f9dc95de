"""Laplace: MAP and evidence interleaved, and a Gaussian posterior from the curvature at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bayes_sym.errors import CurvatureError, OptionError

from . import rows
from .chunks import start_state
from .climb import climb_evidence, constrained, split_weights
from .collapse import warn_if_collapsed
from .curvature.measure import CURVATURES, measure, untapped
from .curvature.site_priors import prior_parts
from .evidence import Evidence, as_probes, check_options, evaluate, evidence_kind
from .map import ADAM
from .posterior import GaussianPosterior, PointPosterior, Posterior
from .problem import Problem, Values
from .rows import Data
from .scheme import Info, Scheme, check_start
from .structure import Structure
from .whitening import whitened_update


__all__ = ["Laplace"]

_HYPER = optax.adam(0.1)


class LaplaceState(NamedTuple):
    """Unconstrained values of the weights and of the optimised sites, and both optimisers' states."""

    z: Values
    hyper: Values
    optimizer: Any
    hyper_optimizer: Any


@dataclass(frozen=True)
class Laplace(Scheme):
    """A Gaussian at the mode, with the generalised Gauss-Newton curvature (Immer et al. 2021, "Scalable marginal likelihood").

    While the weights are optimised, the sites named by `optimise` are moved up the Laplace evidence: type-II maximum
    likelihood of prior strengths, softness and noise. Modes are those of the density in unconstrained coordinates. The
    prior is the weight decay; there is no other.

    Attributes:
        optimizer: an optax optimiser of the weights.
        curvature: of the posterior, and of the evidence unless `objective` says otherwise; see `log_evidence`.
            ``"ekfac"`` keeps its basis fixed during each update of the optimised sites. None for no Gaussian: the posterior is then
            the mode alone, a `PointPosterior`, and `objective` names the curvature of the evidence.
        optimise: patterns of the sites to choose by evidence, e.g. ``("softness", "*.scale")``; all others are
            integrated over.
        hyper_optimizer: an optax optimiser of those sites, in unconstrained coordinates.
        burn_in: steps before the first evidence update; None for a fifth of all steps.
        refresh: steps between evidence updates; None for a twentieth of all steps.
        hyper_steps: steps on the evidence per update. A step that lowers the evidence is taken back.
        trust: the farthest an optimised site moves in one update, in unconstrained coordinates (for strengths: in their
            logarithm), so that a pathway is not given up before its weights have been trained.
        whiten: whether the optimiser sees the weights in units of their prior, theta = mean + L y with L L' the prior covariance.
            The modes are the same, but steps scale with strengths: a weight whose prior is narrow neither jitters nor
            diverges. Learning rates are then relative to 1 (about ten times those of plain weights).
        start: what the first weights, drawn from the prior, are multiplied with. Under a wide prior a fraction keeps the
            signals of a deep net in range at the start.
        update: ``"gradient"``, or ``"mackay"`` to move positive prior strengths by the fixed point that balances effective
            parameters and scatter (MacKay 1992), without a learning rate; sites that the likelihood depends on, and those
            that are not positive, take gradient steps.
        objective: the curvature of the evidence that is climbed, e.g. ``"ntk"``; None for that of the posterior.
        correction: of the evidence that is climbed. ``"newton"`` takes the linearised model at its own mode; ``"seen"``, for
            ``"dual"``, takes the weights as the data see them: weights that the data do not determine, and that training has
            not yet brought to their prior mean, then do not widen priors.
        probes: random probes per measurement of that objective, or ``"exact"``.
        posterior_probes: the same for the curvature of the posterior at the end; with a number its evidence is an estimate
            and no bound.
        block_size: rows per block of ``"ntk"``.
        subset: patterns of the sites to integrate over, e.g. ``("net.4.*",)``, or ``"last"`` for the last tapped weight and
            its bias; the other weights stay at the mode, and the evidence is conditional on them. None for all.
        chunk: the most rows at a time in measurements; None for what a fixed amount of memory holds.
    """

    optimizer: optax.GradientTransformation = ADAM
    curvature: str | None = "ekfac"
    optimise: tuple[str, ...] = ()
    hyper_optimizer: optax.GradientTransformation = _HYPER
    burn_in: int | None = None
    refresh: int | None = None
    hyper_steps: int = 20
    trust: float = 1.0
    whiten: bool = False
    start: float = 1.0
    update: str = "gradient"
    objective: str | None = None
    correction: str | None = None
    probes: int | str = "exact"
    posterior_probes: int | str = "exact"
    block_size: int = 128
    subset: tuple[str, ...] | str | None = None
    chunk: int | None = None

    def check(self, problem: Problem, structure: Structure, num_steps: int) -> None:
        """Refuses unknown options and site patterns."""
        measured = self.objective or self.curvature
        if measured is None and self.optimise:
            raise OptionError(
                f"curvature=None has no evidence to choose optimise={self.optimise} by: name the one to climb, objective='ekfac', say"
            )
        for name in (self.curvature, self.objective):
            if name is not None and name not in CURVATURES:
                raise CurvatureError(f"unknown curvature {name!r}: choose one of {', '.join(CURVATURES)}")
        if self.curvature in ("ntk", "dual"):
            raise CurvatureError(
                f"curvature={self.curvature!r} gives no posterior over the weights: use objective={self.curvature!r} beside "
                "curvature='ekfac', say"
            )
        if measured is not None:
            check_options(measured, self.correction, self.block_size, self.chunk)
        if self.update not in ("gradient", "mackay"):
            raise OptionError(f"update must be 'gradient' or 'mackay', got {self.update!r}")
        check_start(self.start)
        for name, probes in (("probes", self.probes), ("posterior_probes", self.posterior_probes)):
            if probes != "exact" and (not isinstance(probes, int) or probes < 1):
                raise OptionError(f"{name} must be 'exact' or a number of at least 1, got {probes!r}")
        if not self.trust > 0:
            raise OptionError(f"trust is how far a site may move in one update, so it must be positive, got {self.trust}")
        if isinstance(self.optimise, str):
            raise OptionError(f"optimise must be a tuple of names, got {self.optimise!r}: write optimise=({self.optimise!r},)")
        held = problem.match(self.optimise, structure)
        if len(held) == len(structure.latent):
            raise OptionError(f"optimise={self.optimise} names every site: there is nothing left to integrate over")
        self.integrated(problem, structure)

    def integrated(self, problem: Problem, structure: Structure) -> tuple[str, ...]:
        """The sites of the Gaussian."""
        held = problem.match(self.optimise, structure)
        free = tuple(name for name in structure.latent if name not in held)
        if self.subset is None:
            return free
        if self.subset == "last":
            if not structure.taps:
                raise OptionError(
                    "subset='last' is the last tapped weight, and the model has no taps: name the sites, subset=('w',)"
                )
            last = list(structure.taps.values())[-1]
            chosen: tuple[str | None, ...] = (last.weight, last.bias)
        elif isinstance(self.subset, str):
            raise OptionError(f"subset must be a tuple of names or 'last', got {self.subset!r}: write subset=({self.subset!r},)")
        else:
            chosen = problem.match(self.subset, structure)
        found = tuple(name for name in free if name in chosen)
        if not found:
            raise OptionError(f"subset={self.subset} leaves nothing to integrate over: optimise={self.optimise} holds it already")
        return found

    def check_data(self, problem: Problem, data: Data) -> None:
        """Refuses priors and likelihoods that the curvature cannot price, by an abstract run of the end of the fit."""
        state = jax.eval_shape(partial(start_state, self, problem), jax.random.key(0), data)
        if self.curvature is not None:
            jax.eval_shape(partial(_approximate, self, problem), jax.random.key(0), state, data)
        if self.optimise:
            jax.eval_shape(partial(climb_evidence, self, problem), jax.random.key(0), state, data)

    def boundaries(self, num_steps: int) -> tuple[int, ...]:
        """The steps before which the evidence moves the optimised sites; the last step is one of them."""
        if not self.optimise:
            return ()
        burn_in = num_steps // 5 if self.burn_in is None else self.burn_in
        refresh = max(1, num_steps // 20) if self.refresh is None else self.refresh
        found = range(max(1, burn_in), num_steps, refresh)
        return tuple(sorted({*found, num_steps - 1})) if found else ()

    def init(self, key: jax.Array, problem: Problem, data: Data) -> LaplaceState:
        """Weights drawn from the prior times `start`, hyperparameters at their prior medians."""
        values = problem.initial(key, data, start=self.start)
        held = problem.match(self.optimise, problem.structure(*data))
        hyper = {name: values[name] for name in held}
        z = {name: value for name, value in values.items() if name not in held}
        return LaplaceState(z, hyper, self.optimizer.init(z), self.hyper_optimizer.init(hyper))

    def step(
        self, key: jax.Array, state: LaplaceState, problem: Problem, batch: Data, factor: jax.Array
    ) -> tuple[LaplaceState, Info]:
        """One optimiser step of the weights on the negative log joint, the optimised sites held."""

        def loss(z: Values) -> jax.Array:
            density = problem.log_density({**z, **state.hyper}, batch, factor=factor, key=key)
            return -(density.likelihood + density.prior + density.log_det) / (factor * rows.num_rows(batch))

        value, gradient = jax.value_and_grad(loss)(state.z)
        if self.whiten:
            updates, optimizer = whitened_update(problem, self.optimizer, gradient, state.optimizer, state.z, state.hyper, batch)
        else:
            updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.z)
        return state._replace(z=optax.apply_updates(state.z, updates), optimizer=optimizer), Info(value)

    def cross(self, key: jax.Array, state: LaplaceState, problem: Problem, data: Data, step: int) -> LaplaceState:
        """`hyper_steps` steps of the optimised sites up the evidence."""
        return climb_evidence(self, problem, key, state, data)

    def posterior(self, key: jax.Array, state: LaplaceState, problem: Problem, data: Data, records: Any) -> Posterior:
        """The Gaussian at the last weights, with its evidence; or these weights alone."""
        if self.curvature is None:
            if self.optimise:
                warn_if_collapsed(problem, self.position(state), data, partial(_diagonal, self, problem, key, state, data))
            return PointPosterior(problem, problem.take(data, slice(0, 1)), self.position(state))
        found, evidence = _approximate(self, problem, key, state, data)
        if not bool(jnp.isfinite(evidence.value)):
            raise CurvatureError(
                f"the {evidence.kind} evidence is {evidence.value} (log likelihood {evidence.log_likelihood}): a prior has an indefinite "
                f"Hessian at this point. Name its hyperparameters in optimise=(...); the sites are {list(problem.structure(*data).latent)}"
            )
        if found.point:  # else nothing was optimised, so nothing was given up
            warn_if_collapsed(problem, found.mean, data, lambda: found)
        return found

    def position(self, state: LaplaceState) -> Values:
        """The weights and the optimised sites."""
        return {**state.z, **state.hyper}


def _diagonal(scheme: Laplace, problem: Problem, key: jax.Array, state: LaplaceState, data: Data) -> GaussianPosterior:
    """The cheapest Gaussian."""
    found, _ = _approximate(replace(scheme, curvature="diag", posterior_probes=1), problem, key, state, data)
    return found


@partial(jax.jit, static_argnames=("scheme", "problem"))
def _approximate(
    scheme: Laplace, problem: Problem, key: jax.Array, state: LaplaceState, data: Data
) -> tuple[GaussianPosterior, Evidence]:
    assert scheme.curvature is not None
    probes = as_probes(scheme.posterior_probes, key)
    z, rest = split_weights(scheme, problem, state, data)
    point = {**rest, **state.hyper}
    fixed = constrained(problem, state, point, data)
    pieces = measure(problem, z, fixed, data, scheme.curvature, probes=probes, chunk=scheme.chunk)
    names = untapped(problem, z, data, scheme.curvature)
    evidence = evaluate(problem, z, fixed, data, pieces, evidence_kind(scheme.curvature, probes.count), names)
    parts = prior_parts(problem, z, fixed, data, tuple(piece.layout for piece in pieces))
    blocks = tuple(piece.posterior(part, piece.layout.flatten(z)) for piece, (part, _) in zip(pieces, parts, strict=True))
    example = problem.take(data, slice(0, 1))
    return GaussianPosterior(problem, example, blocks, point, evidence.value, evidence.kind, linearise=True), evidence
