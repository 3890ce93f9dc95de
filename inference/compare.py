"""compare() fits several schemes and models, on one task or more, and puts them into one table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from bayes_sym.errors import OptionError
from bayes_sym.representations import Representation

from . import unit
from .cell import Cell, Labelled
from .comparison import Comparison, Runs
from .executor import Executor, run_all
from .fingerprint import fingerprint
from .grid import Job, Run, run_job
from .interrupt import Interrupted, gentle_interrupt
from .value_scores import moved_values


__all__ = ["Cell", "compare"]


def compare(
    cells: Sequence[Cell],
    key: jax.Array,
    *data: Any,
    test: Labelled | None = None,
    action: Representation | None = None,
    output: Representation | None = None,
    validation: Labelled | None = None,
    seeds: int | Sequence[int] = 1,
    vmap_seeds: bool = True,
    num_draws: int = 32,
    chunk: int = 100,
    progress: bool = True,
    mesh: Mesh | None = None,
    folder: str | Path | None = None,
    executor: Executor | None = None,
    about: Mapping[str, Any] | None = None,
) -> Comparison:
    """Fits every cell with every seed and scores it on the test images and on all their transforms.

    Integer labels of classes do not change under the group and are scored by accuracy; anything else is scored as values, by the
    root mean square error, and moves under the group as `output` says. Every row also carries the scores of its test-time
    orbit average, the trivial way to a symmetric prediction; cells for the other trivial explanations of a gain (a wider
    net, fixed augmentation) are yours to add. Cells may have data, a test set and a group of their own.

    With a `folder`, each cell and seed is kept there as soon as it is finished, and a comparison that was cut off, even by
    a power failure, goes on after the last chunk of steps when it is called again with the same arguments. The table is the
    same, bit for bit, except for times and memory. A cell whose model, options, data or key have changed, or that another
    version of the library fitted, is fitted anew. Ctrl-C finishes the chunk and saves; a second one ends at once.

    Args:
        cells: what to fit; names must differ.
        key: the random key; cells share the key of their posterior draws, not that of their fits. A cell's key depends on its
            place, so add further cells at the end.
        data: training arguments of the models, (x, y).
        test: images x (rows, ...) and labels y (rows,), or values y (rows, ...).
        action: how the group acts on one image.
        output: how the group acts on the values of one row, orthogonally; None if they do not change.
        validation: images and labels for cells with `select`.
        seeds: how many seeds, or which ones. Seeds differ in the start, batches, noise and posterior draws, not in the data.
            Seed 0 has the key that a comparison without seeds has.
        vmap_seeds: whether all seeds of a cell run in one program where the scheme allows it (see `Scheme.vmaps_seeds`) and
            there is no mesh; the column `seeds_together` says how many did. Otherwise they run one after the other.
        num_draws: posterior draws per prediction (one for point estimates).
        chunk: steps between looks at the validation split, and between checkpoints.
        progress: whether to show bars.
        mesh: devices to shard every batch over.
        folder: where to keep what is finished, in a folder "cells".
        executor: None to fit one after the other; or anything with ``submit(fn, *args)`` that returns futures: a
            ThreadPoolExecutor with a thread per device, a Dask Client, or a class of three lines around Ray. Job number i
            runs on device number i of its process, counted round-robin. Engines of processes pickle cells and data; optax
            optimisers need cloudpickle, which Dask, Ray and loky use.
        about: further facts for the saved results, e.g. the seed of a split.

    Returns:
        The comparison.

    Raises:
        OptionError: before any compute.
        CheckpointError: a file in the folder is broken.
        Interrupted: the user pressed ctrl-C, and what was under way is saved in `folder`.
    """
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise OptionError(f"seeds must be a number of at least 1 or different numbers from 0 on, got {seeds}")
    if mesh is not None and executor is not None:
        raise OptionError("a mesh shards every fit over the devices, an executor gives each fit a device: choose one of them")
    complete = [_complete(cell, data, test, action, output, validation) for cell in cells]
    _check(complete)
    keys = np.asarray(jax.random.key_data(jax.random.split(key, len(cells) + 2)))
    wanted = [
        Job(
            cell,
            chosen,
            key=own,
            key_look=keys[0],
            key_score=keys[1],
            num_draws=num_draws,
            chunk=chunk,
            progress=progress and executor is None,
            mesh=mesh,
            folder=None if folder is None else Path(folder),
            hand_back=folder is None or executor is None,
        )
        for cell, own in zip(complete, keys[2:], strict=True)
    ]
    found = _Found({}, {})
    jobs = [job for want in wanted for job in _left_to_do(want, found, vmap_seeds, progress)]
    if progress and found.rows:
        tqdm.write(f"{len(found.rows)} of {len(cells) * len(chosen)} fits are finished already, in {folder}", file=sys.stderr)
    try:
        with nullcontext() if folder is None else gentle_interrupt():
            results = run_all(run_job, jobs, [job.name for job in jobs], executor, progress=progress)
    except Interrupted as error:
        raise Interrupted(f"{error}; all that is finished is in {folder}: run the same again to go on from there") from error
    for job, result in zip(jobs, results, strict=True):
        for seed, row in result.rows.items():
            found.rows[job.cell.name, seed] = row
            found.runs[job.cell.name, seed] = result.runs.get(seed) or partial(job.revived, seed)
    order = [(cell.name, seed) for cell in complete for seed in chosen]
    dropped = {name for name, keep in (("seed", seeds != 1), ("task", any(cell.task for cell in cells))) if not keep}
    rows = [{name: value for name, value in found.rows[place].items() if name not in dropped} for place in order]
    training = {cell.name: cell.data for cell in complete if cell.data is not None}
    return Comparison(rows, Runs({place: found.runs[place] for place in order}), training, dict(about or {}))


class _Found(NamedTuple):
    """What is finished, by method and seed; runs that lie in the folder are read when they are asked for."""

    rows: dict[tuple[str, int], dict[str, Any]]
    runs: dict[tuple[str, int], Run | Callable[[], Run]]


def _left_to_do(want: Job, found: _Found, vmap_seeds: bool, progress: bool) -> list[Job]:
    """The jobs for those seeds of a cell that its folder does not have; what it has is added to `found`."""
    cell, missing, place = want.cell, want.seeds, None
    if want.folder is not None:
        identity = want.identity()
        place = unit.cell_folder(want.folder, cell.name, identity)
        if progress and not place.exists():
            _say_what_differs(place, identity)
        for seed, where, row in unit.finished(place):
            if seed in want.seeds:
                found.rows[cell.name, seed] = row
                found.runs[cell.name, seed] = partial(want._replace(folder=where).revived, seed)
        missing = tuple(seed for seed in want.seeds if (cell.name, seed) not in found.rows)
    together = len(missing) > 1 and vmap_seeds and want.mesh is None and cell.scheme.vmaps_seeds
    parts = [missing] if together else [(seed,) for seed in missing]
    folders = [None if place is None else unit.open_unit(place, part, identity) for part in parts]
    return [want._replace(seeds=part, folder=folder) for part, folder in zip(parts, folders, strict=True)]


def _complete(
    cell: Cell,
    data: tuple[Any, ...],
    test: Labelled | None,
    action: Representation | None,
    output: Representation | None,
    validation: Labelled | None,
) -> Cell:
    """The cell with what it shares with the others; arrays on the host, from where any device or process can take them."""

    def host(value: Any) -> Any:
        return jax.tree.map(np.asarray, value)

    return replace(
        cell,
        data=host(tuple(data if cell.data is None else cell.data)),
        test=host(test if cell.test is None else cell.test),
        validation=host(validation if cell.validation is None else cell.validation),
        action=action if cell.action is None else cell.action,
        output=output if cell.output is None else cell.output,
    )


def _check(cells: Sequence[Cell]) -> None:
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names) or not cells:
        raise OptionError(f"compare needs at least one cell, with different names, got {names}")
    unknown = [cell.select for cell in cells if cell.select not in (None, "upright", "orbit")]
    if unknown:
        raise OptionError(f"select must be None, 'upright' or 'orbit', got {unknown}")
    for cell in cells:
        if cell.test is None or cell.action is None:
            raise OptionError(
                f"cell {cell.name!r} has no test set or no action: pass test=(x, y) and action=... for all cells, or give its own"
            )
        if cell.validation is None and cell.select is not None:
            raise OptionError("cells with select need validation=(x, y): a choice on test data would flatter them")
        moved_values(cell.action, cell.output, cell.test[1])


def _say_what_differs(place: Path, identity: Mapping[str, str]) -> None:
    """Tells why a cell that the folder knows by name is fitted again."""
    for other in unit.asked_before(place):
        different = [name for name in identity if other.get(name) != identity[name]]
        if fingerprint(other) != fingerprint(identity):
            tqdm.write(
                f"{place.name.rpartition('-')[0]} is fitted anew: it differs from what the folder has in {', '.join(different)}",
                file=sys.stderr,
            )
