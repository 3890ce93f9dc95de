"""Linear representations of finite groups: gathers, signed gathers and matrices, and their exact actions on arrays."""

from .constructors import matrix as matrix
from .constructors import permutation as permutation
from .constructors import quotient as quotient
from .constructors import regular as regular
from .constructors import trivial as trivial
from .exact import image as image
from .exact import sequence as sequence
from .representation import Representation as Representation
