"""Named, reproducible runs, and the command line that starts them."""

from .digits_c4 import DIGITS_C4
from .experiment import Experiment as Experiment
from .experiment import Options as Options


EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (DIGITS_C4,)}
"""Every experiment by name; a new one is a file of its own and an entry here."""
