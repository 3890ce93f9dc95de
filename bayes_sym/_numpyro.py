"""The one file that touches NumPyro's effect handlers: messages of our own, and running a model at given values."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro.distributions import biject_to, constraints
from numpyro.primitives import _PYRO_STACK, Messenger, apply_stack


__all__ = [
    "At",
    "Messenger",
    "in_plate",
    "is_positive",
    "is_real",
    "log_prob_of",
    "name_of",
    "noise",
    "run",
    "send",
    "unconstrain",
]

Trace = dict[str, dict[str, Any]]
_ONE_AT_A_TIME = threading.RLock()  # NumPyro's stack of handlers is one for the whole process: threads would see each other's


def send(kind: str, name: str, value: Any, **fields: Any) -> Any:
    """Offers `value` to the handlers on the stack as a message of type `kind`; returns what they make of it."""
    if not _PYRO_STACK:
        return value
    message = {
        "type": kind,
        "name": f"{name}:{kind}",  # a trace holds one message per name, and a sample site may have this one
        "fn": lambda value: value,
        "args": (value,),
        "kwargs": {},
        "value": None,
        "scale": None,
        "is_observed": False,
        "intermediates": [],
        "cond_indep_stack": [],
        "infer": fields,
    }
    return apply_stack(message)["value"]


def name_of(message: Mapping[str, Any]) -> str:
    """The name that a message of ours was sent with, under the scopes it stands in."""
    return message["name"].removesuffix(f":{message['type']}")


def in_plate(site: Mapping[str, Any], plate: str) -> bool:
    """Whether `site` stands under the plate of this name."""
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def is_real(support: Any) -> bool:
    """Whether a support is all of the reals (of any event shape), so that no transform is needed."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector or support is constraints.real_matrix


def is_positive(support: Any) -> bool:
    """Whether a support is the positive numbers, whose unconstrained coordinates are logarithms."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.positive


class At(Messenger):
    """Runs a model at given values of its latent sites, and scales the sites under the data plate.

    Args:
        fn: the model.
        unconstrained: values in unconstrained space; each is mapped to its site's support, and the log-determinant of
            that map is added to `log_det[name]`.
        constrained: values that are used as they are.
        plate, factor: every site under this plate has its log-density multiplied by `factor` (N/B for a minibatch).
    """

    def __init__(
        self,
        fn: Callable | None = None,
        *,
        unconstrained: Mapping[str, jax.Array] | None = None,
        constrained: Mapping[str, jax.Array] | None = None,
        plate: str | None = None,
        factor: Any = None,
    ) -> None:
        self.unconstrained = unconstrained or {}
        self.constrained = constrained or {}
        self.plate, self.factor = plate, factor
        self.log_det: dict[str, jax.Array] = {}
        super().__init__(fn)

    def process_message(self, message: dict[str, Any]) -> None:
        """Sets the value and the scale of a sample site."""
        if message["type"] != "sample":
            return
        name = message["name"]
        if not message["is_observed"]:
            if name in self.unconstrained:
                message["value"] = self._constrain(message, self.unconstrained[name])
            elif name in self.constrained:
                message["value"] = self.constrained[name]
        if self.factor is not None and self.plate is not None and in_plate(message, self.plate):
            message["scale"] = self.factor * (1.0 if message["scale"] is None else message["scale"])

    def _constrain(self, message: dict[str, Any], z: jax.Array) -> jax.Array:
        if is_real(message["fn"].support):
            return z
        transform = biject_to(message["fn"].support)
        value = transform(z)
        log_det = transform.log_abs_det_jacobian(z, value)
        self.log_det[message["name"]] = jnp.sum(log_det)
        return value


class _Noise(Messenger):
    """Makes every key that a model asks for depend on one more key."""

    def __init__(self, key: jax.Array) -> None:
        super().__init__()
        self.bits = jax.random.bits(key)

    def process_message(self, message: dict[str, Any]) -> None:
        """After the `seed` handler further in, which has set the key."""
        if message["type"] == "prng_key" and message["kwargs"]["rng_key"] is not None:
            message["kwargs"]["rng_key"] = jax.random.fold_in(message["kwargs"]["rng_key"], self.bits)


@contextmanager
def noise(key: jax.Array) -> Iterator[None]:
    """Models that draw noise while they run draw it from `key` too, where nobody hands them a key: one noise per measurement."""
    with _ONE_AT_A_TIME, _Noise(key):
        yield


class _EnoughError(Exception):
    """Ends a run of a model early."""


class _Until(Messenger):
    """Ends the run once all sites of these names have been seen."""

    def __init__(self, fn: Callable, names: Collection[str]) -> None:
        self.missing = set(names)
        super().__init__(fn)

    def postprocess_message(self, message: dict[str, Any]) -> None:
        """Innermost, so that every other handler has seen the message."""
        if message["type"] == "sample":
            self.missing.discard(message["name"])
            if not self.missing:
                raise _EnoughError


def run(
    model: Callable,
    data: tuple,
    *,
    key: jax.Array,
    at: At | None = None,
    recorder: Messenger | None = None,
    until: Collection[str] = (),
) -> Trace:
    """One run of the model under `at` and `recorder` (outermost); returns the trace of its sites.

    With names in `until`, the run ends as soon as these sites have been seen: what a net computes from its weights is
    not even traced.
    """
    if until:
        model = _Until(model, until)
    model = numpyro.handlers.seed(model, key)
    if at is not None:
        at.fn, model = model, at
    if recorder is not None:
        recorder.fn, model = model, recorder
    tracer = numpyro.handlers.trace(model)
    with _ONE_AT_A_TIME:
        try:
            return tracer.get_trace(*data)
        except _EnoughError:
            return tracer.trace


def log_prob_of(site: Mapping[str, Any]) -> jax.Array:
    """The log-density of one sample site at its value, with its scale, summed over everything."""
    log_prob = site["fn"].log_prob(site["value"], *((site["intermediates"],) if site["intermediates"] else ()))
    if site["scale"] is not None:
        log_prob = jnp.broadcast_to(site["scale"], jnp.shape(log_prob)) * log_prob
    return jnp.sum(log_prob)


def unconstrain(site: Mapping[str, Any], value: jax.Array) -> jax.Array:
    """The unconstrained coordinates of `value` at this site."""
    return value if is_real(site["fn"].support) else biject_to(site["fn"].support).inv(value)
