"""Inference: problems, schemes, the fitting loop, evidence, symmetrisation, predictions, comparison and export."""

from .augment import Augmentation as Augmentation
from .augment import full_orbit as full_orbit
from .augment import random_orbit as random_orbit
from .evidence import Evidence as Evidence
from .evidence import log_evidence as log_evidence
from .expansion import OrbitExpansion as OrbitExpansion
from .expansion import expand as expand
from .families import MeanField as MeanField
from .fit import Fit as Fit
from .fit import Progress as Progress
from .fit import Status as Status
from .fit import fit as fit
from .laplace import Laplace as Laplace
from .map import MAP as MAP
from .nuts import NUTS as NUTS
from .posterior import Posterior as Posterior
from .predict import predict as predict
from .problem import Problem as Problem
from .scheme import Info as Info
from .scheme import Scheme as Scheme
from .variational import Variational as Variational
