"""Linear maps of images whose symmetry is known, data that they make, and the exact evidence of models of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


__all__ = [
    "NOISE",
    "NUM_TRAIN",
    "SIDE",
    "TRUTHS",
    "Planted",
    "energy_shares",
    "exact_log_evidence",
    "plant",
    "planted_maps",
    "shares",
]

SIDE = 4
"""Height and width of the images, which wrap around."""

TRUTHS = {"equivariant": 1.0, "partial": 0.5, "broken": 0.0}
"""The share of the convolution in the energy of the planted map."""

NOISE = 0.3
"""Standard deviation of the noise; that of the signal is 1."""

NUM_TRAIN = 48
"""Images to train on."""

_NUM_TEST = 500
_OFFSETS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


class Planted(NamedTuple):
    """Images and responses (rows, side, side, 1) to train and to test on, and each planted map's share of test energy."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    energy: dict[str, float]


def planted_maps(truth: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A convolution and a map without symmetry, (pixels, pixels) from inputs to outputs, with the energies of the truth.

    The convolution is 3x3 with random weights. The other map has random weights less their mean over all translations:
    that mean would be a convolution. Of white images the two sum to outputs of mean square 1.
    """
    pixels = SIDE**2
    kernel, free = rng.standard_normal(len(_OFFSETS)), rng.standard_normal([SIDE] * 4)
    free -= np.mean([np.roll(free, (i, j, i, j), (0, 1, 2, 3)) for i in range(SIDE) for j in range(SIDE)], axis=0)
    maps = {"conv": _neighbours(np.eye(pixels).reshape(-1, SIDE, SIDE)) @ kernel, "full": free.reshape(pixels, pixels)}
    energies = {"conv": TRUTHS[truth], "full": 1 - TRUTHS[truth]}
    return {name: np.sqrt(energies[name] * pixels) / np.linalg.norm(weight) * weight for name, weight in maps.items()}


def plant(truth: str, seed: int, num_train: int = NUM_TRAIN) -> Planted:
    """White images, and what the planted maps and noise make of them."""
    rng = np.random.default_rng([seed, 7])
    maps = planted_maps(truth, rng)
    x = rng.standard_normal((num_train + _NUM_TEST, SIDE**2))
    outputs = {name: x @ weight for name, weight in maps.items()}
    y = outputs["conv"] + outputs["full"] + NOISE * rng.standard_normal(x.shape)
    energy = energy_shares({name: output[num_train:] for name, output in outputs.items()})
    x, y = x.reshape(-1, SIDE, SIDE, 1), y.reshape(-1, SIDE, SIDE, 1)
    return Planted(x[:num_train], y[:num_train], x[num_train:], y[num_train:], energy)


def exact_log_evidence(x: np.ndarray, y: np.ndarray, noise: float, conv: float = 0.0, full: float = 0.0) -> float:
    """log p(y | x) of the Gaussian model with this noise, and these prior variances of the weights of its pathways.

    Pixel q of row n has the prior covariance with pixel q' of row n'

        noise^2 [n = n', q = q'] + full x_n' x_n' [q = q'] + conv sum_t x_n[q + t] x_n'[q' + t].

    The first two terms are the same matrix over rows for every pixel, of which the eigenvalues are taken; the third has
    the rank of the filter and is added by the Woodbury identity.
    """
    rows = len(x)
    seen, patches = x.reshape(rows, -1), _neighbours(x[..., 0])
    values, vectors = np.linalg.eigh(seen @ seen.T)
    variances = noise**2 + full * np.clip(values, 0, None)
    white = (vectors / np.sqrt(variances)).T
    response, directions = white @ y.reshape(rows, -1), np.tensordot(white, patches, 1)
    inner = np.eye(len(_OFFSETS)) + conv * np.einsum("nqs,nqt->st", directions, directions)
    along = np.einsum("nqt,nq->t", directions, response)
    squares = (response**2).sum() - conv * along @ np.linalg.solve(inner, along)
    log_det = seen.shape[1] * np.log(variances).sum() + np.linalg.slogdet(inner)[1]
    return float(-(y.size * np.log(2 * np.pi) + log_det + squares) / 2)


def _neighbours(x: np.ndarray) -> np.ndarray:
    """What the filter sees at every pixel of x (rows, side, side): (rows, pixels, 9)."""
    views = [np.roll(x, (-i, -j), (1, 2)).reshape(len(x), -1) for i, j in _OFFSETS]
    return np.stack(views, axis=-1)


def energy_shares(outputs: dict[str, Any]) -> dict[str, float]:
    """The share of each pathway in the sum of their mean squares."""
    return shares({name: float(np.mean(np.square(output))) for name, output in outputs.items()})


def shares(amounts: dict[str, float]) -> dict[str, float]:
    """Each amount over their sum; nan where there is nothing to share."""
    total = sum(amounts.values())
    return {name: amount / total if total > 0 else float("nan") for name, amount in amounts.items()}
