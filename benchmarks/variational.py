"""What a variational step costs beside PyTorch: the same work, and the same variance of the gradient.

    python benchmarks/variational.py              digits at 8x8 and 28x28, channels 32 and 64, batches of 128, 10 draws
    python benchmarks/variational.py --small      a minute's version, to see that it runs

PyTorch must be installed: ``pip install torch``, or ``pip install 'bayes-sym[bench]'``. The same net, prior, q and optimiser are written
plainly in PyTorch in five ways, of which the fastest counts. First both get the same weights and noise and must agree on
loss and gradient. Then a step with 10 draws of the weights is timed in both ("same work"). Then the variance of the gradient is
estimated, and a pair of opposite local draws of ours is compared with as many draws in PyTorch as have its variance, or a little more.

Both run in one process with `--threads` threads each, called in turns; medians. The ratios are those of CPU time: PyTorch's threads wait
actively for one another, so with several of them on a machine that others use too its wall clock measures the others. With
`--device gpu` both run there, with the precision that each has by default, and the ratios are those of the wall clock.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any


_PARSER = argparse.ArgumentParser(description=__doc__.splitlines()[0])
_PARSER.add_argument("--small", action="store_true", help="small nets and batches, to see that it runs")
_PARSER.add_argument("--threads", type=int, default=1, help="of each")
_PARSER.add_argument("--seconds", type=float, default=60.0, help="how long to repeat each size")
_PARSER.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where both run")
_OPTIONS = _PARSER.parse_args() if __name__ == "__main__" else _PARSER.parse_args([])
if _OPTIONS.device == "cpu" and hasattr(os, "sched_setaffinity"):  # XLA has as many threads as it sees cores when it starts
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _OPTIONS.threads])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from timing import Cost, medians  # noqa: E402

from bayes_sym.inference import MeanField, Problem, Variational, fit  # noqa: E402
from bayes_sym.models import ConvClassifier  # noqa: E402
from bayes_sym.priors import IndependentScales  # noqa: E402


if TYPE_CHECKING:
    from variational_torch import TorchStep

DRAWS, RATE = 10, 1e-2
SGD = optax.sgd(RATE, momentum=0.9, nesterov=True)
BLOCKS = {8: (128, None), 28: (16, 8)}  # rows_at_once by the size of the images: of noisy weights, of local noise


def digits(size: int) -> tuple[jax.Array, jax.Array]:
    """The 1,797 digits of 8x8 pixels, or with every pixel three times each way and a border of two, and their labels."""
    found = load_digits()
    x = (found.images / 16).astype(np.float32)[..., None]
    if size == 28:
        x = np.pad(x.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2), (0, 0)))
    return jnp.asarray(x), jnp.asarray(found.target, jnp.int32)


class Setting:
    """A net, its data, a batch, and q at the start and after 200 steps."""

    def __init__(self, size: int, batch: int, channels: tuple[int, ...], num_steps: int) -> None:
        self.net = ConvClassifier(channels)
        self.problem = Problem(self.net)
        self.data = digits(size)
        self.batch = self.data[0][:batch], self.data[1][:batch]
        self.total = len(self.data[0])
        self.factor = jnp.asarray(self.total / batch, jnp.float32)
        scheme = Variational(optimizer=SGD, num_particles=1, noise="local")
        trained = fit(self.problem, scheme, jax.random.key(1), *self.data, num_steps=num_steps, batch_size=batch, progress=False)
        self.starts = {
            "at the start": scheme.init(jax.random.key(0), self.problem, self.batch).params,
            f"after {num_steps} steps": trained.state.params,
        }
        self.trained, self.losses = trained.state.params, trained.losses

    def in_float64(self) -> Setting:
        """The same with the batch and the trained q in float64."""
        double = copy.copy(self)
        double.batch = self.batch[0].astype(np.float64), self.batch[1]
        double.factor = self.factor.astype(np.float64)
        double.trained = jax.tree.map(lambda leaf: leaf.astype(np.float64), self.trained)
        return double

    def prior(self) -> dict[str, float]:
        """Standard deviations of the prior by site."""
        scales = IndependentScales(self.net.scale)
        return {f"net.{site.name}": float(jnp.sqrt(scales(site).variance).ravel()[0]) for site in self.net.spec.sites()}

    def step(self, scheme: Variational, key: jax.Array, state: Any) -> Any:
        """A step of ours on the batch."""
        return scheme.step(key, state, self.problem, self.batch, self.factor)

    def torch(self, form: str, draws: int = DRAWS) -> TorchStep:
        """PyTorch's step from the trained q."""
        from variational_torch import TorchStep

        q = self.trained
        return TorchStep(q.mean, q.log_scale, self.prior(), self.batch, self.total, draws, form, RATE)

    def steps(self, scheme: Variational, count: int) -> Callable[[], Any]:
        """`count` steps in one program, as `fit` takes them."""
        state = scheme.init(jax.random.key(0), self.problem, self.batch)
        state = state._replace(params=self.trained)

        @jax.jit
        def run(key: jax.Array, state: Any) -> Any:
            return jax.lax.fori_loop(0, count, lambda i, s: self.step(scheme, jax.random.fold_in(key, i), s)[0], state)

        return lambda: run(jax.random.key(3), state)

    def gradient(self, scheme: Variational, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        """Loss and gradient of a step, which SGD takes off the parameters (at a large rate, so that little is rounded off)."""
        rate = 1024.0
        plain = Variational(
            optimizer=optax.sgd(rate),
            num_particles=scheme.num_particles,
            noise=scheme.noise,
            rows_at_once=scheme.rows_at_once,
        )
        after, info = self.step(plain, key, plain.init(key, self.problem, self.batch)._replace(params=params))
        return info.loss, jax.tree.map(lambda a, b: (a - b) / rate, params, after.params)

    def variance(self, scheme: Variational, params: Any, count: int) -> float:
        """The trace of the gradient's covariance over the noise, from `count` keys."""

        @jax.jit
        def total(keys: jax.Array) -> jax.Array:
            found = jax.lax.map(lambda key: self.gradient(scheme, key, params)[1], keys)
            return sum(leaf.var(axis=0, ddof=1).sum() for leaf in jax.tree.leaves(found))  # type: ignore[return-value]

        return float(total(jax.random.split(jax.random.key(7), count)))


def check(setting: Setting, scheme: Variational, forms: tuple[str, ...]) -> None:
    """Relative differences of loss and gradient, with the same weights and noise; stops if one exceeds 1e-4.

    In float64, and the gradient also in float32. The loss in float32 is printed only: on a CPU XLA adds the entropies of 18,432 weights
    one after the other, which rounds one or two nats off the sum.
    """
    import torch

    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    with jax.default_matmul_precision("highest"):  # both, as the check is on the formulas
        with jax.enable_x64(True):
            loss, gradient = differences(setting.in_float64(), scheme, forms)
        loss_32, gradient_32 = differences(setting, scheme, forms)
    torch.backends.cudnn.allow_tf32 = allowed
    print(f"same weights and noise: relative difference of the loss {loss:.1e}, of the gradient {gradient:.1e} (float64);")
    print(f"    {loss_32:.1e} and {gradient_32:.1e} (float32)")
    if max(loss, gradient, gradient_32) > 1e-4:
        raise SystemExit("the two do not compute the same: nothing to compare")


def differences(setting: Setting, scheme: Variational, forms: tuple[str, ...]) -> tuple[float, float]:
    """The largest over the forms, of the loss and of the gradient as one vector."""
    from variational_torch import as_torch

    key = jax.random.key(5)
    noise = MeanField().noise(jax.random.split(key)[1], setting.trained, DRAWS)  # what a step with this key draws
    value, gradient = jax.jit(lambda key: setting.gradient(scheme, key, setting.trained))(key)
    ours = np.concatenate([as_torch(side[name]).numpy(force=True).ravel() for side in gradient for name in setting.prior()])
    losses, gradients = [], []
    for form in forms:
        loss, *sides = setting.torch(form).gradient(noise)
        theirs = np.concatenate([side[name].ravel() for side in sides for name in setting.prior()])
        losses.append(abs(float(value) / loss - 1))
        gradients.append(float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)))
    return max(losses), max(gradients)


def spent(cost: Cost) -> float:
    """What ratios are of: CPU time, or the wall clock where the work is done elsewhere."""
    return cost.wall if _OPTIONS.device == "gpu" else cost.cpu


def report(name: str, cost: Cost, unit: Cost, count: int) -> None:
    ratio = spent(unit) / spent(cost)
    print(f"{name:52s}{1e3 * cost.wall / count:9.1f}{1e3 * cost.cpu / count:9.1f}{ratio:8.2f}")


def main() -> None:
    """Checks, measures and prints, size by size."""
    try:
        import torch
        from variational_torch import FORMS, steps
    except ImportError as error:
        raise SystemExit(
            "this benchmark compares with PyTorch, which is not installed: pip install torch, or pip install 'bayes-sym[bench]'"
        ) from error
    small = _OPTIONS.small
    torch.set_num_threads(_OPTIONS.threads)
    torch.manual_seed(0)
    batch, channels = (32, (4, 8)) if small else (128, (32, 64))
    num_steps, seconds = (20, 2.0) if small else (200, _OPTIONS.seconds)
    print(
        f"digits, batches of {batch}, channels {channels}, {DRAWS} draws, float32, {_OPTIONS.threads} thread(s) each; "
        f"jax {jax.__version__}, torch {torch.__version__}, on {jax.devices()[0].device_kind}"
    )
    for size, (rows, rows_local) in BLOCKS.items():
        if _OPTIONS.device == "gpu":  # blocks are for caches
            rows = rows_local = None
        setting = Setting(size, batch, channels, num_steps)
        print(
            f"\n{size}x{size}: loss {setting.losses[:5].mean():.2f} at first, {setting.losses[-20:].mean():.2f} after {num_steps} steps"
        )
        blocked = Variational(optimizer=SGD, num_particles=DRAWS, rows_at_once=rows)
        check(setting, blocked, FORMS)

        keys = 20 if small else {8: 400, 28: 100}[size]
        target = {}
        for when, params in setting.starts.items():
            # PyTorch's draws are independent: the variance of their mean is a tenth of that of one
            target[when] = setting.variance(Variational(num_particles=1, rows_at_once=rows), params, keys) / DRAWS
        local = Variational(optimizer=SGD, num_particles=2, noise="local", rows_at_once=rows_local)
        ratios = [setting.variance(local, params, keys) / target[when] for when, params in setting.starts.items()]
        for when, ratio in zip(target, ratios, strict=True):
            print(f"variance of the gradient {when}: PyTorch's {target[when]:.3g}, ours with a local pair {ratio:.2f} of it")
        fewer = max(1, int(DRAWS / max(ratios)))  # with so many draws PyTorch's variance is at least ours at both times
        print(f"PyTorch has that variance, or a larger one, with {fewer} draws")

        each = 2 if size == 28 else 5
        each *= 10 if _OPTIONS.device == "gpu" else 1  # microseconds there
        ours = {
            f"ours, {DRAWS} draws, rows_at_once={rows}": blocked,
            f"ours, {DRAWS} draws, all at once": Variational(optimizer=SGD, num_particles=DRAWS),
            f"ours, 2 local, rows_at_once={rows_local}": local,
        }
        fns: dict[str, Callable[[], Any]] = {name: setting.steps(scheme, each) for name, scheme in ours.items()}
        for draws in (DRAWS, fewer):
            fns |= {f"PyTorch, {draws} draws, {form}": steps(setting.torch(form, draws), each) for form in FORMS}
        costs = medians(fns, seconds)
        fastest, fewest = (
            min((cost for name, cost in costs.items() if name.startswith(f"PyTorch, {draws} draws")), key=spent)
            for draws in (DRAWS, fewer)
        )
        print(f"{'a step':52s}{'wall ms':>9s}{'CPU ms':>9s}{'ahead':>8s}")
        for name, cost in costs.items():
            report(name, cost, fastest, each)
        if small:
            continue
        *weights, one = (spent(costs[name]) for name in ours)
        for what, ratio, limit in (
            ("same work", spent(fastest) / min(weights), 1.0),
            ("same variance", spent(fewest) / one, 5.0),
        ):
            print(f"{what}: {ratio:.2f} times ahead (at least {limit:g}: {'held' if ratio >= limit else 'MISSED'})")


if __name__ == "__main__":
    main()
