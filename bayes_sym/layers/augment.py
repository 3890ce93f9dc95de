"""Learned augmentation around a net: which operations, how strong, and an average over transformed copies of each input."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from .._numpyro import Messenger
from ..errors import GroupActionError, OptionError, ShapeError
from ..representations import Representation
from ..transforms import Finite, Transform
from ..transforms.chain import split
from ..transforms.draws import COUPLINGS, copy_uniforms, row_ids
from .layer import Field, Layer, Role, Site, Stage, Weights, join, under
from .selection import Selection


__all__ = ["Augment", "Prepared"]

_FEW = 8  # uniform numbers per operation up to which stratifying them over copies is worth a sort
_MOST = 1024  # outcomes that we are willing to enumerate


class Prepared(NamedTuple):
    """Inputs together with what their operations need besides: pass it to the net in place of x.

    Attributes:
        x: the inputs.
        given: by operation, what ``operation.prepare(x)`` returned for these rows (the quadrature of a `FrequencyShift`), used where
            the operation sees the inputs themselves; or the bank of partners of a `SamplePairing`, used everywhere.
    """

    x: jax.Array
    given: Mapping[Transform, Any]


@dataclass(frozen=True)
class Augment(Layer):
    """A net whose outputs are averaged over transformed copies of each input; ranges and choice of operations are learned.

    The sites are those of the net under their own names, and for layer l of augmentation ``augment.l.magnitude``, with values in
    (0, 1) for ranges from 0 to each operation's limit, and ``augment.l.selection``. Magnitudes have logistic priors in their log-odds,
    centred at `Selection.start`: bounded in (0, 1), so that nothing is clipped and no magnitude is dead. They are sites
    of kind ``"form"``: priors on weights do not apply to them, and schemes start at their prior medians.

    Noise. A run of the model takes one key from NumPyro's `seed` handler, and every example makes its own noise from that key
    and from its content (`transforms.draws.row_ids`). So each step of a fit sees fresh noise, while a measurement that
    runs the model under one key sees a deterministic function of the sites, the same for an example in any batch and
    under `vmap` over single rows. Put it where the inputs are data: noise must not depend on weights.

    Copies count as positions of one row in taps, so structured curvature measures the averaged net.

    Attributes:
        net: the net, a map of (batch, ...) to (batch, outputs).
        layers: `Selection` layers, applied one after the other; or operations, for one layer of mode ``"all"``.
        copies: C, per example and run.
        noise: how copies share theirs: ``"stratified"``, ``"antithetic"`` or ``"independent"``; see `transforms.draws.copy_uniforms`.
        average: ``"logits"``: the mean of the outputs. ``"probabilities"``: log mean_c softmax(outputs_c), so that as logits of a
            Categorical they give log mean_c p(y | T_c x), the likelihood with copies marginalised (OPTIMA, Matymov et al. 2025):
            data are not counted more than once. None: all outputs, (batch, copies, outputs).
        exact: whether to enumerate all outcomes with their probabilities, where every operation is `Finite`, instead of drawing
            copies: averages and gradients without noise.
        shared: whether all examples get the same noise, for comparing an input with its transform.
    """

    net: Layer
    layers: tuple[Selection, ...]
    copies: int = 1
    noise: str = "stratified"
    average: str | None = "logits"
    exact: bool = field(default=False, kw_only=True)
    shared: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        given: Any = self.layers
        members = (given,) if isinstance(given, (Selection, Transform)) else tuple(given)
        if members and all(isinstance(member, Transform) for member in members):
            members = (Selection(members),)
        object.__setattr__(self, "layers", members)
        if not members or not all(isinstance(member, Selection) for member in members):
            raise OptionError(f"layers of Augment must be Selection layers, or operations for one of them, got {members}")
        if any(site.name.startswith("augment.") for site in self.net.sites()):
            raise OptionError("the net of Augment holds an Augment at its top: give all layers of augmentation to one of them")
        if not isinstance(self.copies, int) or self.copies < 1:
            raise OptionError(f"copies must be a number of at least 1, got {self.copies!r}")
        if self.noise not in COUPLINGS:
            raise OptionError(f"noise must be one of {', '.join(COUPLINGS)}, got {self.noise!r}")
        if self.average not in ("logits", "probabilities", None):
            raise OptionError(f"average must be 'logits', 'probabilities' or None, got {self.average!r}")
        if self.exact:
            self._check_exact()

    def _check_exact(self) -> None:
        endless = sorted({type(op).__name__ for layer in self.layers for op in layer.operations if not isinstance(op, Finite)})
        if endless or any(layer.mode == "blend" for layer in self.layers):
            raise OptionError(
                f"exact=True enumerates finitely many outcomes, but {endless or 'a blend'} has none to enumerate: use copies for "
                "these, and mode 'gumbel' in place of 'blend'"
            )
        total = math.prod(layer.num_outcomes() for layer in self.layers)
        if total > _MOST:
            raise OptionError(f"exact=True would run the net on {total} outcomes per example, more than {_MOST}: use copies")
        if self.average is None:
            raise OptionError("exact=True weighs outcomes by their probabilities, so average must be 'logits' or 'probabilities'")

    def sites(self) -> tuple[Site, ...]:
        """Those of the net, then ``augment.l.magnitude`` and ``augment.l.selection`` of every layer l."""
        own = [site._replace(name=f"augment.{i}.{site.name}") for i, layer in enumerate(self.layers) for site in layer.sites()]
        return (*self.net.sites(), *own)

    def apply(self, weights: Weights, x: jax.Array | Prepared, *, path: str = "") -> jax.Array:
        """(batch, ...) to the averaged outputs (batch, outputs), or (batch, copies, outputs) without an average."""
        x, given = x if isinstance(x, Prepared) else (x, {})
        for op in itertools.chain.from_iterable(layer.operations for layer in self.layers):
            op.check_batch(x)
        inner = {name: value for name, value in weights.items() if not name.startswith("augment.")}
        if self.exact:
            versions, probability = self.outcomes(weights, x)
        else:
            versions = self.transform(weights, x, self.draw(_model_key(), x), given)
            probability = None
        batch, count = versions.shape[:2]
        flat = versions.reshape(batch * count, *versions.shape[2:])
        with _CopiesArePositions(batch, count):
            outputs = self.net.apply(inner, flat, path=path)
        return self._averaged(outputs.reshape(batch, count, *outputs.shape[1:]), probability)

    def _averaged(self, outputs: jax.Array, probability: jax.Array | None) -> jax.Array:
        if self.average is None:
            return outputs
        count = outputs.shape[1]
        share = jnp.full(count, 1 / count, outputs.dtype) if probability is None else probability.astype(outputs.dtype)
        share = share.reshape(1, count, *(1,) * (outputs.ndim - 2))
        if self.average == "logits":
            return (share * outputs).sum(axis=1)
        if outputs.ndim < 3:
            raise ShapeError(
                f"average='probabilities' needs outputs (batch, classes), got {(outputs.shape[0], *outputs.shape[2:])} from the net: use "
                "average='logits' for other outputs, which is their mean"
            )
        return jax.nn.logsumexp(jax.nn.log_softmax(outputs, axis=-1), axis=1, b=share)

    def draw(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """The uniform numbers of every example and copy, (batch, copies, coordinates), layer by layer."""
        sizes = [size for layer in self.layers for size in layer.sizes(x.shape)]
        coupled = np.repeat([size <= _FEW for size in sizes], sizes)
        ids = jnp.zeros(x.shape[0], jnp.uint32) if self.shared else row_ids(x)
        return copy_uniforms(key, ids, self.copies, coupled, self.noise, x.dtype)

    def transform(self, weights: Weights, x: jax.Array, u: jax.Array, given: Mapping[Transform, Any] | None = None) -> jax.Array:
        """The transformed copies of every example, (batch, copies, ...), for uniform numbers as `draw` gives them."""
        given = dict(given or {})
        self._check_rows(given)
        for op in [op for op in self.layers[0].operations if op not in given]:
            if not op.mixes_rows and (ready := op.prepare(x)) is not None:
                given[op] = ready  # once per example, not once per copy
        sizes = [sum(layer.sizes(x.shape)) for layer in self.layers]

        def one(u: jax.Array) -> jax.Array:
            moved = x
            for i, (layer, own) in enumerate(zip(self.layers, split(u, sizes), strict=True)):
                moved = layer.apply(under(weights, f"augment.{i}"), moved, own, given, first=i == 0)
            return moved

        return one(u[:, 0])[:, None] if u.shape[1] == 1 else jax.vmap(one, in_axes=1, out_axes=1)(u)

    def _check_rows(self, given: Mapping[Transform, Any]) -> None:
        for op in itertools.chain.from_iterable(layer.operations for layer in self.layers):
            if op.mixes_rows and op not in given:
                raise OptionError(
                    f"{type(op).__name__} takes other examples from the batch, and inference runs a model on single rows: pass examples of "
                    "your own as an argument of the model, net(Prepared(x, {operation: bank}))"
                )

    def outcomes(self, weights: Weights, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """All outcomes of finite operations, (batch, outcomes, ...), and their probabilities (outcomes,)."""
        versions, probability = x[None], jnp.ones(1, x.dtype)
        for i, layer in enumerate(self.layers):
            versions, probability = layer.enumerated(under(weights, f"augment.{i}"), versions, probability)
        return jnp.moveaxis(versions, 0, 1), probability

    def norm(self, weights: Weights, *, module: str = "", units: Sequence[float] | None = None, order: int = 2) -> jax.Array:
        """|w * m|: the norm of selection weights times magnitudes over all layers, Euclidean by default, with gradient 0 where it is 0.

        The papers' loss per example is less lambda times it, which is a log prior (Rommel et al. 2022). In a model of N rows::

            net = random_module("net", spec)
            numpyro.factor("reward", N * strength * spec.norm(net.weights))

        Args:
            weights: values of the sites by their names within the module, or by full names, under `module`.
            module: the name of the module, or none.
            units: what magnitude 1 of every operation counts, layer by layer, e.g. `displacements`; None for 1 each, as in the papers,
                where the operation with the most harmless limit is the cheapest reward.
            order: 2, or 1 for the sum, in which operations do not share a reward: under the Euclidean norm, what one of several
                operations gets for a step shrinks as others grow.
        """
        values = self._values(weights, module)
        parts = [layer.weights(own) * own["magnitude"] for layer, own in zip(self.layers, values, strict=True)]
        every = jnp.concatenate(parts, axis=-1)
        if units is not None:
            if len(units) != every.shape[-1]:
                raise OptionError(f"units are one number per operation, {every.shape[-1]} over all layers, got {len(units)}")
            every = every * jnp.asarray(units, every.dtype).reshape((1,) * (every.ndim - 1) + (-1,))
        if order not in (1, 2):
            raise OptionError(f"order of the norm must be 1 or 2, got {order!r}")
        if order == 1:
            return every.sum(axis=-1)
        square = (every**2).sum(axis=-1)
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)

    def displacements(self, key: jax.Array, x: jax.Array) -> tuple[float, ...]:
        """How far magnitude 1 of every operation moves inputs, layer by layer: the root mean square of T(x; 1) - x over that of x.

        As `units` of the norm, they make a reward for how far inputs are moved, whatever the limits.

        Args:
            key: of the operations' noise.
            x: some inputs (batch, ...).
        """
        found = []
        for i, op in enumerate(itertools.chain.from_iterable(layer.operations for layer in self.layers)):
            moved = op(jax.random.fold_in(key, i), x, 1.0)
            found.append(float(jnp.sqrt(((moved - x) ** 2).mean() / (x**2).mean())))
        return tuple(found)

    def report(self, weights: Weights, *, module: str = "") -> list[dict[str, Any]]:
        """One row per layer and operation: its range in its own unit and how probable it is.

        Args:
            weights: values of the sites by their names within the module, or by full names, under `module`; or draws of
                them, (draws, ...) each, and then the numbers of a row are arrays over draws.
            module: the name of the module, or none.

        Returns:
            Rows of ``layer``, ``operation``, ``unit``, ``magnitude``, ``range`` and ``probability``.
        """
        rows = []
        for i, (layer, own) in enumerate(zip(self.layers, self._values(weights, module), strict=True)):
            magnitude, probability = np.asarray(own["magnitude"]), np.asarray(layer.weights(own))
            for k, op in enumerate(layer.operations):
                found = {"layer": i, "operation": type(op).__name__, "unit": op.unit, "magnitude": magnitude[..., k]}
                rows.append({**found, "range": op.physical(magnitude[..., k]), "probability": probability[..., k]})
        return rows

    def _values(self, weights: Weights, module: str) -> list[dict[str, jax.Array]]:
        return [under(weights, join(module, f"augment.{i}")) for i in range(len(self.layers))]

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """None: what noise does to an input does not commute with a group.

        Raises:
            GroupActionError: always.
        """
        raise GroupActionError(
            "a group does not act on a net with random augmentation: take the representations of the net inside, spec.net, whose sites "
            "have the same names"
        )

    def stages(self) -> tuple[Stage, ...]:
        """Those of the net."""
        return self.net.stages()

    def expand(self, order: int, roles: Iterator[Role]) -> Augment:
        """The net is expanded."""
        return replace(self, net=self.net.expand(order, roles))


class _CopiesArePositions(Messenger):
    """Shows the taps of a net that runs on batch x copies examples as (batch, copies, ...): copies are shared axes of a row."""

    def __init__(self, batch: int, copies: int) -> None:
        super().__init__()
        self.lead = (batch, copies)

    def process_message(self, message: dict[str, Any]) -> None:
        """Splits the leading axis of a tap's arrays."""
        if message["type"] == "tap":
            fields = message["infer"]
            message["args"] = tuple(z.reshape(*self.lead, *z.shape[1:]) for z in message["args"])
            message["infer"] = {**fields, "inputs": fields["inputs"].reshape(*self.lead, *fields["inputs"].shape[1:])}

    def postprocess_message(self, message: dict[str, Any]) -> None:
        """Joins it again, for the net."""
        if message["type"] == "tap":
            message["value"] = message["value"].reshape(-1, *message["value"].shape[2:])


def _model_key() -> jax.Array:
    """The key that this run of the model has for us; a constant where no `seed` handler gives one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a call outside every handler
        key = numpyro.prng_key()
    return jax.random.key(0) if key is None else key
