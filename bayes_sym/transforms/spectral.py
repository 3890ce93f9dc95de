"""Operations on the frequencies of time series: surrogates, shifts, and bands that are stopped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import OptionError, ShapeError
from .transform import Transform, beside, check_positive, signed


__all__ = ["BandStop", "FourierSurrogate", "FrequencyShift", "quadrature"]


def quadrature(x: jax.Array, *, pad: int | None = None) -> jax.Array:
    """The Hilbert transform of every channel along time: what makes x + i quadrature(x) the analytic signal.

    Args:
        x: real series (batch, time, channels).
        pad: the length to which series are filled up with zeros first, or None for none. Without padding, signals that
            are periodic in the window are exact, and others wrap around; with it, they are wrong near both ends instead.

    Returns:
        Real series of the shape of x.

    Raises:
        ShapeError: `pad` is shorter than the series.
    """
    if x.ndim != 3 or (pad is not None and pad < x.shape[1]):
        raise ShapeError(
            f"quadrature takes series (batch, time, channels) and pads to at least their length, got shape {x.shape}, pad={pad}"
        )
    length = x.shape[1] if pad is None else pad
    waves = jnp.fft.rfft(x, length, axis=1)
    inside = np.ones(waves.shape[1])
    inside[0] = 0  # a constant has no phase, nor has the alternating signal
    if length % 2 == 0:
        inside[-1] = 0
    return jnp.fft.irfft(-1j * inside[None, :, None].astype(x.dtype) * waves, length, axis=1)[:, : x.shape[1]].astype(x.dtype)


@dataclass(frozen=True)
class FrequencyShift(Transform):
    """All frequencies move by the same amount, uniform on (-limit m, limit m): Re[(x + i quadrature(x)) exp(2 pi i shift t)].

    The quadrature depends on the data only: compute it once, ``shift.prepare(x)``, and hand it to every call as `prepared`;
    then no Fourier transform is left.

    Attributes:
        limit: the largest shift, in hertz.
        rate: samples per second.
        pad: as in `quadrature`.
    """

    limit: float
    rate: float
    pad: int | None = None
    kind: ClassVar[str] = "series"
    unit: ClassVar[str] = "hertz"

    def __post_init__(self) -> None:
        check_positive(self, "limit", "rate")
        _below_nyquist(self, self.limit, self.rate)

    def prepare(self, x: jax.Array) -> jax.Array:
        """The quadrature of the series, (batch, time, channels)."""
        self.check_batch(x)
        return quadrature(x, pad=self.pad)

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """With the quadrature computed here."""
        return self.transform_prepared(x, magnitude, u, quadrature(x, pad=self.pad))

    def transform_prepared(self, x: jax.Array, magnitude: jax.Array, u: jax.Array, prepared: Any) -> jax.Array:
        """With the quadrature given."""
        seconds = jnp.asarray(np.arange(x.shape[1])[None, :, None] / self.rate, x.dtype)
        cos, sin = cos_sin_turns(beside(signed(self.limit * magnitude, u[:, 0]), x) * seconds)
        return x * cos - prepared * sin


@jax.custom_jvp
def cos_sin_turns(turns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos(2 pi t) and sin(2 pi t), by the Taylor series of half the angle after whole turns are taken off.

    Exact to a few units in the last place, and four times as fast as XLA's own sine and cosine on CPUs, which call a
    function per number: a shift with a cached quadrature does little else.
    """
    terms = 11 if turns.dtype == jnp.float64 else 7
    half = (turns - jnp.round(turns)) * math.pi  # within pi/2
    square = half * half
    cos, sin = jnp.zeros_like(half), jnp.zeros_like(half)
    for k in reversed(range(terms)):
        cos = cos * square + (-1) ** k / math.factorial(2 * k)
        sin = sin * square + (-1) ** k / math.factorial(2 * k + 1)
    sin = sin * half
    return 1 - 2 * sin * sin, 2 * sin * cos


@cos_sin_turns.defjvp
def _cos_sin_turns_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[tuple, tuple]:
    cos, sin = cos_sin_turns(*primals)
    angle = 2 * math.pi * tangents[0]
    return (cos, sin), (-sin * angle, cos * angle)


@dataclass(frozen=True)
class FourierSurrogate(Transform):
    """Every frequency gets a random phase, uniform on (-limit m, limit m); powers stay as they are.

    Means, and the alternating part of series of even length, have no phase and stay.

    Attributes:
        limit: the largest phase, in radians; at pi all phases are equally probable.
        shared: whether all channels get the same phases, which keeps their cross-spectra.
    """

    limit: float = math.pi
    shared: bool = True
    kind: ClassVar[str] = "series"
    unit: ClassVar[str] = "radians"

    def num_uniforms(self, shape: tuple[int, ...]) -> int:
        """One per frequency that has a phase, and per channel unless they share them."""
        return ((shape[1] - 1) // 2) * (1 if self.shared else shape[2])

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """Fourier transform, rotation of every wave, and back."""
        batch, length, channels = x.shape
        phase = signed(self.limit * magnitude[:, None], u).reshape(batch, (length - 1) // 2, -1)
        end = 1 if length % 2 == 0 else 0
        phase = jnp.pad(phase, ((0, 0), (1, end), (0, 0)))
        waves = jnp.fft.rfft(x, axis=1)
        # the change only, so that nothing is lost to rounding at magnitude 0
        change = jax.lax.complex(-2 * jnp.sin(phase / 2) ** 2, jnp.sin(phase))
        return x + jnp.fft.irfft(waves * change, length, axis=1).astype(x.dtype)


@dataclass(frozen=True)
class BandStop(Transform):
    """A band of frequencies of width w = limit * magnitude is taken out, around a centre uniform on (0, rate/2).

    The gain is 1 - [s((f - centre + w/2)/softness) - s((f - centre - w/2)/softness)] with s the logistic function: 1 at width
    0, and smaller at every frequency the wider the band. Series are taken as periodic.

    Attributes:
        limit: the largest width, in hertz.
        rate: samples per second.
        softness: of the edges, in hertz.
    """

    limit: float
    rate: float
    softness: float = 0.25
    kind: ClassVar[str] = "series"
    unit: ClassVar[str] = "hertz"

    def __post_init__(self) -> None:
        check_positive(self, "limit", "rate", "softness")
        _below_nyquist(self, self.limit, self.rate)

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """Fourier transform, what is taken out, and back."""
        frequencies = jnp.asarray(np.fft.rfftfreq(x.shape[1], 1 / self.rate)[None, :, None], x.dtype)
        half, centre = beside(self.limit * magnitude / 2, x), beside(u[:, 0] * (self.rate / 2), x)
        away = (frequencies - centre) / self.softness
        stopped = jax.nn.sigmoid(away + half / self.softness) - jax.nn.sigmoid(away - half / self.softness)
        return x - jnp.fft.irfft(jnp.fft.rfft(x, axis=1) * stopped, x.shape[1], axis=1).astype(x.dtype)


def _below_nyquist(transform: Transform, limit: float, rate: float) -> None:
    if limit > rate / 2:
        raise OptionError(
            f"limit of {type(transform).__name__} is {limit} Hz, but {rate} samples per second hold frequencies up to {rate / 2} Hz only"
        )
