"""The posterior of a range: variational inference of the rotated shapes, copies marginalised, the reward as a prior of the model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bayes_sym.inference import MeanField, Pace, PerSite, Point, Problem, Progress, Variational, fit, paced
from bayes_sym.inference.families import Family
from bayes_sym.layers import Augment

from .augmented import Arm, Classifier, Outcome, Task, num_steps, score_rows
from .experiment import Options


__all__ = ["learn_posterior"]

_DRAWS = 400
_POINT = Point()


def learn_posterior(arm: Arm, task: Task, options: Options, *, weights: Family = _POINT) -> Outcome:
    """One fit under the prior exp(N strength |w m|), or under the weak prior of the layer alone where strength is None.

    Magnitudes have a Gaussian q in their log-odds. The noise of a q over the weights would blunt the net, and with it the posterior of
    the range: so they are at a point, unless `weights` says otherwise. The likelihood is that of the mean over copies of the
    predictive probabilities, so that copies are not counted as data. The interval of a range is its central 90% under q, and not
    one over fits.
    """
    data = task.data(options.seed, options.num_train or task.num_train)
    steps = num_steps(task, options)
    spec = Augment(arm.net, arm.layers, copies=arm.copies, average="probabilities")
    reward = len(data.x) * (arm.strength or 0.0)
    problem = Problem(Classifier(spec, reward=reward, wide=task.wide), starts=arm.starts)
    optimizer = optax.adam(optax.cosine_decay_schedule(task.rate, steps, 0.05))
    rest = min(task.rest, steps // 4)
    scheme = Variational(
        PerSite((("*.magnitude", MeanField(0.05)),), weights),
        paced(optimizer, Pace("*augment.*", arm.pace, rest)),
        num_particles=1,
        start=1 / task.wide,
    )
    history: list[tuple[int, int, list[dict[str, Any]]]] = []
    first = problem.take((jnp.asarray(data.x), jnp.asarray(data.y)), slice(0, 1))
    at = jax.jit(lambda z: problem.constrain(z, first))

    def watch(progress: Progress) -> None:
        history.append((0, progress.step, spec.report(at(scheme.position(progress.state)), module="net")))

    done = fit(
        problem,
        scheme,
        jax.random.key(options.seed),
        data.x,
        data.y,
        num_steps=steps,
        batch_size=min(task.batch_size, len(data.x)),
        callbacks=[watch],
        chunk=max(1, steps // 20),
        progress=False,
    )
    center = at(scheme.position(done.state))
    draws = {k: v for k, v in done.posterior.sample(jax.random.key(1), _DRAWS).items() if "augment" in k}
    rows = []
    for row in spec.report(draws, module="net"):
        ranges = np.asarray(row["range"], float)
        low, high = np.quantile(ranges, [0.05, 0.95])
        found = {"learned": float(np.median(ranges)), "learned_low": float(low), "learned_high": float(high)}
        place = {
            "part": "range",
            "method": arm.name,
            "fit": 0,
            "layer": row["layer"],
            "operation": row["operation"],
            "unit": row["unit"],
        }
        known = {"oracle": task.oracle(row["operation"], arm.strength), "probability": float(np.mean(row["probability"]))}
        rows.append({**place, **found, **known, "selected": True, "seed": options.seed})
    scores = score_rows(arm.name, spec, [center], data, task.copies, [done.seconds], options.seed)
    return Outcome(scores, rows, history)
