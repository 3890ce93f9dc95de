"""Sample pairing: a little of another example is mixed in, and the label stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..errors import OptionError
from .transform import Transform, beside, check_positive


__all__ = ["SamplePairing"]


@dataclass(frozen=True)
class SamplePairing(Transform):
    """(1 - t) x + t partner, with t = limit * magnitude and a random partner for every example (Inoue 2018).

    Partners come from the batch, which then must not be cut differently; or from a bank of examples of your own,
    ``prepared=bank`` of shape (examples, ...), which keeps rows independent of each other.

    Attributes:
        limit: the partner's share at magnitude 1, at most 1.
    """

    limit: float = 0.5
    unit: ClassVar[str] = "share"
    mixes_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(self, "limit")
        if self.limit > 1:
            raise OptionError(f"limit of SamplePairing is a share, so at most 1, got {self.limit}")

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """Partners from the batch itself."""
        return self.transform_prepared(x, magnitude, u, x)

    def transform_prepared(self, x: jax.Array, magnitude: jax.Array, u: jax.Array, prepared: Any) -> jax.Array:
        """Partners from a bank."""
        count = prepared.shape[0]
        partner = jnp.take(prepared, jnp.minimum((u[:, 0] * count).astype(int), count - 1), axis=0)
        return x + beside(self.limit * magnitude, x) * (partner - x)
