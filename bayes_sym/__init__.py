"""Bayesian neural networks that learn their own symmetries, on NumPyro and JAX."""

import importlib.metadata

from . import datasets as datasets
from . import diagnostics as diagnostics
from . import errors as errors
from . import groups as groups
from . import layers as layers
from . import priors as priors
from . import representations as representations
from . import transforms as transforms
from .taps import tap as tap


__version__ = importlib.metadata.version("bayes-sym")

__all__ = ["datasets", "diagnostics", "errors", "groups", "layers", "priors", "representations", "tap", "transforms"]
