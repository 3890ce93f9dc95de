"""A problem is a NumPyro model and the name of its data plate; it gives every scheme the densities that it needs."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayes_sym import _numpyro
from bayes_sym._numpyro import At, Messenger
from bayes_sym.errors import DataError, ModelError
from bayes_sym.layers.layer import Layer
from bayes_sym.layers.module import ReplaceModules

from . import rows
from .flat_draws import FlatDraws, normals
from .rows import Data
from .structure import Structure, structure_of


__all__ = ["LogDensity", "Problem", "Values"]

Values = dict[str, jax.Array]


class LogDensity(NamedTuple):
    """The parts of a log joint density, in nats.

    Attributes:
        likelihood: of the observed sites, scaled to all N rows.
        prior: of the latent sites, in their constrained coordinates.
        log_det: of the maps from unconstrained to constrained coordinates.
    """

    likelihood: jax.Array
    prior: jax.Array
    log_det: jax.Array


@dataclass(frozen=True)
class Problem:
    """A NumPyro model as inference sees it. Static and hashable; the data are always arguments.

    The model opens ``numpyro.plate(data_plate, x.shape[0])`` around its observed sites. Given a subset of B of the N
    rows, every site under that plate is scaled by N/B.

    Attributes:
        model: the NumPyro model, a function of the data.
        data_plate: the name of the plate whose index counts rows.
        row_args: which positional arguments are rows; None means those whose leading axis is as long as the first
            array's.
        modules: specifications that replace those of the model's modules, as (name, layer) pairs.
        starts: (pattern, value) pairs: where the sites of these names start in every scheme, in their own coordinates, in place of
            draws and medians of the prior; a number for all elements, or a tuple. The first pattern that matches counts.
    """

    model: Callable[..., Any]
    data_plate: str = "data"
    row_args: tuple[int, ...] | None = None
    modules: tuple[tuple[str, Layer], ...] = ()
    starts: tuple[tuple[str, float | tuple[float, ...]], ...] = ()

    def with_modules(self, specs: Mapping[str, Layer]) -> Problem:
        """The same problem with other specifications for the named modules."""
        return replace(self, modules=tuple(sorted({**dict(self.modules), **specs}.items())))

    def take(self, data: Data, index: Any) -> Data:
        """The data with only these rows."""
        return rows.take(data, index, self.row_args)

    def structure(self, *data: Any) -> Structure:
        """One abstract run of the model: its sites, plates, modules and taps.

        Raises:
            ModelError: an observed site stands outside the data plate, a name occurs twice, a latent site is discrete or
                stands inside the data plate, or there is no data plate.
            TapError: a tap stands under vmap or inside scan.
        """
        leaves, treedef = jax.tree.flatten(rows.shapes(rows.as_arrays(data)))
        return structure_of(self, treedef, tuple(leaves))

    def match(self, patterns: Iterable[str], structure: Structure) -> tuple[str, ...]:
        """The latent sites whose names match any of the patterns (``*`` and ``?`` as in file names).

        Raises:
            ModelError: a pattern matches nothing.
        """
        found: dict[str, None] = {}
        for pattern in patterns:
            names = [name for name in structure.latent if fnmatch.fnmatchcase(name, pattern)]
            if not names:
                raise ModelError(f"no latent site matches {pattern!r}; the model has {list(structure.latent)}")
            found.update(dict.fromkeys(names))
        return tuple(found)

    def trace(
        self,
        data: Data,
        *,
        unconstrained: Values | None = None,
        constrained: Values | None = None,
        factor: Any = None,
        key: jax.Array | None = None,
        recorder: Messenger | None = None,
        until: Collection[str] = (),
    ) -> tuple[dict[str, dict[str, Any]], At]:
        """One run of the model at given values; returns its trace and the handler, which holds the log-determinants."""
        model = ReplaceModules(self.model, dict(self.modules)) if self.modules else self.model
        at = At(unconstrained=unconstrained, constrained=constrained, plate=self.data_plate, factor=factor)
        key = jax.random.key(0) if key is None else key
        return _numpyro.run(model, data, key=key, at=at, recorder=recorder, until=until), at

    def latent_trace(self, data: Data, **options: Any) -> tuple[dict[str, dict[str, Any]], At]:
        """A run on one row that ends with the last latent site, for who needs priors only; options as for `trace`."""
        return self.trace(self.take(data, slice(0, 1)), until=tuple(self.structure(*data).latent), **options)

    def log_density(
        self,
        z: Values,
        data: Data,
        *,
        constrained: Values | None = None,
        factor: Any = None,
        key: jax.Array | None = None,
    ) -> LogDensity:
        """The log joint density at unconstrained values `z` (and constrained values, for sites held fixed).

        Args:
            z: unconstrained values by site.
            data: the arguments of the model, or some of their rows.
            constrained: values of further sites as they are.
            factor: N/B if `data` are B of N rows.
            key: for models that draw while they run; the density of such a model is an estimate.
        """
        sites, at = self.trace(data, unconstrained=z, constrained=constrained, factor=factor, key=key)
        likelihood = prior = jnp.zeros(())
        for site in sites.values():
            if site["type"] != "sample":
                continue
            if site["is_observed"] and _numpyro.in_plate(site, self.data_plate):
                likelihood = likelihood + _numpyro.log_prob_of(site)
            else:
                prior = prior + _numpyro.log_prob_of(site)
        return LogDensity(likelihood, prior, sum(at.log_det.values(), jnp.zeros(())))

    def constrain(self, z: Values, data: Data) -> Values:
        """The constrained values of all sites in `z`."""
        sites, _ = self.latent_trace(data, unconstrained=z)
        return {name: sites[name]["value"] for name in z}

    def unconstrain(self, values: Values, data: Data) -> Values:
        """The unconstrained values of all sites in `values`."""
        sites, _ = self.latent_trace(data, constrained=values)
        return {name: _numpyro.unconstrain(sites[name], value) for name, value in values.items()}

    def initial(self, key: jax.Array, data: Data, start: float = 1.0) -> Values:
        """Unconstrained starting values: weights drawn from the prior times `start`, hyperparameters at their prior medians.

        Sites named in `starts` have those values instead, and the others are drawn given them.
        """
        structure = self.structure(*data)
        weights = structure.weights
        values = _initial(self, tuple(weights), key, data)
        scaled = set(weights) - set(self._started(structure))
        return {name: start * value if name in scaled else value for name, value in values.items()}

    def _started(self, structure: Structure) -> dict[str, np.ndarray]:
        """The constrained values of `starts` by site."""
        found: dict[str, np.ndarray] = {}
        for pattern, value in self.starts:
            for name in (name for name in self.match((pattern,), structure) if name not in found):
                given, shape = np.asarray(value, float), structure.latent[name].shape
                if given.shape not in ((), shape):
                    raise ModelError(f"starts gives site {name!r} values of shape {given.shape}, and it has shape {shape}")
                found[name] = np.broadcast_to(given, shape)
        return found

    def check(self, data: Data) -> None:
        """Refuses data that the model cannot have produced, before any fit.

        Raises:
            DataError: rows do not match, values are NaN or infinite, or observations lie outside the support of their
                distribution (labels out of range).
        """
        rows.row_mask(data, self.row_args)
        rows.check_finite(data)
        structure = self.structure(*data)
        report = _support_report(self, data)
        for name, support in structure.observed.items():
            inside, low, high = report[name]
            if not bool(inside):
                raise DataError(
                    f"observations of site {name!r} lie outside the support of their distribution ({support}): they run "
                    f"from {np.asarray(low)} to {np.asarray(high)}. Labels must be 0..classes-1, counts non-negative, and so on"
                )


@partial(jax.jit, static_argnames=("problem", "weights"))
def _initial(problem: Problem, weights: tuple[str, ...], key: jax.Array, data: Data) -> Values:
    structure = problem.structure(*data)
    names = structure.latent
    given = {name: jnp.asarray(value, names[name].dtype) for name, value in problem._started(structure).items()}
    key_hyper, key_weights = jax.random.split(key)

    def draw(key: jax.Array, fixed: Values) -> Values:
        gaussian = {name: site for name, site in names.items() if site.normals is not None and name not in fixed}
        flat = FlatDraws(normals(key, gaussian, weights))
        sites, _ = problem.latent_trace(data, constrained=fixed, key=key, recorder=flat)
        return {name: _numpyro.unconstrain(sites[name], sites[name]["value"]) for name in names}

    medians: Values = {}
    fixed: Values = given
    if set(names) - set(weights) - set(given):
        several = jax.vmap(lambda key: draw(key, given))(jax.random.split(key_hyper, 15))
        medians = {name: jnp.median(several[name], axis=0) for name in names if name not in weights and name not in given}
        sites, _ = problem.latent_trace(data, unconstrained=medians, constrained=given)
        fixed = {**given, **{name: sites[name]["value"] for name in medians}}
    start = draw(key_weights, fixed)
    return {name: medians.get(name, start[name]) for name in names}


@partial(jax.jit, static_argnames=("problem",))
def _support_report(problem: Problem, data: Data) -> dict[str, tuple[jax.Array, jax.Array, jax.Array]]:
    sites, _ = problem.trace(data)
    return {
        name: (jnp.all(site["fn"].support(site["value"])), jnp.min(site["value"]), jnp.max(site["value"]))
        for name, site in sites.items()
        if site["type"] == "sample" and site["is_observed"] and _numpyro.in_plate(site, problem.data_plate)
    }
