"""How far weights, or a Gaussian posterior over them, are from the symmetric ones, site by site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from ..errors import DataError, GroupActionError, OptionError, ShapeError
from ..layers.layer import join
from ..representations import Representation
from .bounds import certificate


__all__ = ["ParameterAsymmetry", "SiteAsymmetry", "parameter_asymmetry"]


class SiteAsymmetry(NamedTuple):
    """The asymmetry of one site, or of all together.

    With P the projector onto the invariant vectors, of rank r in dimension d:

    Attributes:
        site: its name; ``""`` for all together.
        asymmetry: |(I - P) mean| / |mean|, in 0..1; 0 where the mean is 0.
        energy: its square e, the share of the mean's energy that is not symmetric.
        reference: 1 - r/d, the expected e of weights drawn independently from one Gaussian.
        symmetry: 1 - e / reference: 1 for symmetric weights, 0 on average for random ones, negative for anti-symmetric ones; nan
            where every vector is invariant.
        scale_asymmetry: |(I - P) log s| / |log s| for scales s, which move without signs; nan where they were not given.
        distance: W2^2 = mean_g [|m - g m|^2 + |s - g s|^2], the squared Wasserstein distance between q and g q; without scales
            that of point masses.
        divergence: mean_g KL(q || g q) in nats; nan without scales.
    """

    site: str
    asymmetry: float
    energy: float
    reference: float
    symmetry: float
    scale_asymmetry: float
    distance: float
    divergence: float


@dataclass(frozen=True)
class ParameterAsymmetry:
    """The asymmetry of all sites.

    Attributes:
        rows: one per site.
        overall: of all sites together.
    """

    rows: tuple[SiteAsymmetry, ...]
    overall: SiteAsymmetry

    def of(self, what: str = "asymmetry") -> dict[str, float]:
        """One number by site."""
        return {row.site: float(getattr(row, what)) for row in self.rows}

    def certificate(self, diameter: float | None = None) -> float:
        """What the predictive defect cannot exceed, at any inputs, without a draw; see `bounds.certificate`.

        Raises:
            OptionError: no scales were given.
        """
        if math.isnan(self.overall.divergence):
            raise OptionError("a certificate is of a distribution: give scale= to parameter_asymmetry")
        return certificate(self.overall.divergence, diameter)


def parameter_asymmetry(
    mean: Mapping[str, ArrayLike] | ArrayLike,
    reps: Mapping[str, Representation] | Representation,
    scale: Mapping[str, ArrayLike] | ArrayLike | None = None,
    *,
    module: str = "",
) -> ParameterAsymmetry:
    """The distance of weights, or of a mean-field Gaussian q = N(mean, diag scale^2), from the symmetric ones.

    Args:
        mean: weights by site, or one array.
        reps: the representation on every site, e.g. from ``spec.representations(field, outputs)``; or the one of the array.
        scale: standard deviations of the same shapes; None for a point estimate.
        module: the name under which the sites of `mean` and `scale` stand; those of others are left out.

    Raises:
        OptionError: a site has no value, or there are no sites.
        ShapeError: a value does not have the size that its representation acts on.
        GroupActionError: sites are of different groups; or scales are given and an element mixes coordinates (a matrix representation),
            because a mean-field Gaussian then has no mean-field transform.
        DataError: a value is not finite, or a scale not positive.
    """
    if isinstance(reps, Representation):
        reps, mean, module = {"": reps}, {"": mean}, ""  # type: ignore[dict-item]
        scale = None if scale is None else {"": scale}  # type: ignore[dict-item]
    if not reps:
        raise OptionError("reps names no site: give the representation on every site")
    if len({rep.group for rep in reps.values()}) > 1:
        raise GroupActionError(f"the sites are moved by different groups: {sorted({r.group.name for r in reps.values()})}")
    rows, totals = [], np.zeros(6)
    freedom = np.zeros(2)
    for name, rep in reps.items():
        values = _site(mean, join(module, name), rep)
        scales = None if scale is None else _site(scale, join(module, name), rep)
        sums = _sums(name, values, rep, scales)
        rows.append(_row(name, sums, rep.rank, rep.dim))
        totals += sums
        freedom += rep.rank, rep.dim
    return ParameterAsymmetry(tuple(rows), _row("", totals, *freedom))


def _site(values: Mapping[str, ArrayLike] | ArrayLike, name: str, rep: Representation) -> np.ndarray:
    assert isinstance(values, Mapping)
    if name not in values:
        raise OptionError(f"site {name!r} has no value: there are {list(values)[:5]}...; say module= for sites of a module")
    found = np.asarray(values[name], np.float64)
    if found.size != rep.dim:
        raise ShapeError(f"site {name!r} has shape {found.shape}, but its representation acts on {rep.shape}")
    if not np.isfinite(found).all():
        raise DataError(f"the values of site {name!r} are not all finite")
    return found.reshape(-1)


def _sums(name: str, mean: np.ndarray, rep: Representation, scale: np.ndarray | None) -> np.ndarray:
    """|(I - P) m|^2, |m|^2, |(I - P) log s|^2, |log s|^2, W2^2 and KL of one site; they add up over sites."""
    if rep.source is None:
        if scale is not None:
            raise GroupActionError(
                f"site {name!r} is moved by a matrix representation, which mixes coordinates of different scale: a mean-field "
                "Gaussian has no mean-field transform. Leave scale= out, or compare covariances"
            )
        orbit = rep.matrices() @ mean
    else:
        orbit = mean[rep.source] * (1 if rep.sign is None else rep.sign)
    rest, distance = mean - orbit.mean(axis=0), ((mean - orbit) ** 2).sum(axis=1).mean()
    if scale is None:
        return np.array([rest @ rest, mean @ mean, math.nan, math.nan, distance, math.nan])
    if not (scale > 0).all():
        raise DataError(f"the scales of site {name!r} must be positive, the smallest is {scale.min():.3g}")
    assert rep.source is not None
    log, moved = np.log(scale), scale[rep.source]
    log_rest = log - log[rep.source].mean(axis=0)
    divergence = (np.log(moved / scale) + (scale**2 + (mean - orbit) ** 2) / (2 * moved**2) - 0.5).sum(axis=1).mean()
    distance += ((scale - moved) ** 2).sum(axis=1).mean()
    return np.array([rest @ rest, mean @ mean, log_rest @ log_rest, log @ log, distance, divergence])


def _row(name: str, sums: np.ndarray, rank: float, dim: float) -> SiteAsymmetry:
    rest, total, log_rest, log, distance, divergence = map(float, sums)
    energy = rest / total if total > 0 else 0.0
    reference = 1 - rank / dim
    symmetry = 1 - energy / reference if reference > 0 else math.nan
    scales = math.sqrt(log_rest / log) if log > 0 else math.nan if math.isnan(log) else 0.0
    return SiteAsymmetry(name, math.sqrt(energy), energy, reference, symmetry, scales, distance, divergence)
