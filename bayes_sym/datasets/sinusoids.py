"""Sinusoids: series whose class is their frequency, told apart however they are shifted by less than half its spacing."""

from __future__ import annotations

import numpy as np

from ..errors import OptionError
from .sets import Sets, between, generated, shuffled_labels


__all__ = ["sinusoids"]

_FREQUENCIES = np.array([2.0, 4.0, 6.0, 8.0])


def sinusoids(
    num_train: int = 400,
    num_validation: int = 200,
    num_test: int = 200,
    *,
    seed: int = 0,
    shift: float = 0.5,
    noise: float = 0.5,
    phase: str = "full",
    amplitude: float = 1.0,
    length: int = 1000,
) -> Sets:
    """Series (N, length, 1) at 100 samples per second, with labels 0..3 for frequencies f = 2, 4, 6, 8 Hz:

        x(t) = A sin(2 pi (f + d) t + p) + noise e(t),     d ~ U(-shift, shift),     log A ~ U(-log(amplitude), log(amplitude)).

    The toy of AugNet (Rommel et al. 2022, "Deep invariant networks with differentiable augmentation layers"), with the
    defaults of its runs. Classes are 2 Hz apart, so labels survive further shifts of the frequency by +-h exactly as
    long as shift + h < 1 Hz: for 0.5, the largest range without loss is 0.5 Hz, a quarter of the scale of 2 Hz in the
    paper. Amplitudes, if they vary, say nothing about the class. Classes are equally many, to within one series.

    Args:
        num_train: series in ``train``, at least 1.
        num_validation: series in ``validation``.
        num_test: series in ``test``.
        seed: draws the series of each set by itself.
        shift: the largest shift of the frequency, 0 to 1 Hz.
        noise: the standard deviation of white noise.
        phase: ``"full"`` for p uniform on (0, 2 pi), or ``"original"`` for (0, 4 pi/f) as in the released code, which was
            meant as two periods and lets the class leak through the phase.
        amplitude: the largest factor, at least 1; at 1 all have amplitude 1.
        length: samples, 50 to 100,000.

    Raises:
        DataError: a size is no whole number in its range.
        OptionError: an option is out of range.
    """
    between("shift", shift, 0, 1, "Hz")
    between("noise", noise, 0, 100)
    between("amplitude", amplitude, 1, 100)
    between("length", length, 50, 100_000, "samples", whole=True)
    if phase not in ("full", "original"):
        raise OptionError(f"phase must be 'full' or 'original', got {phase!r}")
    times = np.arange(length) / 100

    def draw(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = shuffled_labels(generator, count, len(_FREQUENCIES))
        frequency = _FREQUENCIES[labels]
        moved = frequency + shift * generator.uniform(-1, 1, count)
        phases = generator.uniform(size=count) * (2 * np.pi if phase == "full" else 4 * np.pi / frequency)
        factors = amplitude ** generator.uniform(-1, 1, count)
        waves = factors[:, None] * np.sin(2 * np.pi * moved[:, None] * times + phases[:, None])
        return (waves + noise * generator.standard_normal(waves.shape))[..., None], labels

    return generated(draw, {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}, seed)
