"""Rotation of sensors on a sphere: signals at turned positions, by spherical splines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import OptionError, ShapeError
from .transform import Transform, check_positive, signed


__all__ = ["SensorRotation", "spherical_spline"]

_TERMS = 50


@dataclass(frozen=True)
class SensorRotation(Transform):
    """Signals as if the sensors had been turned about an axis through the centre of the head, by up to limit * m degrees.

    Spherical splines (Perrin et al. 1989, "Spherical splines for scalp potential and current density mapping", eqs. 1-3) interpolate
    between the sensors: with G the kernel between positions P, the signals at turned positions are M(angle) x with

        M(angle) = [G(R P, P), 1] C^-1,   C = [[G(P, P) + regularisation I, 1], [1', 0]].

    M(0) is the identity but for the regularisation, so x + (M(angle) - M(0)) x is returned: exactly x at angle 0.

    Attributes:
        limit: the largest angle, in degrees.
        positions: (x, y, z) of every sensor, on a sphere about the origin; they are scaled to radius 1.
        axis: ``"x"``, ``"y"`` or ``"z"``.
        stiffness: the order of the splines, at least 2.
        regularisation: added to the diagonal.
    """

    limit: float = 30.0
    positions: tuple[tuple[float, float, float], ...] = ()
    axis: str = "z"
    stiffness: int = 4
    regularisation: float = 1e-5
    kind: ClassVar[str] = "series"
    unit: ClassVar[str] = "degrees"

    def __post_init__(self) -> None:
        check_positive(self, "limit", "stiffness", "regularisation")
        places = np.array(self.positions, float)
        if places.ndim != 2 or places.shape[1] != 3 or len(places) < 2 or not np.isfinite(places).all():
            raise OptionError(
                f"positions of SensorRotation must be (x, y, z) for each of at least 2 sensors, got shape {places.shape}"
            )
        if not (np.linalg.norm(places, axis=1) > 0).all():
            raise OptionError("a sensor of SensorRotation lies in the centre of the head: give positions on the sphere")
        object.__setattr__(self, "positions", tuple(tuple(float(c) for c in place) for place in places))
        if self.axis not in ("x", "y", "z"):
            raise OptionError(f"axis must be 'x', 'y' or 'z', got {self.axis!r}")
        if self.stiffness < 2:
            raise OptionError(f"stiffness must be at least 2, got {self.stiffness}: the kernel has no finite values below")

    def transform(self, x: jax.Array, magnitude: jax.Array, u: jax.Array) -> jax.Array:
        """One matrix per example, applied to the channels."""
        if x.shape[2] != len(self.positions):
            raise ShapeError(
                f"SensorRotation has {len(self.positions)} positions, got series of shape {x.shape} (batch, time, channels)"
            )
        angle = signed(magnitude * (self.limit * math.pi / 180), u[:, 0])
        places = jnp.asarray(_on_sphere(self), x.dtype)
        i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[self.axis]
        cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
        turned = jnp.broadcast_to(places[None], (angle.shape[0], *places.shape))
        turned = turned.at[:, :, i].set(cos * places[None, :, i] - sin * places[None, :, j])
        turned = turned.at[:, :, j].set(sin * places[None, :, i] + cos * places[None, :, j])
        kernel = spherical_spline(jnp.matmul(turned, places.T, precision="highest"), self.stiffness)
        inverse, still = _solved(self)
        change = kernel - jnp.asarray(still, x.dtype)[None]
        return x + jnp.einsum("nij,jk,ntk->nti", change, jnp.asarray(inverse, x.dtype), x, precision="highest")


def spherical_spline(cosine: Any, stiffness: int = 4) -> Any:
    """g(cosine) = 1/(4 pi) sum_n (2n + 1) / (n (n + 1))^stiffness P_n(cosine), over n = 1..50 (Perrin et al. 1989, eq. 3).

    Args:
        cosine: of the angle between two positions, any shape, of numpy or jax.
        stiffness: the order m of the splines.
    """
    # Clenshaw's sum from the highest term down; terms below 1e-18 of the first do not count in float64
    n = np.arange(1, _TERMS + 1)
    weights = (2 * n + 1) / (n * (n + 1.0)) ** stiffness / (4 * math.pi)
    count = int((weights > 1e-18 * weights[0]).sum())
    ahead = after = 0 * cosine
    for k in range(count, 0, -1):
        ahead, after = float(weights[k - 1]) + (2 * k + 1) / (k + 1) * cosine * ahead - (k + 1) / (k + 2) * after, ahead
    return cosine * ahead - after / 2


def _on_sphere(rotation: SensorRotation) -> np.ndarray:
    places = np.array(rotation.positions)
    return places / np.linalg.norm(places, axis=1, keepdims=True)


@lru_cache(maxsize=64)
def _solved(rotation: SensorRotation) -> tuple[np.ndarray, np.ndarray]:
    """The rows of C^-1 that the kernel meets, (sensors, sensors), and the kernel at angle 0."""
    places = _on_sphere(rotation)
    count = len(places)
    kernel = np.asarray(spherical_spline(places @ places.T, rotation.stiffness))
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = kernel + rotation.regularisation * np.eye(count)
    system[count, count] = 0
    return np.linalg.inv(system)[:count, :count], kernel
