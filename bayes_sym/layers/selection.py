"""One layer of augmentation: its operations, its sites, and the ways in which operations are combined or chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ..errors import OptionError
from ..transforms import Chain, Finite, Transform
from ..transforms.chain import split
from .layer import Site, Weights


__all__ = ["Selection"]

MODES = ("all", "blend", "gumbel")


@dataclass(frozen=True)
class Selection:
    """One layer of augmentation: some operations, and how they are combined.

    With magnitudes m, selection weights w = softmax(selection / temperature) and operations T_k:

    - ``"all"``: every operation, one after the other; no selection. Runs of affine ones are one warp (with widths learned for
      each, this is Augerino, Benton et al. 2020);
    - ``"blend"``: sum_k w_k T_k(x; m_k), a convex combination of inputs (training of AugNet, Rommel et al. 2022);
    - ``"gumbel"``: one operation, drawn with the probabilities w for every example and copy; its gradient in w is that of the
      Gumbel softmax (straight-through, Jang et al. 2017: biased), in the magnitudes it is exact.

    Attributes:
        operations: at least one.
        mode: as above.
        start: the prior median of the magnitudes, in (0, 1); one for all, or one per operation. Schemes start there. Not 0:
            draws are symmetric, so a smooth operation has no gradient at magnitude 0.
        temperature: of the selection weights. The papers' 0.01 speeds the choice up a hundredfold.
        relaxation: temperature of the gradient in mode ``"gumbel"``.
    """

    operations: tuple[Transform, ...]
    mode: str = "all"
    start: float | tuple[float, ...] = 0.1
    temperature: float = 1.0
    relaxation: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", Chain(tuple(self.operations)).operations)
        if isinstance(self.start, Iterable):
            object.__setattr__(self, "start", tuple(float(s) for s in self.start))
        if self.mode not in MODES:
            raise OptionError(f"mode must be 'all', 'blend' or 'gumbel', got {self.mode!r}")
        if not all(0 < s < 1 for s in self.starts) or len(self.starts) != len(self.operations):
            raise OptionError(
                f"start must lie in (0, 1), one for all or one for each of {len(self.operations)} operations, got {self.start}: at 0 there "
                "is no gradient; use 0.05 to 0.15"
            )
        if not (self.temperature > 0 and self.relaxation > 0):
            raise OptionError(f"temperature and relaxation must be positive, got {self.temperature} and {self.relaxation}")

    @property
    def starts(self) -> tuple[float, ...]:
        """The prior median of every magnitude."""
        return self.start if isinstance(self.start, tuple) else (self.start,) * len(self.operations)

    @property
    def selects(self) -> bool:
        """Whether there are selection weights."""
        return self.mode != "all"

    def sites(self) -> tuple[Site, ...]:
        """``magnitude`` (operations,) in (0, 1) and, where one is chosen, ``selection`` (operations,), real."""
        count = (len(self.operations),)
        odds = dist.Logistic(np.log(self.starts) - np.log1p(-np.array(self.starts)), 1.0)
        magnitude = dist.TransformedDistribution(odds, dist.transforms.SigmoidTransform()).to_event(1)
        found = [Site("magnitude", count, 1, "form", prior=magnitude)]
        if self.selects:
            found.append(Site("selection", count, 1, "form", prior=dist.Normal(0.0, 1.0).expand(count).to_event(1)))
        return tuple(found)

    def weights(self, values: Weights) -> jax.Array:
        """Selection weights (..., operations) from the values of the sites; ones if every operation is applied."""
        if not self.selects:
            return jnp.ones_like(values["magnitude"])
        return jax.nn.softmax(values["selection"] / self.temperature, axis=-1)

    def sizes(self, shape: tuple[int, ...]) -> list[int]:
        """The uniform numbers per example of every operation, and of the choice."""
        return [op.num_uniforms(shape) for op in self.operations] + ([len(self.operations)] if self.mode == "gumbel" else [])

    def apply(self, values: Weights, x: jax.Array, u: jax.Array, given: Mapping[Transform, Any], *, first: bool) -> jax.Array:
        """The layer on a batch.

        Args:
            values: of the sites.
            x: a batch.
            u: (batch, sum of sizes).
            given: as in `Prepared`.
            first: whether x are the inputs themselves.
        """
        magnitude = values["magnitude"].astype(x.dtype)
        if self.mode == "all":
            prepared = [_given(op, given, first and k == 0) for k, op in enumerate(self.operations)]
            return Chain(self.operations).apply(x, magnitude, u, prepared)
        us = split(u, self.sizes(x.shape))
        if self.mode == "gumbel":
            weights = self._chosen(values["selection"].astype(x.dtype), us.pop())
        else:
            weights = jnp.broadcast_to(self.weights(values).astype(x.dtype)[None], (x.shape[0], len(self.operations)))
        found = jnp.zeros_like(x)
        for k, (op, own) in enumerate(zip(self.operations, us, strict=True)):
            moved = op.apply(x, magnitude[k], own, _given(op, given, first))
            found = found + weights[:, k].reshape(-1, *(1,) * (x.ndim - 1)) * moved
        return found

    def _chosen(self, logits: jax.Array, u: jax.Array) -> jax.Array:
        """One-hot draws (batch, operations), with the gradient of the Gumbel softmax."""
        scores = jax.nn.log_softmax(logits / self.temperature)[None] - jnp.log(-jnp.log(u.astype(logits.dtype)))
        soft = jax.nn.softmax(scores / self.relaxation, axis=-1)
        hard = jax.nn.one_hot(jnp.argmax(scores, axis=-1), len(self.operations), dtype=logits.dtype)
        return hard + (soft - jax.lax.stop_gradient(soft))

    def enumerated(self, values: Weights, x: jax.Array, probability: jax.Array) -> tuple[jax.Array, jax.Array]:
        """All outcomes of a layer of finite operations, on every one of several versions of a batch.

        Args:
            values: of the sites.
            x: (versions, batch, ...).
            probability: (versions,).

        Returns:
            The same for versions x outcomes of them.
        """
        magnitude = values["magnitude"].astype(x.dtype)
        operations = [op for op in self.operations if isinstance(op, Finite)]
        if self.mode == "all":
            for k, op in enumerate(operations):
                x, probability = _combined(_outcomes(op, x), op.probabilities(magnitude[k]), probability)
            return x, probability
        weights = self.weights(values).astype(x.dtype)
        each = [op.probabilities(magnitude[k]) * weights[k] for k, op in enumerate(operations)]
        outcomes = [x[None]] + [_outcomes(op, x)[1:] for op in operations]  # the first outcome is x for each of them
        odds = [jnp.stack([p[0] for p in each]).sum()[None]] + [p[1:] for p in each]
        return _combined(jnp.concatenate(outcomes), jnp.concatenate(odds), probability)

    def num_outcomes(self) -> int:
        """How many outcomes a layer of finite operations has."""
        each = [
            jax.eval_shape(op.probabilities, jax.ShapeDtypeStruct((), jnp.float32)).shape[0]
            for op in self.operations
            if isinstance(op, Finite)
        ]
        return 1 + sum(n - 1 for n in each) if self.selects else math.prod(each)


def _given(op: Transform, given: Mapping[Transform, Any], sees_inputs: bool) -> Any:
    return given.get(op) if sees_inputs or op.mixes_rows else None


def _outcomes(op: Finite, x: jax.Array) -> jax.Array:
    """(outcomes, versions, batch, ...) from (versions, batch, ...)."""
    found = op.outcomes(x.reshape(-1, *x.shape[2:]))
    return found.reshape(-1, *x.shape)


def _combined(outcomes: jax.Array, own: jax.Array, probability: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Outcomes of versions as versions, with the products of their probabilities."""
    return outcomes.reshape(-1, *outcomes.shape[2:]), (own[:, None] * probability[None]).reshape(-1)
