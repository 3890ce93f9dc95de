"""Rings: points in the plane whose class is told by their distance from the centre, on arcs of a known angle."""

from __future__ import annotations

import numpy as np

from .sets import Sets, between, generated


__all__ = ["rings"]


def rings(
    num_train: int = 200,
    num_validation: int = 200,
    num_test: int = 1000,
    *,
    seed: int = 0,
    arc: float = 120.0,
    noise: float = 0.06,
) -> Sets:
    """The toy of Immer et al. 2022 ("Invariance learning ... differentiable Laplace approximations"): x (N, 2), y 0 or 1.

    Class 0 lies on a circle of radius 1/2. Of class 1, one third lies around the centre and two thirds on a circle of
    radius 1. On both circles, angles a are uniform between 0 and `arc`, and

        x = ((r + noise e1) cos a, (r + noise e2) sin a),     e1, e2 ~ N(0, 1),

    as in the released code: the noise is radial along the axes of the plane, and isotropic with noise/sqrt(2) between them.
    Around the centre it is N(0, noise^2) along both axes. Classes are equally many, to within one point, in random order.

    The label does not depend on the angle, and the data say so along the arc only: a learned range of rotations +-h
    reaches h = arc/2 (the published figure shows 60 to 62 degrees for an arc of 120).

    Args:
        num_train: points in ``train``, at least 1.
        num_validation: points in ``validation``.
        num_test: points in ``test``.
        seed: draws the points of each set by itself.
        arc: the angle that the circles cover, 0 to 360 degrees.
        noise: its standard deviation, 0 to 0.25.

    Raises:
        DataError: a size is no whole number in its range.
        OptionError: an option is out of range.
    """
    between("arc", arc, 0, 360, "degrees")
    between("noise", noise, 0, 0.25, "(half of the distance between the rings)")

    def draw(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        inner = count // 2
        far = (2 * (count - inner)) // 3
        near = count - inner - far
        radius = np.repeat([0.5, 1.0, 0.0], [inner, far, near])
        angle = np.radians(arc) * generator.uniform(size=count)
        shaken = radius[:, None] + noise * generator.standard_normal((count, 2))
        along = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        x = np.where(radius[:, None] == 0, shaken, shaken * along)
        order = generator.permutation(count)
        return x[order], (radius != 0.5)[order]

    return generated(draw, {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}, seed)
