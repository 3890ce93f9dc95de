"""Fits of one ladder net, by evidence or as a plain MAP, and what they say: scores of the net, and shares of its pathways."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import brentq

from bayes_sym.diagnostics import PathwayShare, PathwayShares, calibration, pathway_shares, plot_pathway_shares
from bayes_sym.errors import CollapseWarning
from bayes_sym.inference import Evidence, HeldEvidence, Problem, Progress, fit
from bayes_sym.inference.plan import Keys
from bayes_sym.inference.problem import Values
from bayes_sym.layers import Layer, pathways
from bayes_sym.models import LadderClassifier

from .in_rounds import InRounds, round_starts, with_held


if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "Images", "Job", "Outcome", "learn", "outcome_of", "rows_of"]

Images = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Training images and labels, test images, labels, and the transforms of the test images (transforms, N, ...)."""

COLUMNS = {
    "model": ("model", "{}"),
    "inference": ("inference", "{}"),
    "relative": ("dense", "{:g}"),
    "layer": ("layer", "{}"),
    "pathway": ("pathway", "{}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "nll": ("NLL", "{:.3f}"),
    "agreement": ("agreement", "{:.3f}"),
    "log_evidence": ("log evidence", "{:.1f}"),
    "evidence_kind": ("kind", "{}"),
    "parameters": ("weights", "{:,}"),
    "gamma": ("effective", "{:.1f}"),
    "share": ("share", "{:.3f}"),
    "energy": ("energy", "{:.3f}"),
    "precision": ("precision", "{:.3g}"),
    "mackay": ("MacKay", "{:.3f}"),
    "seconds": ("seconds", "{:.0f}"),
}
"""The columns of the printed table."""


_MEASURED = 50  # images that logits at the start are measured on, which mixed-groups has not turned
_LOOKED_AT = 200  # test images that energies of pathways are means over
_STRENGTHS = (0.1, 30.0)  # of the first weights, between which the one is sought that spreads the logits as asked
_GAIN = 2.0  # strength of the first weights: with less, signals die out through the means of pixels and the activations
_RATE = 0.028  # learning rate at the start, relative to first weights of that strength


class Job(NamedTuple):
    """One fit.

    Attributes:
        model: the net, with the strengths that it starts with.
        learned: whether strengths are learned by evidence, between rounds of the fit; else they stay, and the fit is a MAP.
        data: a function without arguments that gives the images; predictions are compared over the transforms. It is called
            where the fit runs.
        steps: steps of the fit.
        seed: of the fit.
        batch: images per step.
        spread: standard deviation over images that the logits start with, about 0; None for first weights of one strength.
        clip: the longest gradient of the whitened weights, per image; None for any length.
        evidence: whether the evidence of a MAP is worked out too, at the strengths that it has.
        columns: of the Fisher roots, to draw for that evidence: more than there are effective parameters.
        rounds: in which the last steps are taken, those of a MAP too; see `InRounds`.

    Learned strengths end where MacKay's identity holds, with the weights held.

    A net with a wider prior (`LadderClassifier.scale`) starts at the same weights, and its steps are as long. Biases start at 0:
    drawn from the prior they would add up to the same large outputs for every image (docs/decisions.md).
    """

    model: LadderClassifier
    learned: bool
    data: Callable[[], Images]
    steps: int
    seed: int
    batch: int = 100
    spread: float | None = None
    clip: float | None = None
    evidence: bool = False
    columns: int = 1600
    rounds: int = 3


@dataclass(frozen=True)
class Outcome:
    """What a fit found.

    Attributes:
        scores: of the net as a whole.
        shares: of its pathways at the end; None for a MAP without evidence.
        history: (step, shares of energy) over training.
    """

    scores: dict[str, Any]
    shares: PathwayShares | None
    history: list[tuple[int, PathwayShares]]

    def draw(self, figure: Figure) -> None:
        """The shares of energy over training, a panel per layer."""
        plot_pathway_shares(self.history, "energy", figure)


def _measured(job: Job, problem: Problem, x: np.ndarray, y: np.ndarray) -> tuple[float, Problem]:
    """What the weights that the prior draws are multiplied with, and the problem with last biases that centre the logits.

    Through the layers of a narrow net the size of its logits depends on the draw: at one and the same strength it differs by
    factors of 50 between seeds, and most of it is the same for every image (docs/decisions.md). So the draw itself is measured.
    """
    drawn = problem.initial(Keys.of(jax.random.key(job.seed)).init, (jnp.asarray(x), jnp.asarray(y)))
    weights, images = _weights(drawn), jnp.asarray(x[:_MEASURED])

    @jax.jit
    def logits_at(start: jax.Array, weights: Values, images: jax.Array) -> jax.Array:
        return job.model.spec.apply({name: start * value for name, value in weights.items()}, images)

    def logits(log_strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Their means, and what is left of them."""
        start = jnp.asarray(np.exp(log_strength) / job.model.scale, images.dtype)
        found = np.asarray(logits_at(start, weights, images), float)
        return found.mean(axis=0), found - found.mean(axis=0)

    strength = brentq(lambda log: logits(log)[1].std() - job.spread, *np.log(_STRENGTHS), xtol=1e-3)
    (last,) = (f"net.{site}" for site in pathways(job.model.spec)[-1].sites if site.endswith("bias"))
    centred = ((last, tuple(-logits(strength)[0])), *problem.starts)
    return float(np.exp(strength) / job.model.scale), replace(problem, starts=centred)


def _weights(params: Values) -> Values:
    """The weights of the net by the names that its layers give them."""
    return {name.removeprefix("net."): value for name, value in params.items() if name.startswith("net.")}


def _scheme(job: Job, start: float) -> InRounds:
    rate, starts = _RATE * _GAIN / job.model.scale, round_starts(job.steps, job.rounds)
    lengths = np.diff([0, *starts, job.steps])
    schedule = optax.join_schedules([optax.cosine_decay_schedule(rate, int(steps), 0.05) for steps in lengths], starts)
    optimizer = optax.adam(schedule)
    if job.clip is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(job.clip), optimizer)
    return InRounds(
        optimizer,
        None,  # predictions are those of the mode
        optimise=("strength",),
        whiten=True,
        start=start,
        objective="dual",
        rounds=job.rounds,
        columns=job.columns,
        still=not job.learned,
    )


def learn(job: Job) -> Outcome:
    """Fits the net and scores its mode."""
    x, y, x_test, y_test, transforms = job.data()
    model = replace(job.model, learned=True, relative=1.0)  # whatever a net starts from, its steps are one program
    # the median of a few draws of the prior would do for other hyperparameters, but where strengths start is what is compared here
    problem = Problem(model, starts=(("net.*bias", 0.0), ("strength", job.model.start())))
    spec, start, looked_at = model.spec, _GAIN / model.scale, x_test[:_LOOKED_AT]
    if job.spread is not None:
        start, problem = _measured(job, problem, x, y)
    history: list[tuple[int, PathwayShares]] = []

    def watch(progress: Progress) -> None:
        history.append((progress.step, pathway_shares(spec, progress.state.z, looked_at)))

    with warnings.catch_warnings():
        warnings.simplefilter("always", CollapseWarning)
        found = fit(
            problem,
            _scheme(job, start),
            jax.random.key(job.seed),
            x,
            y,
            num_steps=job.steps,
            batch_size=min(job.batch, len(x)),
            callbacks=(watch,) if job.learned else (),
            progress=False,
        )
    params = found.scheme.position(found.state)
    weights = _weights(params)
    predict = jax.jit(lambda weights, x: jax.nn.softmax(spec.apply(weights, x)))  # one program for all seeds
    quality = calibration(predict(weights, jnp.asarray(x_test)), y_test)
    by_transform = np.stack([np.asarray(predict(weights, jnp.asarray(some))) for some in transforms])
    labels = by_transform.argmax(axis=-1)
    scores: dict[str, Any] = {
        "model": job.model.variant,
        "inference": "evidence" if job.learned else "map",
        "scale": model.scale,
        "relative": job.model.relative,
        "accuracy": quality.accuracy,
        "accuracy_se": quality.accuracy_se,
        "nll": quality.nll,
        "nll_se": quality.nll_se,
        "agreement": float(np.mean(labels[:, None] == labels[None])),
        "parameters": spec.num_weights(),
        "log_evidence": None,
        "evidence_kind": None,
        "mackay": None,
        "steps": job.steps,
        "seconds": round(found.seconds, 1),
    }
    if not (job.learned or job.evidence):
        return Outcome(scores, None, history)
    strength, evidence, gamma = _exact(job, problem, {**params, "strength": jnp.exp(params["strength"])}, x, y)
    scores["log_evidence"] = float(evidence.value)
    scores["log_evidence_per_row"] = scores["log_evidence"] / len(x)
    scores["evidence_kind"] = evidence.kind
    scores["scatter"] = float(evidence.scatter)
    scores["effective"] = float(sum(gamma.values()))
    if job.learned:
        scores["mackay"] = _off_balance(spec, params, strength, gamma)
    strengths = list(np.asarray(strength))
    return Outcome(scores, pathway_shares(spec, params, looked_at, gamma=gamma, strengths=strengths), history)


def _off_balance(spec: Layer, params: Values, strength: jax.Array, gamma: Values) -> float:
    """The largest |scatter/gamma - 1| of a pathway; both are weighted by the power of the strength that a site's scale has."""
    sites, found = {site.name: site for site in spec.sites()}, []
    for scale, pathway in zip(np.asarray(strength, float), pathways(spec), strict=True):
        own = [(sites[name], f"net.{name}") for name in pathway.sites]
        # by NumPy: JAX would compile a program for the shape of every site
        squares = {name: (np.asarray(params[name], float) ** 2).sum() for _, name in own}
        scatter = sum(site.share * site.fan_in / scale ** (2 * site.share) * squares[name] for site, name in own)
        found.append(abs(scatter / sum(site.share * float(gamma[name]) for site, name in own) - 1))
    return float(max(found))


def _exact(
    job: Job, problem: Problem, params: Values, x: np.ndarray, y: np.ndarray
) -> tuple[jax.Array, Evidence, dict[str, jax.Array]]:
    """The strengths that the net ends with, by pathway; its exact evidence; and its effective parameters by site."""

    def found(held: HeldEvidence) -> tuple[jax.Array, Evidence, dict[str, jax.Array]]:
        fixed = {"strength": jnp.asarray(params["strength"])}
        if job.learned:
            fixed = held.balanced(fixed)
        return fixed["strength"], held(fixed), held.effective_parameters(fixed)

    return with_held(found, problem, params, (x, y), job.columns)


def outcome_of(kept: Sequence[Any]) -> Outcome:
    """An outcome from what was kept of it."""
    scores, shares, history = kept
    return Outcome(scores, None if shares is None else _shares(shares), [(step, _shares(then)) for step, then in history])


def _shares(kept: Sequence[Any]) -> PathwayShares:
    (rows,) = kept
    return PathwayShares(tuple(PathwayShare(*row) for row in rows))


def rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    """One flat row for the net, and one per layer and pathway where the evidence was worked out."""
    name = {key: outcome.scores[key] for key in ("model", "inference")}
    rows = [outcome.scores]
    if outcome.shares is not None:
        verdicts = outcome.shares.verdicts()
        rows += [{**name, **share._asdict(), "verdict": verdicts.get(share.layer)} for share in outcome.shares.rows]
    return rows
