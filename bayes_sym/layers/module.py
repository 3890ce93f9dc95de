"""`random_module` samples the weights of a layer inside a NumPyro model and returns it as a callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import jax
import numpyro
import numpyro.distributions as dist

from .._numpyro import Messenger, name_of, send
from ..errors import PriorError
from ..priors.independent import IndependentScales
from .layer import Layer, Site


__all__ = ["ReplaceModules", "random_module"]

Prior: TypeAlias = Callable[[Site], dist.Distribution] | Mapping[str, dist.Distribution] | dist.Distribution


@dataclass(frozen=True)
class _Module:
    """A layer with its sampled weights: a callable from inputs to outputs."""

    spec: Layer
    weights: dict[str, jax.Array]
    path: str

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.spec.apply(self.weights, x, path=self.path)


def random_module(name: str, spec: Layer, *, prior: Prior | None = None) -> _Module:
    """Samples the weights of `spec` as sites ``name.site`` and returns the callable ``net(x)``.

    Args:
        name: the name of the module, e.g. ``"net"``: its sites are ``net.0.weight``, ...
        spec: the layer.
        prior: one of

            - None: `IndependentScales()`, Normal(0, 1/fan_in) in variance;
            - a prior of `bayes_sym.priors`, or any callable from a `Site` to a NumPyro distribution;
            - a mapping from site names (within the module) to distributions;
            - one distribution with scalar batch, expanded to every site.

            Sites that come with a prior of their own (lengthscales, positions) keep it, unless a mapping names them.

    Raises:
        PriorError: a mapping lacks a site, or a distribution does not have the site's shape.
    """
    spec = send("module", name, spec)
    weights = {}
    for site in spec.sites():
        weights[site.name] = numpyro.sample(f"{name}.{site.name}", _distribution(prior, name, site))
    return _Module(spec, weights, name)


def _distribution(prior: Prior | None, name: str, site: Site) -> dist.Distribution:
    if prior is None:
        prior = IndependentScales()
    if site.prior is not None and not (isinstance(prior, Mapping) and site.name in prior):
        found = site.prior
    elif isinstance(prior, Mapping):
        if site.name not in prior:
            raise PriorError(f"the prior of module {name!r} has no entry for site {site.name!r}; it has {sorted(prior)}")
        found = prior[site.name]
    elif isinstance(prior, dist.Distribution):
        found = prior
    else:
        found = prior(site)
    if not found.event_shape and found.batch_shape in ((), site.shape):
        found = found.expand(site.shape).to_event(len(site.shape))
    if found.batch_shape or found.event_shape != site.shape:
        raise PriorError(
            f"the prior of site '{name}.{site.name}' has batch shape {found.batch_shape} and event shape {found.event_shape}, but the "
            f"weight has shape {site.shape}: use .expand({site.shape}).to_event({len(site.shape)})"
        )
    return found


class ReplaceModules(Messenger):
    """Runs a model with other specifications in place of its modules': ``specs[name]`` replaces the module `name`."""

    def __init__(self, fn: Callable | None = None, specs: Mapping[str, Layer] | None = None) -> None:
        self.specs = dict(specs or {})
        super().__init__(fn)

    def process_message(self, message: dict) -> None:
        """Replaces a module's specification."""
        if message["type"] == "module" and name_of(message) in self.specs:
            message["value"] = self.specs[name_of(message)]
