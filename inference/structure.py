"""What one abstract run of a model shows: its sites, plates, modules and taps, with all that inference cannot treat refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to

from bayes_sym import _numpyro
from bayes_sym.errors import DataError, ModelError, TapError
from bayes_sym.layers.layer import Layer
from bayes_sym.taps import TapMeta, TapRecorder

from . import rows
from .prior_parts import gaussian_part


if TYPE_CHECKING:
    from .problem import Problem

__all__ = ["LatentSite", "Structure", "structure_of"]


class LatentSite(NamedTuple):
    """What is static about one latent site.

    Attributes:
        shape: of its value.
        unconstrained: the shape of its unconstrained coordinates.
        dtype: of its value.
        positive: whether its values are.
        normals: the dtype of the normals that a draw of it is made of; None where it is not Gaussian.
    """

    shape: tuple[int, ...]
    unconstrained: tuple[int, ...]
    dtype: Any
    positive: bool
    normals: Any


@dataclass(frozen=True)
class Structure:
    """What one abstract run of a model shows, without computing anything.

    Attributes:
        latent: the latent sites, in the model's order.
        observed: the observed sites under the data plate, with a description of the support of each.
        weights: the latent sites that are weights or biases of modules or taps; the others are hyperparameters.
        modules: the specification of every `random_module`.
        taps: every tap.
    """

    latent: dict[str, LatentSite]
    observed: dict[str, str]
    weights: tuple[str, ...]
    modules: dict[str, Layer]
    taps: dict[str, TapMeta] = field(default_factory=dict)


@lru_cache(maxsize=256)
def structure_of(problem: Problem, treedef: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Structure:
    """The structure of a problem, given data of these shapes. Errors are those of `Problem.structure`."""
    found = _Discover(problem.data_plate)

    def probe(*leaves: jax.Array) -> Any:
        problem.trace(jax.tree.unflatten(treedef, leaves), recorder=found)
        return found.inputs

    program = jax.make_jaxpr(probe)(*leaves)
    # What escapes from an inner program arrives outside as a constant that is a tracer.
    tracers = {
        id(v) for v, const in zip(program.jaxpr.constvars, program.consts, strict=True) if isinstance(const, jax.core.Tracer)
    }
    escaped = [name for name, v in zip(sorted(found.inputs), program.jaxpr.outvars, strict=True) if id(v) in tracers]
    if escaped:
        raise TapError(
            f"taps {escaped} stand inside lax.scan (or another loop, or a jitted function), where their inputs cannot be seen from "
            "outside: unroll the loop in Python, or tap the stacked layers outside it"
        )
    plate = problem.data_plate
    if found.outside:
        raise ModelError(
            f"observed sites {found.outside} stand outside the data plate {plate!r} (plates seen: {list(found.plates)}): they would not be "
            f"scaled for minibatches. Put them under `with numpyro.plate({plate!r}, x.shape[0]):`, or set Problem(data_plate=...)"
        )
    if not found.observed:
        raise ModelError(
            f"the model observes nothing under a plate {plate!r} (plates seen: {list(found.plates)}, data: "
            f"{[leaf.shape for leaf in leaves]}): pass the observations, and put them under `with numpyro.plate({plate!r}, x.shape[0]):`"
        )
    if not found.latent:
        raise ModelError("the model has no latent sites: there is nothing to infer")
    _check_rows(problem, treedef, leaves)
    tapped = {site for meta in found.meta.values() for site in (meta.weight, meta.bias) if site is not None}
    unknown = sorted(tapped - set(found.latent))
    if unknown:
        raise TapError(f"taps name the sites {unknown}, which the model does not sample; it has {list(found.latent)}")
    of_modules = {f"{name}.{site.name}" for name, spec in found.modules.items() for site in spec.sites() if site.kind != "form"}
    weights = tuple(name for name in found.latent if name in tapped or name in of_modules)
    return Structure(dict(found.latent), dict(found.observed), weights, dict(found.modules), dict(found.meta))


def _check_rows(problem: Problem, treedef: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> None:
    """Refuses a model that does not follow the number of its rows: inference runs it on batches and on single rows."""
    data = jax.tree.unflatten(treedef, leaves)
    count = rows.num_rows(data)
    if count == 1:
        return
    mask = rows.row_mask(data, problem.row_args)
    cut = [jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype) if m else leaf for leaf, m in zip(leaves, mask, strict=True)]

    def shapes(*leaves: jax.Array) -> dict[str, jax.Array]:
        sites, _ = problem.trace(jax.tree.unflatten(treedef, leaves))
        observed = {name: site for name, site in sites.items() if site["type"] == "sample" and site["is_observed"]}
        return {
            name: site["fn"].log_prob(site["value"])
            for name, site in observed.items()
            if _numpyro.in_plate(site, problem.data_plate)
        }

    try:
        found = {name: leaf.shape[:1] for name, leaf in jax.eval_shape(shapes, *cut).items()}
    except Exception as error:
        raise ModelError(
            f"the model runs on all {count} rows but fails on one of them ({type(error).__name__}: {str(error)[:200]}): it closes over "
            "data or mixes rows. Take arrays with rows as arguments, open the data plate with x.shape[0], and treat rows independently"
        ) from error
    wrong = {name: shape for name, shape in found.items() if shape != (1,)}
    if wrong:
        raise ModelError(
            f"given one row, the model still observes {wrong} (leading axes by site): it closes over data. Take every array with rows as "
            "an argument, and open the data plate with x.shape[0]"
        )


class _Discover(TapRecorder):
    """Collects what a structure needs, and refuses what inference cannot treat."""

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate
        self.latent: dict[str, LatentSite] = {}
        self.observed: dict[str, str] = {}
        self.modules: dict[str, Layer] = {}
        self.plates: dict[str, None] = {}
        self.outside: list[str] = []

    def process_message(self, message: dict[str, Any]) -> None:
        """Takes note of plates, modules and taps, and refuses names used twice."""
        super().process_message(message)
        name, kind = message.get("name", ""), message["type"]
        if kind == "plate":
            self.plates[name] = None
        elif kind == "param":
            raise ModelError(
                f"site {name!r} is a numpyro.param, which only some schemes can see: make it a sample site with a prior, and name it in "
                "optimise=(...) where it should be a point"
            )
        elif kind == "module":
            self.modules[_numpyro.name_of(message)] = message["args"][0] if message["value"] is None else message["value"]
        elif kind == "sample" and (name in self.latent or name in self.observed):
            raise ModelError(
                f"site name {name!r} occurs twice: every sample site needs a name of its own, e.g. random_module('net1', ...) and "
                "random_module('net2', ...)"
            )

    def postprocess_message(self, message: dict[str, Any]) -> None:
        """Takes note of a sample site once its value is known."""
        if message["type"] != "sample":
            return
        name, fn = message["name"], message["fn"]
        if message["is_observed"]:
            if _numpyro.in_plate(message, self.plate):
                self._observe(name, fn, jnp.shape(message["value"]))
            elif type(fn).__name__ != "Unit":  # numpyro.factor
                self.outside.append(name)
            return
        if fn.support.is_discrete:
            raise ModelError(
                f"latent site {name!r} is discrete ({type(fn).__name__}): sum it out, or use a continuous relaxation"
            )
        if _numpyro.in_plate(message, self.plate):
            raise ModelError(
                f"latent site {name!r} stands inside the data plate {self.plate!r}, so its size changes with the minibatch: integrate it "
                "out of the likelihood, or move it out of the plate"
            )
        shape = jnp.shape(message["value"])
        coordinates = tuple(biject_to(fn.support).inverse_shape(shape))
        positive = _numpyro.is_positive(fn.support)
        part = gaussian_part(fn, shape)
        normals = None if part is None else part.mean.dtype
        self.latent[name] = LatentSite(shape, coordinates, jnp.result_type(message["value"]), positive, normals)

    def _observe(self, name: str, fn: Any, shape: tuple[int, ...]) -> None:
        expected = fn.shape()
        if shape != expected:
            raise DataError(
                f"site {name!r} observes values of shape {shape}, but its distribution under the data plate has shape {expected}: "
                "inputs and observations need the same number of rows, and vector observations need .to_event(1)"
            )
        self.observed[name] = f"{type(fn).__name__} on {fn.support}"
