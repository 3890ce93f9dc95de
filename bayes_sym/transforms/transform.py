"""What every operation answers: how much noise it takes, and what it makes of a batch at a magnitude."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..errors import OptionError, ShapeError


__all__ = ["Transform", "beside", "signed", "uniforms"]

_AXES = {"image": "(batch, height, width, channels)", "series": "(batch, time, channels)", "any": "(batch, ...)"}


class Transform(abc.ABC):
    """A differentiable operation on a batch: the identity at magnitude 0, and the stronger the larger the magnitude.

    An operation is a deterministic function of the batch, of one magnitude in [0, 1] per example, and of `num_uniforms`
    independent uniform numbers per example, from which it makes all its noise. So whoever draws the numbers decides how:
    afresh, stratified over copies, in antithetic pairs (u and 1 - u), or shared. A magnitude m stands for ``limit * m``
    in the operation's own unit.

    Subclasses are frozen dataclasses with a field ``limit`` and one method, `transform`::

        @dataclass(frozen=True)
        class Gamma(Transform):
            limit: float = 1.0

            def transform(self, x, magnitude, u):
                return x ** beside(jnp.exp(signed(self.limit * magnitude, u[:, 0])), x)

    Attributes:
        limit: what magnitude 1 stands for, positive.
        kind: what it acts on: ``"image"`` (batch, height, width, channels), ``"series"`` (batch, time, channels) or ``"any"``.
        unit: of `limit`, for reports.
        mixes_rows: whether an example's result depends on the other examples of the batch, unless `prepare` is given others.
    """

    limit: float
    kind: ClassVar[str] = "any"
    unit: ClassVar[str] = ""
    mixes_rows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive(self, "limit")

    @abc.abstractmethod
    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """The operation itself.

        Args:
            x: floats, as `kind` says.
            magnitude: (batch,), in [0, 1].
            u: (batch, num_uniforms), in (0, 1).

        Returns:
            An array of the shape of x.
        """

    def num_uniforms(self, shape: tuple[int, ...]) -> int:
        """How many uniform numbers one example takes, for a batch of this shape."""
        return 1

    def prepare(self, x: jax.Array) -> Any:
        """What depends on the data only, to be computed once and handed to `apply`; None if there is nothing to gain."""
        return None

    def transform_prepared(self, x: jax.Array, magnitude: jax.Array, u: jax.Array, prepared: Any) -> jax.Array:
        """As `transform`, given what `prepare` returned."""
        return self.transform(x, magnitude, u)

    def apply(self, x: jax.Array, magnitude: Any, u: jax.Array, prepared: Any = None) -> jax.Array:
        """The operation, after its arguments have been checked.

        Args:
            x: floats, as `kind` says.
            magnitude: one number, or (batch,).
            u: (batch, num_uniforms), uniform in (0, 1).
            prepared: what `prepare` returned for this batch, or None.

        Raises:
            ShapeError: an argument has the wrong shape, or x holds no floats.
        """
        x, u = jnp.asarray(x), jnp.asarray(u)
        self.check_batch(x)
        wanted = (x.shape[0], self.num_uniforms(x.shape))
        if u.shape != wanted:
            raise ShapeError(
                f"{type(self).__name__} takes uniform numbers of shape {wanted} (batch, num_uniforms) for a batch of shape {x.shape}, got "
                f"{u.shape}: draw them with .draw(key, x)"
            )
        magnitude = jnp.asarray(magnitude, x.dtype)
        if magnitude.shape not in ((), (x.shape[0],)):
            raise ShapeError(
                f"{type(self).__name__} takes one magnitude, or one per example ({x.shape[0]},), got shape {magnitude.shape}"
            )
        magnitude = jnp.broadcast_to(magnitude, x.shape[:1])
        if prepared is None:
            return self.transform(x, magnitude, u.astype(x.dtype))
        return self.transform_prepared(x, magnitude, u.astype(x.dtype), prepared)

    def draw(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """Independent uniform numbers in (0, 1) for every example of the batch, (batch, num_uniforms)."""
        return uniforms(key, (x.shape[0], self.num_uniforms(x.shape)), x.dtype)

    def __call__(self, key: jax.Array, x: jax.Array, magnitude: Any) -> jax.Array:
        """The operation with fresh noise for every example.

        Raises:
            OptionError: a magnitude that is a number lies outside [0, 1].
            ShapeError: as for `apply`.
        """
        if isinstance(magnitude, (int, float)) and not 0 <= magnitude <= 1:
            raise OptionError(
                f"the magnitude of {type(self).__name__} lies in [0, 1], where 1 stands for its limit {self.limit} {self.unit}, got "
                f"{magnitude}: set limit= to go farther"
            )
        x = jnp.asarray(x)
        self.check_batch(x)
        return self.apply(x, magnitude, self.draw(key, x))

    def physical(self, magnitude: Any) -> Any:
        """A magnitude in the operation's own unit."""
        return self.limit * magnitude

    def check_batch(self, x: jax.Array) -> None:
        """Refuses what the operation cannot act on."""
        name = type(self).__name__
        fits = x.ndim >= 2 if self.kind == "any" else x.ndim == (4 if self.kind == "image" else 3)
        if not fits:
            raise ShapeError(f"{name} takes {_AXES[self.kind]}, got an array of shape {x.shape}: add the missing axes")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ShapeError(f"{name} takes floats, got {x.dtype}: convert first, e.g. images to x / 255 in float32")


def beside(values: jax.Array, x: jax.Array) -> jax.Array:
    """One value per example, (batch,), with as many axes as `x`."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def signed(half_range: jax.Array, u: jax.Array) -> jax.Array:
    """Uniform on (-half_range, half_range), from u uniform on (0, 1)."""
    return half_range * (2 * u - 1)


def uniforms(key: jax.Array, shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
    """Uniform numbers in the open interval (0, 1), on a grid that u -> 1 - u maps to itself."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return jax.random.uniform(key, shape, dtype) + jnp.finfo(dtype).eps / 2


def check_positive(transform: Any, *names: str) -> None:
    """Refuses options that are not positive numbers."""
    for name in names:
        value = getattr(transform, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise OptionError(f"{name} of {type(transform).__name__} must be a positive number, got {value!r}")
