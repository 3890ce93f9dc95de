"""What the evidence costs, in units of a training step and of an epoch's gradient, beside laplace-torch doing the same work.

    python benchmarks/evidence.py             the MLP 784-256-256-10 with 1,024 images, float32
    python benchmarks/evidence.py --small     a minute's version, to see that it runs

laplace-torch and torch are compared where they are installed (``pip install torch laplace-torch``). Every time is the
smallest of several repeats after a warm-up; the units are timed in the same run, interleaved with what they measure.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from timing import smallest

from bayes_sym import layers
from bayes_sym.inference import Problem, evidence_basis, hold_evidence, log_evidence
from bayes_sym.inference.curvature.measure import measure
from bayes_sym.inference.curvature.view import EXACT, Probes


BATCH = 128


def problem_of(widths: tuple[int, ...]) -> tuple[Problem, layers.Sequential]:
    """A classifier with one prior scale per site, passed as data so that it can be differentiated."""
    parts: list[Any] = []
    for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        parts += [layers.Dense(a, b)] + ([layers.Activation("relu")] if i < len(widths) - 2 else [])
    spec = layers.Sequential(tuple(parts))

    def model(x: Any, y: Any) -> None:
        log_scale = numpyro.sample("log_scale", dist.Normal(0.0, 1.0).expand([len(spec.sites())]).to_event(1))
        names = [site.name for site in spec.sites()]

        def prior(site: Any) -> dist.Distribution:
            return dist.Normal(0.0, jnp.exp(log_scale[names.index(site.name)])).expand(site.shape).to_event(len(site.shape))

        net = layers.random_module("net", spec, prior=prior)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)

    return Problem(model), spec


def ours(widths: tuple[int, ...], rows: int) -> tuple[dict[str, Callable[[], Any]], Any]:
    """What is timed, and (problem, spec, params, data)."""
    problem, spec = problem_of(widths)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((rows, widths[0])), jnp.float32)
    y = jnp.asarray(rng.integers(0, widths[-1], rows), jnp.int32)
    params = {
        f"net.{site.name}": jnp.asarray(rng.standard_normal(site.shape) / np.sqrt(site.fan_in), jnp.float32)
        for site in spec.sites()
    }
    params["log_scale"] = jnp.full(len(spec.sites()), -1.0)
    weights = {name: value for name, value in params.items() if name != "log_scale"}
    fixed = {"log_scale": params["log_scale"]}
    optimizer = optax.sgd(1e-3)
    start = optimizer.init(weights)
    key = jax.random.key(0)
    batch = (x[:BATCH], y[:BATCH])

    def loss(weights: Any, data: Any, factor: float) -> jax.Array:
        density = problem.log_density(weights, data, constrained=fixed, factor=factor)
        return -(density.likelihood + density.prior) / rows

    @jax.jit
    def sgd(weights: Any, state: Any, data: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(weights, data, rows / BATCH), state, weights)
        return optax.apply_updates(weights, updates), state

    epoch = jax.jit(jax.grad(lambda weights, data: loss(weights, data, 1.0)))
    factors = {
        count: jax.jit(
            lambda weights, data, key, count=count: measure(
                problem, weights, fixed, data, "kfac", probes=EXACT if count is None else Probes(count, key)
            )
        )
        for count in (None, 1)
    }
    held = hold_evidence(problem, params, x, y, optimise=("log_scale",), curvature="kfac")
    value = jax.jit(lambda held, s: held({"log_scale": s}).value)
    climb = optax.adam(0.1)
    hyper_start = climb.init(params["log_scale"])

    @jax.jit
    def hyper(held: Any, s: jax.Array, state: Any) -> Any:
        updates, state = climb.update(jax.grad(lambda s: -held({"log_scale": s}).value)(s), state, s)
        return optax.apply_updates(s, updates), state

    basis = evidence_basis(problem, params, x, y, optimise=("log_scale",), probes=1, key=key)

    def evidence(**options: Any) -> Callable[..., Any]:
        def of(params: Any, data: Any, basis: Any, key: Any) -> jax.Array:
            return log_evidence(problem, params, *data, optimise=("log_scale",), basis=basis, key=key, **options).value

        return jax.jit(jax.grad(of))

    ntk = evidence(curvature="ntk", probes=1, block_size=BATCH, num_rows=rows)
    ekfac = evidence(curvature="ekfac", probes=1)
    fns: dict[str, Callable[[], Any]] = {
        "sgd step": lambda: sgd(weights, start, batch),
        "epoch gradient": lambda: epoch(weights, (x, y)),
        "factors, 1 probe": lambda: factors[1](weights, (x, y), key),
        "factors, exact": lambda: factors[None](weights, (x, y), key),
        "value, held": lambda: value(held, params["log_scale"]),
        "hyper step, held": lambda: hyper(held, params["log_scale"], hyper_start),
        "ntk 128 gradient": lambda: ntk(params, batch, None, key),
        "ekfac gradient, frozen basis, 1 probe": lambda: ekfac(params, (x, y), basis, key),
        "ekfac basis, 1 probe": lambda: evidence_basis(problem, params, x, y, optimise=("log_scale",), probes=1, key=key),
        "fit: factors exact, eigenvalues": lambda: hold_evidence(
            problem, params, x, y, optimise=("log_scale",), curvature="kfac"
        ),
    }
    return fns, (problem, spec, params, (x, y))


LIMITS = (
    ("factors, 1 probe", "epoch gradient", 1.5),
    ("hyper step, held", "sgd step", 1.0),
    ("ntk 128 gradient", "sgd step", 5.0),
    ("ekfac gradient, frozen basis, 1 probe", "epoch gradient", 8.0),
)


def torch_fns(spec: layers.Sequential, params: Any, data: Any) -> dict[str, Callable[[], Any]] | None:
    """The same work by laplace-torch: Kronecker factors of the exact Fisher information, evidence, a hyper step."""
    try:
        import laplace
        import torch
        from laplace.curvature import CurvlinopsGGN
    except ImportError:
        return None
    modules: list[Any] = []
    for i, layer in enumerate(spec.layers):
        if isinstance(layer, layers.Dense):
            linear = torch.nn.Linear(layer.inputs, layer.outputs)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(np.array(params[f"net.{i}.weight"]).T.copy()))
                linear.bias.copy_(torch.from_numpy(np.array(params[f"net.{i}.bias"])))
            modules.append(linear)
        else:
            modules.append(torch.nn.ReLU())
    net = torch.nn.Sequential(*modules)
    x, y = torch.from_numpy(np.array(data[0])), torch.from_numpy(np.array(data[1])).long()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x))
    count = len(list(net.parameters()))
    log_prior = torch.full((count,), 2.0, requires_grad=True)  # log precision, for a scale of exp(-1)
    fitted: dict[str, Any] = {}

    def fit() -> None:
        found = laplace.Laplace(net, "classification", subset_of_weights="all", hessian_structure="kron", backend=CurvlinopsGGN)
        found.fit(loader)
        fitted["laplace"] = found

    fit()
    optimizer = torch.optim.Adam([log_prior], lr=0.1)
    sgd = torch.optim.SGD(net.parameters(), lr=0.0)

    def value() -> None:
        with torch.no_grad():
            fitted["laplace"].log_marginal_likelihood(log_prior.exp())

    def hyper() -> None:
        optimizer.zero_grad()
        (-fitted["laplace"].log_marginal_likelihood(log_prior.exp())).backward()
        optimizer.step()

    def step() -> None:
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(net(x[:BATCH]), y[:BATCH]).backward()
        sgd.step()

    fitted["evidence"] = float(fitted["laplace"].log_marginal_likelihood(torch.full((count,), 2.0).exp()))
    fns = {"sgd step": step, "fit": fit, "value": value, "hyper step": hyper}
    return {**fns, "evidence": lambda: fitted["evidence"]}


def main() -> None:
    """Times everything and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a small net, to see that it runs")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to repeat")
    options = parser.parse_args()
    widths, rows = ((64, 32, 32, 10), 256) if options.small else ((784, 256, 256, 10), 1024)
    fns, (problem, spec, params, data) = ours(widths, rows)
    found = smallest(fns, options.seconds, 5)
    device = jax.devices()[0]
    print(f"MLP {'-'.join(map(str, widths))}, {rows} rows, float32, jax {jax.__version__} on {device.device_kind}")
    print(f"{'':42s}{'ms':>9s}{'sgd steps':>11s}{'epoch gradients':>17s}")
    for name, seconds in found.items():
        print(f"{name:42s}{1e3 * seconds:9.2f}{seconds / found['sgd step']:11.2f}{seconds / found['epoch gradient']:17.2f}")
    for name, unit, limit in LIMITS:
        ratio = found[name] / found[unit]
        print(f"{name} / {unit}: {ratio:.2f} (limit {limit:g}: {'held' if ratio <= limit else 'MISSED'})")

    theirs = torch_fns(spec, params, data)
    if theirs is None:
        print("laplace-torch is not installed: nothing to compare with")
        return
    number = theirs.pop("evidence")()
    precision = {**params, "log_scale": jnp.full(len(spec.sites()), -1.0)}
    ours_value = float(log_evidence(problem, precision, *data, curvature="kfac", optimise=("log_scale",)).value)
    print(
        f"\nKFAC evidence: ours {ours_value:.3f}, laplace-torch {number:.3f} (relative difference {ours_value / number - 1:.1e})"
    )
    other = smallest(theirs, options.seconds, 5)
    mine = {
        "sgd step": found["sgd step"],
        "fit": found["fit: factors exact, eigenvalues"],
        "value": found["value, held"],
        "hyper step": found["hyper step, held"],
    }
    print(f"{'':14s}{'ours ms':>9s}{'laplace-torch ms':>18s}{'theirs / ours':>15s}")
    for name, seconds in other.items():
        print(f"{name:14s}{1e3 * mine[name]:9.2f}{1e3 * seconds:18.2f}{seconds / mine[name]:15.2f}")


if __name__ == "__main__":
    main()
