"""Datasets: embedded and generated sets need nothing from outside, the standard ones are read from local files."""

from .digits import Digits as Digits
from .digits import Images as Images
from .digits import digits as digits
from .local import Split as Split
from .local import cifar10 as cifar10
from .local import mnist as mnist
from .quadrant import placements as placements
from .quadrant import quadrant_digits as quadrant_digits
from .quadrant import quadrant_mnist as quadrant_mnist
from .rotated import rotated_digits as rotated_digits
