"""Independent Gaussian weights, scaled by fan-in, with one strength for all sites or one per name."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import numpyro.distributions as dist

from ..errors import PriorError


if TYPE_CHECKING:
    from ..layers.layer import Site

__all__ = ["IndependentScales", "ResidualPathways"]

Scale = float | jax.Array


class IndependentScales:
    """w ~ Normal(0, scale / sqrt(fan_in)) for weights, Normal(0, scale) for biases.

    Each of the two factors of a factored layer gets the square root of the scale, so that their product has it.

    Args:
        scale: one strength for all sites, or a mapping from patterns to strengths. A pattern is matched against the
            site's name within the module, e.g. ``"0.*"`` or ``"*.bias"``; the first match counts. Strengths may be
            sampled values.
    """

    def __init__(self, scale: Scale | Mapping[str, Scale] = 1.0) -> None:
        self.scale = scale

    def __call__(self, site: Site) -> dist.Distribution:
        """The distribution of one site."""
        scale = _match(self.scale, site.name) if isinstance(self.scale, Mapping) else self.scale
        own = scale if site.share == 1 else scale**site.share
        return dist.Normal(0.0, own / math.sqrt(site.fan_in)).expand(site.shape).to_event(len(site.shape))


class ResidualPathways:
    """One strength per pathway of `Residual` layers: ``{"conv": s1, "free": s2}``; other sites get `otherwise`.

    The ratio of the strengths prices the symmetry (residual pathway priors, Finzi et al. 2021): where the free
    pathway's strength goes to 0, the layer is as equivariant as the other pathway.

    Args:
        strengths: strength per pathway name; scalars, or mappings from patterns of site names to scalars so that every
            layer has its own.
        otherwise: strength of the sites outside these pathways.
    """

    def __init__(self, strengths: Mapping[str, Scale | Mapping[str, Scale]], otherwise: Scale = 1.0) -> None:
        self.strengths = strengths
        self.otherwise = otherwise

    def __call__(self, site: Site) -> dist.Distribution:
        """The distribution of one site."""
        mine = [strength for pathway, strength in self.strengths.items() if pathway in site.name.split(".")]
        if len(mine) > 1:
            raise PriorError(
                f"site {site.name!r} belongs to several pathways of {sorted(self.strengths)}: give them different names"
            )
        return IndependentScales(mine[0] if mine else self.otherwise)(site)


def _match(scales: Mapping[str, Scale], name: str) -> Scale:
    for pattern, scale in scales.items():
        if fnmatch.fnmatchcase(name, pattern):
            return scale
    raise PriorError(f"no scale matches site {name!r}; the patterns are {sorted(scales)}. Add '*' as a last resort")
