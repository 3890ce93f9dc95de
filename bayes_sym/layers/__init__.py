"""Layers: frozen specifications of maps with weights, their symmetry, and `random_module`, which samples them."""

from .augment import Augment as Augment
from .augment import Prepared as Prepared
from .compose import Residual as Residual
from .compose import Sequential as Sequential
from .conv import Conv as Conv
from .dense import Dense as Dense
from .factored import Factored as Factored
from .full import FullyConnected as FullyConnected
from .group_conv import GroupConv as GroupConv
from .group_pool import GroupPool as GroupPool
from .layer import Field as Field
from .layer import Layer as Layer
from .layer import Role as Role
from .layer import Site as Site
from .module import random_module as random_module
from .pathways import Pathway as Pathway
from .pathways import pathways as pathways
from .pointwise import Activation as Activation
from .pointwise import Flatten as Flatten
from .pointwise import Pool as Pool
from .polyphase import Polyphase as Polyphase
from .selection import Selection as Selection
from .sparse_conv import SparseConv as SparseConv
from .sparse_factored import SparseFactored as SparseFactored
