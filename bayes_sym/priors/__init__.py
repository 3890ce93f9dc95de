"""Priors that control symmetry: each turns sampled strengths into one NumPyro distribution per weight site."""

from .independent import IndependentScales as IndependentScales
from .independent import ResidualPathways as ResidualPathways
from .nested import NestedEquivariantNormal as NestedEquivariantNormal
from .nested import NestedSymmetry as NestedSymmetry
from .soft_equivariant import SoftEquivariance as SoftEquivariance
from .soft_equivariant import SoftEquivariantNormal as SoftEquivariantNormal
