"""The named errors of the library and its warning: each says what is wrong, what was got, why, and what to do about it."""

from __future__ import annotations


__all__ = [
    "BayesSymError",
    "BiasedGradientWarning",
    "CheckpointError",
    "ClosednessError",
    "CurvatureError",
    "DataError",
    "GroupActionError",
    "ModelError",
    "NonFiniteError",
    "OptionError",
    "ParetoWarning",
    "PriorError",
    "ShapeError",
    "TapError",
]


class BayesSymError(ValueError):
    """Base of every error that this library raises on purpose."""


class GroupActionError(BayesSymError):
    """A group cannot act as asked: on an image of this shape, or through these matrices."""


class ShapeError(BayesSymError):
    """An array does not have the shape that a layer, a representation or a prior needs."""


class DataError(BayesSymError):
    """The data cannot be what the model expects: non-finite values, labels out of range, rows that do not match."""


class ModelError(BayesSymError):
    """A NumPyro model breaks a rule that inference relies on: names, plates, supports."""


class TapError(BayesSymError):
    """A tap does not describe a linear map of its weight, or stands where it cannot be seen (under vmap or scan)."""


class PriorError(BayesSymError):
    """A prior cannot be used as asked: a strength out of range, or a shape of precision that a curvature cannot price."""


class CurvatureError(BayesSymError):
    """The curvature asked for is unknown, indefinite, or too large to form."""


class ClosednessError(GroupActionError):
    """A variational family is not closed under a group action: the transformed q would not be a member."""


class OptionError(BayesSymError):
    """An option is out of its range or contradicts another one."""


class CheckpointError(BayesSymError):
    """A checkpoint does not belong to this problem, scheme, data or version, or cannot be read."""


class NonFiniteError(BayesSymError):
    """A fit met NaN or infinity; `step` and `sites` say when and where."""

    def __init__(self, message: str, *, step: int, sites: tuple[str, ...]) -> None:
        super().__init__(message)
        self.step = step
        self.sites = sites


class BiasedGradientWarning(UserWarning):
    """A curvature was estimated from labels drawn at random, so that gradients of the evidence are biased."""


class CollapseWarning(UserWarning):
    """A fit that moved its prior strengths by evidence has ended with predictions that do not depend on the inputs."""


class ParetoWarning(UserWarning):
    """Importance weights have so heavy a tail that an estimate from them cannot be trusted at some rows."""
