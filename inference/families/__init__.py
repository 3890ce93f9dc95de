"""Variational families: forms of q with exact entropies, KL divergences and group actions."""

from .averages import certificate as certificate
from .averages import symmetrised as symmetrised
from .beta import Beta as Beta
from .dense import BlockGaussian as BlockGaussian
from .dense import FullGaussian as FullGaussian
from .family import Closedness as Closedness
from .family import ExponentialFamily as ExponentialFamily
from .family import Family as Family
from .family import Moments as Moments
from .family import closedness as closedness
from .gamma import Gamma as Gamma
from .guide import as_guide as as_guide
from .laplace import MeanFieldLaplace as MeanFieldLaplace
from .log_normal import LogNormal as LogNormal
from .low_rank import LowRankGaussian as LowRankGaussian
from .matrix_normal import MatrixNormal as MatrixNormal
from .mean_field import MeanField as MeanField
from .mean_field import MeanFieldParams as MeanFieldParams
from .orbit import OrbitGaussian as OrbitGaussian
from .per_site import PerSite as PerSite
from .point import Point as Point
