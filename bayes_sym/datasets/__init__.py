"""Datasets: embedded and generated sets need nothing from outside, the standard ones are downloaded or read from files."""

from .cifar import cifar10 as cifar10
from .cifar import cifar100 as cifar100
from .digits import Digits as Digits
from .digits import Images as Images
from .digits import digits as digits
from .download import download as download
from .mnist import fashion_mnist as fashion_mnist
from .mnist import mnist as mnist
from .npz import from_npz as from_npz
from .quadrant import placements as placements
from .quadrant import quadrant_digits as quadrant_digits
from .quadrant import quadrant_mnist as quadrant_mnist
from .split import Split as Split
from .turned import rotated_digits as rotated_digits
