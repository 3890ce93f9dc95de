"""Datasets: embedded and generated sets need nothing from outside."""

from .digits import Digits as Digits
from .digits import Images as Images
from .digits import digits as digits
