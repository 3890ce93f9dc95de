"""Diagnostics: how equivariant and how well calibrated a posterior is, each number with its standard error."""

from .agreement import OrbitAgreement as OrbitAgreement
from .agreement import orbit_agreement as orbit_agreement
from .calibration import Calibration as Calibration
from .calibration import calibration as calibration
from .check import EquivarianceCheck as EquivarianceCheck
from .check import check_equivariance as check_equivariance
from .equivariance import equivariance_error as equivariance_error
from .equivariance import equivariance_error_from_draws as equivariance_error_from_draws
from .estimates import EquivarianceError as EquivarianceError
from .estimates import defect as defect
from .estimates import defect_from_products as defect_from_products
from .independent import equivariance_error_from_independent_draws as equivariance_error_from_independent_draws
from .pathways import PathwayShare as PathwayShare
from .pathways import PathwayShares as PathwayShares
from .pathways import pathway_shares as pathway_shares
from .pathways import plot_pathway_shares as plot_pathway_shares
from .permutation import EquivarianceTest as EquivarianceTest
from .permutation import equivariance_test as equivariance_test
from .planning import DrawsNeeded as DrawsNeeded
from .planning import draws_needed as draws_needed
from .rotations import SampledRotations as SampledRotations
from .sweep import DefectSweep as DefectSweep
from .sweep import defect_sweep as defect_sweep
from .sweep_plot import plot_defect_sweep as plot_defect_sweep
