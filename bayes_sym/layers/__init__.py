"""Layers: frozen specifications of maps with weights, their symmetry, and `random_module`, which samples them."""

from .compose import Residual as Residual
from .compose import Sequential as Sequential
from .conv import Conv as Conv
from .dense import Dense as Dense
from .layer import Field as Field
from .layer import Layer as Layer
from .layer import Role as Role
from .layer import Site as Site
from .module import random_module as random_module
from .pointwise import Activation as Activation
from .pointwise import Flatten as Flatten
from .pointwise import Pool as Pool
