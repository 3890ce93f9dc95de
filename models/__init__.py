"""Ready-made NumPyro models: plain and soft-equivariant nets that work with every scheme."""

from .conv import ConvClassifier as ConvClassifier
from .conv import conv_spec as conv_spec
from .ladder import LadderClassifier as LadderClassifier
from .ladder import ladder_spec as ladder_spec
from .soft_conv import SoftConvClassifier as SoftConvClassifier
