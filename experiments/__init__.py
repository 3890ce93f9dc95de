"""Named, reproducible runs, and the command line that starts them."""

import os


# Before jax loads its linear algebra: on few cores its threads wait for each other, and an eigen-decomposition takes a
# hundred times as long (docs/decisions.md).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from .arrangements import ARRANGEMENTS
from .capacity import CAPACITY
from .digits_c4 import DIGITS_C4
from .eeg_like import EEG_LIKE
from .experiment import Experiment as Experiment
from .experiment import Options as Options
from .families import FAMILIES
from .findings import Findings as Findings
from .mixed_groups import MIXED_GROUPS
from .orbit_expansion import ORBIT_EXPANSION
from .planted_symmetry import PLANTED_SYMMETRY
from .prior_invariance import PRIOR_INVARIANCE
from .quadrant import QUADRANT
from .rings import RINGS
from .rotated_shapes import ROTATED_SHAPES
from .sample_complexity import SAMPLE_COMPLEXITY
from .sinusoids import SINUSOIDS


EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        ARRANGEMENTS,
        CAPACITY,
        DIGITS_C4,
        EEG_LIKE,
        FAMILIES,
        MIXED_GROUPS,
        ORBIT_EXPANSION,
        PLANTED_SYMMETRY,
        PRIOR_INVARIANCE,
        QUADRANT,
        RINGS,
        ROTATED_SHAPES,
        SAMPLE_COMPLEXITY,
        SINUSOIDS,
    )
}
"""Every experiment by name; a new one is a file of its own and an entry here."""
