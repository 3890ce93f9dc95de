"""Signals like those of sleep: six channels, five stages told by rhythms, and invariances that hold by construction."""

from __future__ import annotations

import numpy as np

from .sets import Sets, between, generated, shuffled_labels


__all__ = ["SLEEP_BANDS", "SLEEP_CHANNELS", "SLEEP_MIRROR", "SLEEP_POSITIONS", "SLEEP_RMS", "sleep_stages"]

SLEEP_CHANNELS = ("F3", "F4", "C3", "C4", "O1", "O2")
"""The channels: left and right at the front, the middle and the back of the head."""

SLEEP_MIRROR = (1, 0, 3, 2, 5, 4)
"""For every channel, the one on the other side, for `bayes_sym.transforms.ChannelSymmetry`."""

SLEEP_POSITIONS = (
    (-0.55, 0.67, 0.50),
    (0.55, 0.67, 0.50),
    (-0.71, 0.0, 0.71),
    (0.71, 0.0, 0.71),
    (-0.31, -0.95, -0.03),
    (0.31, -0.95, -0.03),
)
"""Where they sit on a head of radius 1, (right, front, up), for `bayes_sym.transforms.SensorRotation`."""

SLEEP_BANDS = {"slow": (0.5, 2.0), "theta": (4.0, 7.0), "alpha": (8.0, 12.0), "spindle": (12.5, 15.0), "beta": (16.0, 24.0)}
"""The rhythms and the frequencies between which they lie, in hertz."""

SLEEP_RMS = {  # root mean square at the front, the middle and the back, by stage and rhythm
    "wake": {"alpha": (0.5, 0.8, 1.5), "beta": (0.6, 0.5, 0.4)},
    "n1": {"theta": (0.7, 0.9, 0.7), "alpha": (0.2, 0.3, 0.6)},
    "n2": {"slow": (0.9, 0.8, 0.5), "theta": (0.5, 0.6, 0.4), "spindle": (0.6, 0.9, 0.3)},
    "n3": {"slow": (2.5, 2.0, 1.2), "theta": (0.4, 0.4, 0.3)},
    "rem": {"theta": (0.7, 0.8, 0.5), "beta": (0.4, 0.3, 0.2)},
}
"""How strong the rhythms are. Stages are labelled 0..4 in this order."""

_SHARED = 0.6  # the part of a rhythm's power that all channels have in common
_NOISE = 0.3
_EYES = 1.5  # root mean square of slow movements of the eyes, seen at the front with opposite signs


def sleep_stages(
    num_train: int = 500,
    num_validation: int = 250,
    num_test: int = 250,
    *,
    seed: int = 0,
    seconds: int = 10,
    rate: int = 64,
    gain: float = 1.5,
) -> Sets:
    """Series (N, seconds * rate, 6) with labels 0..4: wake, N1, N2, N3 and REM. Not recordings: made to be learned from.

    A stage is a sum of rhythms. Each is Gaussian noise within its band (`SLEEP_BANDS`), independent of the others, with
    60% of its power shared by all channels and a root mean square that depends on the stage and on how far in front a
    channel sits (`SLEEP_RMS`). The spindles of N2 come in one burst, a Gaussian window of 0.3 s standard deviation at a
    random time, with that root mean square at its height. In REM, eye movements below 1 Hz appear at F3 and F4 with
    opposite signs, and nowhere else. White noise of standard deviation 0.3 is added, and the whole
    is multiplied by a factor common to all channels.

    So the distribution of every stage is exactly invariant under a change of sign, reversed time, the exchange of left
    and right (`SLEEP_MIRROR`), and, by the factor, approximately under changes of amplitude; it is not invariant under
    other exchanges of channels, nor under shifts of the frequency by more than 1 or 2 Hz. Stages are equally many, to
    within one.

    Args:
        num_train: windows in ``train``, at least 1.
        num_validation: windows in ``validation``.
        num_test: windows in ``test``.
        seed: draws the windows of each set by itself.
        seconds: length of a window, 4 to 60.
        rate: samples per second, 50 to 512.
        gain: the largest factor, at least 1; its logarithm is uniform.

    Raises:
        DataError: a size is no whole number in its range.
        OptionError: an option is out of range.
    """
    between("seconds", seconds, 4, 60, "seconds", whole=True)
    between("rate", rate, 50, 512, "samples per second", whole=True)
    between("gain", gain, 1, 100)
    length = seconds * rate

    def draw(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = shuffled_labels(generator, count, len(SLEEP_RMS))
        x = _NOISE * generator.standard_normal((count, length, len(SLEEP_CHANNELS)))
        for stage, rhythms in enumerate(SLEEP_RMS.values()):
            rows = np.flatnonzero(labels == stage)
            for name, rms in rhythms.items():
                common, own = (
                    _band(generator, len(rows), 1, length, rate, name),
                    _band(generator, len(rows), 6, length, rate, name),
                )
                wave = np.sqrt(_SHARED) * common + np.sqrt(1 - _SHARED) * own
                if name == "spindle":
                    centre = generator.uniform(0, seconds, (len(rows), 1, 1))
                    wave = wave * np.exp(-(((np.arange(length) + 0.5)[:, None] / rate - centre) ** 2) / (2 * 0.3**2))
                x[rows] += wave * np.repeat(rms, 2)
            if list(SLEEP_RMS)[stage] == "rem":
                eyes = _EYES * _noise_between(generator, len(rows), 1, length, rate, (0.2, 1.0))
                x[rows] += eyes * np.array([1, -1, 0, 0, 0, 0])
        return x * gain ** generator.uniform(-1, 1, (count, 1, 1)), labels

    return generated(draw, {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}, seed)


def _band(generator: np.random.Generator, rows: int, channels: int, length: int, rate: float, name: str) -> np.ndarray:
    return _noise_between(generator, rows, channels, length, rate, SLEEP_BANDS[name])


def _noise_between(
    generator: np.random.Generator, rows: int, channels: int, length: int, rate: float, band: tuple[float, float]
) -> np.ndarray:
    """Gaussian noise of mean square 1 with all its power between two frequencies in Hz, (rows, length, channels)."""
    frequencies = np.fft.rfftfreq(length, 1 / rate)
    inside = (frequencies >= band[0]) & (frequencies <= band[1])
    waves = np.zeros((rows, len(frequencies), channels), complex)
    parts = generator.standard_normal((2, rows, int(inside.sum()), channels))
    waves[:, inside] = (parts[0] + 1j * parts[1]) * length / (2 * np.sqrt(inside.sum()))
    return np.fft.irfft(waves, length, axis=1)
