"""The bridge to ArviZ: a fit as one tree of named arrays, the same under ArviZ 0.23 and 1.x, and its Pareto k."""

from __future__ import annotations

import fnmatch
import importlib
import importlib.metadata
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bayes_sym
from bayes_sym import _numpyro
from bayes_sym._precision import full_precision
from bayes_sym.diagnostics import SampledRotations
from bayes_sym.errors import ModelError, OptionError
from bayes_sym.representations import Representation

from . import rows
from .fit import Fit
from .orbit_predictions import PosteriorEquivariance, equivariance_of_draws
from .pointwise import distributions
from .posterior import DrawsPosterior, PointPosterior, Posterior, center_of
from .predict import Drawn
from .problem import Problem, Values
from .rows import Data


__all__ = ["pareto_k", "to_arviz"]

_RMS = ".rms"
_SAMPLER_NAMES = {"accept_prob": "acceptance_rate", "num_steps": "n_steps"}  # NumPyro's name: ArviZ's name

Axes = tuple[str, ...]
Group = dict[str, tuple[Axes, np.ndarray]]


@full_precision
def to_arviz(
    fit: Fit,
    problem: Problem,
    key: jax.Array,
    *data: Any,
    num_draws: int = 200,
    var_names: Sequence[str] | None = None,
    posterior_predictive: bool = False,
    inputs: tuple[Any, ...] | None = None,
    linearise: bool | None = None,
    action: Representation | SampledRotations | None = None,
    output: Representation | None = None,
    draw_batch: int = 16,
) -> Any:
    """A fit of any scheme as an ArviZ tree: ``InferenceData`` under ArviZ 0.23, ``xarray.DataTree`` under 1.x.

    Both hold the same groups with the same contents, and ``tree["posterior"]["softness"]`` reads both:

    - ``posterior`` (chain, draw, ...): a sampler keeps its chains and all its draws; an approximate posterior is drawn
      from `num_draws` times, in one chain; a point is one draw.
    - ``log_likelihood`` (chain, draw, *plates*), one term per row: what ``az.loo`` needs.
    - ``sample_stats``: ``lp``, the log joint density in unconstrained coordinates (prior, likelihood and the
      log-determinant of the constraining maps), not normalised; ``log_q``, the density of the approximate posterior at
      the same draws (sites that were optimised are points and do not count in it); and what a sampler says of each draw.
    - ``observed_data`` and ``constant_data``: the arguments of the model, by their names in its signature.
    - ``posterior_predictive`` and ``predictions``, if asked for.
    - ``equivariance``, if an `action` is given: ``member`` (chain, draw, element), the squared defect of every draw at every element,
      mean over rows; ``predictive`` (element,), that of the mean prediction, unbiased; and the two defects ``member_error`` and
      ``predictive_error`` with their standard errors, as `posterior_equivariance` gives them.

    Axes under a plate carry its name, so the rows are the dimension ``data`` (the `data_plate` of the problem); others
    are ``<name>_dim_<i>``. "/" in names becomes ".", since it would nest groups.

    Args:
        fit: what `fit` returned.
        problem: the problem that was fitted. After an expansion the expanded one is used, whose sites the posterior has.
        key: the random key of the draws; the same draws as ``fit.posterior.sample(key, num_draws)``.
        data: the arguments of the model, with the observations.
        num_draws: draws of an approximate posterior.
        var_names: patterns (``*`` and ``?``) of what ``posterior`` holds: latent sites, deterministic sites, and
            ``"<site>.rms"``, the root mean square of a weight site. None for all hyperparameters and all root mean squares:
            the weights of a net are many and not identified, so they come on request only, e.g. ``("net.*",)``.
        posterior_predictive: whether to draw replicated observations.
        inputs: the arguments of the model without observations, at which to draw ``predictions``.
        linearise: whether likelihoods and predictions use the model linearised at the posterior mean, as `predict` does;
            None for what the posterior recommends (True for Laplace). ``lp`` is that of the model itself in any case.
        action: how a group acts on the model's first argument, for the group ``equivariance``: at the rows of `inputs` if they are
            given, and else at those of `data`. The model must predict from that argument alone.
        output: how it acts on the predicted means; None for invariant predictions.
        draw_batch: draws evaluated at once; fewer take less memory.

    Returns:
        The tree. Its attributes are ``scheme``, ``seconds``, ``linearised``, ``point_sites``, the versions, and, where the
        scheme estimates an evidence, ``log_evidence`` and ``evidence_kind``.

    Raises:
        OptionError: the fit failed, or belongs to another problem, or an option is out of range.
        ModelError: a pattern of `var_names` matches nothing, or the model has several outputs and an `action` is given.
    """
    posterior, problem = _checked(fit, problem, num_draws, draw_batch)
    data = rows.as_arrays(data)
    seen = _look(problem, data)
    names = _select(var_names, seen, problem.structure(*data).weights)
    center = center_of(posterior, linearise)
    chains, draws, z = _draws(posterior, key, num_draws)

    def sampled(values: dict[str, jax.Array], axes: Mapping[str, Axes]) -> Group:
        shaped = {name: np.asarray(value).reshape(chains, draws, *value.shape[1:]) for name, value in values.items()}
        return _group({name: (("chain", "draw", *_axes(name, value[0, 0], axes)), value) for name, value in shaped.items()})

    values, likelihood, lp = _evaluate(problem, z, center, data, names=names, batch=draw_batch)
    stats = {"lp": lp}
    if not isinstance(posterior, PointPosterior | DrawsPosterior):
        stats["log_q"] = _log_prob(posterior, z)
    if isinstance(posterior, DrawsPosterior):
        stats |= {_SAMPLER_NAMES.get(name, name): jnp.ravel(value) for name, value in posterior.info.items()}
    groups = {
        "posterior": sampled(values, seen.axes),
        "log_likelihood": sampled(likelihood, seen.axes),
        "sample_stats": sampled(stats, {}),
        "observed_data": _group(
            {name: (_axes(name, value, seen.axes), value) for name, value in _observed(problem, data).items()}
        ),
        "constant_data": _constants(problem, data, seen.arguments),
    }
    predict = partial(_replicate, problem, z, center, jax.random.fold_in(key, 1), batch=draw_batch)
    if posterior_predictive:
        groups["posterior_predictive"] = sampled(predict(data), seen.axes)
    if inputs is not None:
        inputs = rows.as_arrays(inputs)
        groups["predictions"] = sampled(predict(inputs), _look(problem, inputs).axes)
        groups["predictions_constant_data"] = _constants(problem, inputs, frozenset())
    if action is not None:
        x = data[0] if inputs is None else inputs[0]
        drawn = Drawn(problem, _constrain(problem, z, data) if center is None else z, center)
        found = equivariance_of_draws(drawn, x, action, output, draw_batch=draw_batch, progress=False)
        groups["equivariance"] = _equivariance(found, chains)
    return _tree(groups, _attributes(fit, posterior, center is not None))


class _Seen(NamedTuple):
    """What an abstract run shows: names of the axes by site, latent and deterministic sites, and which data are observed."""

    axes: dict[str, Axes]
    latent: tuple[str, ...]
    deterministic: tuple[str, ...]
    arguments: frozenset[int]


def _checked(fit: Fit, problem: Problem, num_draws: int, draw_batch: int) -> tuple[Posterior, Problem]:
    if min(num_draws, draw_batch) < 1:
        raise OptionError(f"num_draws and draw_batch must be at least 1, got {num_draws} and {draw_batch}")
    if fit.posterior is None:
        raise OptionError(f"this fit has no posterior to export: {fit.status().message or fit.status().reason}")
    fitted = fit.posterior.problem
    if (fitted.model, fitted.data_plate) != (problem.model, problem.data_plate):
        raise OptionError(
            f"the fit is of the model {fitted.model!r} with data plate {fitted.data_plate!r}, but the problem is {problem.model!r} with "
            f"{problem.data_plate!r}: pass the problem that was fitted"
        )
    return fit.posterior, fitted


def _look(problem: Problem, data: Data) -> _Seen:
    leaves, structure = jax.tree.flatten(data)
    axes: dict[str, Axes] = {}
    latent: list[str] = []
    deterministic: list[str] = []
    observed: list[int] = []

    def probe(*leaves: jax.Array) -> None:
        sites, _ = problem.trace(jax.tree.unflatten(structure, leaves))
        for name, site in sites.items():
            if site["type"] == "deterministic":
                deterministic.append(name)
            if site["type"] != "sample":
                continue
            plates = {frame.dim: frame.name for frame in site["cond_indep_stack"]}
            depth = len(site["fn"].batch_shape)
            axes[name] = tuple(plates.get(i - depth, f"{name}_dim_{i}") for i in range(depth))
            if not site["is_observed"] and not _numpyro.in_plate(site, problem.data_plate):
                latent.append(name)
            observed.extend(i for i, leaf in enumerate(leaves) if site["is_observed"] and site["value"] is leaf)

    jax.eval_shape(probe, *leaves)
    return _Seen(axes, tuple(latent), tuple(deterministic), frozenset(observed))


def _axes(name: str, value: Any, known: Mapping[str, Axes]) -> Axes:
    """The names of all axes of `value`: those known for the site, then its event axes by number."""
    leading = known.get(name, ())
    return (*leading, *(f"{name}_dim_{i}" for i in range(len(leading), np.ndim(value))))[: np.ndim(value)]


def _select(patterns: Sequence[str] | None, seen: _Seen, weights: tuple[str, ...]) -> tuple[str, ...]:
    squares = [name + _RMS for name in weights]
    if patterns is None:
        return (*(name for name in seen.latent if name not in weights), *squares)
    if isinstance(patterns, str):
        raise OptionError(f"var_names must be a sequence of patterns, got {patterns!r}: write var_names=({patterns!r},)")
    known = [*seen.latent, *seen.deterministic, *squares]
    found: dict[str, None] = {}
    for pattern in patterns:
        # a name as the tree shows it, with "." for "/", is as good as the model's
        matched = [name for name in known if any(fnmatch.fnmatchcase(form, pattern) for form in (name, _plain(name)))]
        if not matched:
            raise ModelError(f"var_names: nothing matches {pattern!r}; there are {known}")
        found.update(dict.fromkeys(matched))
    return tuple(found)


def _draws(posterior: Posterior, key: jax.Array, num_draws: int) -> tuple[int, int, Values]:
    """Chains, draws per chain, and all draws in unconstrained coordinates, (chains * draws, ...)."""
    if isinstance(posterior, DrawsPosterior):
        chains, draws = next(iter(posterior.draws.values())).shape[:2]
        return chains, draws, {name: value.reshape(-1, *value.shape[2:]) for name, value in posterior.draws.items()}
    count = 1 if isinstance(posterior, PointPosterior) else num_draws
    return 1, count, posterior.sample_unconstrained(key, count)


@partial(jax.jit, static_argnames=("problem", "names", "batch"))
def _evaluate(
    problem: Problem, z: Values, center: Values | None, data: Data, *, names: tuple[str, ...], batch: int
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
    """For every draw: the values by name, the log likelihood of every row, and the log joint density."""

    def one(z: Values) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
        sites, at = problem.trace(data, unconstrained=z)
        lp = sum((_numpyro.log_prob_of(site) for site in sites.values() if site["type"] == "sample"), jnp.zeros(()))
        lp = lp + sum(at.log_det.values(), jnp.zeros(()))
        values = {}
        for name in names:
            if name in sites:
                values[name] = sites[name]["value"]
            else:
                values[name] = jnp.sqrt(jnp.mean(sites[name.removesuffix(_RMS)]["value"] ** 2))
        fns = distributions(problem, data, z, center)
        likelihood = {name: fn.log_prob(sites[name]["value"]) for name, fn in fns.items() if sites[name]["is_observed"]}
        return values, likelihood, lp

    return jax.lax.map(one, z, batch_size=batch)


@partial(jax.jit, static_argnames=("problem", "batch"))
def _replicate(
    problem: Problem, z: Values, center: Values | None, key: jax.Array, data: Data, *, batch: int
) -> dict[str, jax.Array]:
    """One draw of every observation for every draw of the sites."""

    def one(args: tuple[Values, jax.Array]) -> dict[str, jax.Array]:
        z, key = args
        fns = distributions(problem, data, z, center)
        return {name: fn.sample(k) for (name, fn), k in zip(fns.items(), jax.random.split(key, len(fns)), strict=True)}

    count = len(next(iter(z.values())))
    return jax.lax.map(one, (z, jax.random.split(key, count)), batch_size=batch)


@partial(jax.jit, static_argnames=("problem",))
def _constrain(problem: Problem, z: Values, data: Data) -> Values:
    return jax.vmap(lambda z: problem.constrain(z, data))(z)


def _equivariance(found: PosteriorEquivariance, chains: int) -> Group:
    draws, order = found.member_of.shape
    error = found.error
    return {
        "member": (("chain", "draw", "element"), found.member_of.reshape(chains, draws // chains, order)),
        "predictive": (("element",), found.predictive_of),
        "member_error": ((), np.asarray(error.member)),
        "member_error_se": ((), np.asarray(error.member_se)),
        "predictive_error": ((), np.asarray(error.predictive)),
        "predictive_error_se": ((), np.asarray(error.predictive_se)),
        "emergence": ((), np.asarray(error.emergence)),
        "floor": ((), np.asarray(error.floor)),
    }


@jax.jit
def _log_prob(posterior: Posterior, z: Values) -> jax.Array:
    return jax.lax.map(posterior.log_prob, z)


@partial(jax.jit, static_argnames=("problem",))
def _observed(problem: Problem, data: Data) -> dict[str, jax.Array]:
    sites, _ = problem.trace(data)
    return {
        name: site["value"]
        for name, site in sites.items()
        if site["type"] == "sample" and site["is_observed"] and _numpyro.in_plate(site, problem.data_plate)
    }


def _constants(problem: Problem, data: Data, observed: frozenset[int]) -> Group:
    """The arguments that are not themselves observations, by their names in the model's signature."""
    parameters = list(inspect.signature(problem.model).parameters.values())
    mask = rows.row_mask(data, problem.row_args)
    found: Group = {}
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(data)):
        if i in observed or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            continue
        position = path[0].idx
        several = position >= len(parameters) or parameters[position].kind is inspect.Parameter.VAR_POSITIONAL
        name = f"argument{position}" if several else parameters[position].name
        name = ".".join([name, *(jax.tree_util.keystr((entry,), simple=True) for entry in path[1:])])
        name += "_" * (name == problem.data_plate)  # that of the plate is taken by the axis
        axes = _axes(name, leaf, {name: (problem.data_plate,) if mask[i] else ()})
        found[name] = (axes, np.asarray(leaf))
    return _group(found)


def _plain(name: str) -> str:
    return name.replace("/", ".")


def _group(variables: Group) -> Group:
    plain = {_plain(name): (tuple(map(_plain, axes)), np.asarray(value)) for name, (axes, value) in variables.items()}
    if len(plain) < len(variables):
        raise ModelError(f'two of the sites {list(variables)} have the same name once "/" is replaced by ".": rename one of them')
    return plain


def _attributes(fit: Fit, posterior: Posterior, linearised: bool) -> dict[str, Any]:
    points: Values = getattr(posterior, "point", {})
    found: dict[str, Any] = {
        "scheme": type(fit.scheme).__name__,
        "seconds": float(fit.seconds),
        "linearised": int(linearised),
        "point_sites": ", ".join(map(_plain, points)),
        "bayes_sym_version": bayes_sym.__version__,
        "jax_version": jax.__version__,
        "numpyro_version": importlib.metadata.version("numpyro"),
    }
    if posterior.log_evidence is not None:
        found |= {"log_evidence": float(posterior.log_evidence), "evidence_kind": str(posterior.evidence_kind)}
    return found


def _tree(groups: dict[str, Group], attributes: dict[str, Any]) -> Any:
    """The container of the ArviZ that is installed. xarray, which comes with it, builds the groups the same way for both."""
    import arviz
    import xarray

    datasets = {}
    for name, group in groups.items():
        sizes = {axis: size for axes, value in group.values() for axis, size in zip(axes, value.shape, strict=True)}
        coordinates = {axis: np.arange(size) for axis, size in sizes.items()}
        datasets[name] = xarray.Dataset(group, coords=coordinates)
    if int(arviz.__version__.split(".")[0]) == 0:
        return arviz.InferenceData(attrs=attributes, **datasets)
    tree = xarray.DataTree.from_dict(datasets)
    tree.attrs.update(attributes)
    return tree


def pareto_k(log_weights: np.ndarray) -> float:
    """The shape k of the generalised Pareto tail of importance weights (Vehtari et al. 2024), by the ArviZ that is installed."""
    try:
        array_stats = importlib.import_module("arviz_stats.base").array_stats  # comes with ArviZ 1.x
    except ModuleNotFoundError:
        from arviz import psislw  # ArviZ 0.23

        return float(psislw(log_weights)[1])
    return float(array_stats.psislw(-log_weights)[1])  # it takes negative log weights, as LOO has them
