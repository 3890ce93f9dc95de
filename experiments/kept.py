"""What an experiment has finished, kept in its folder until all is done, so that a command that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from bayes_sym.atomic import whole_file
from bayes_sym.errors import CheckpointError
from bayes_sym.inference import Fit, Interrupted, Problem, Scheme, fit
from bayes_sym.inference.fingerprint import describe, fingerprint
from bayes_sym.inference.interrupt import gentle_interrupt
from bayes_sym.inference.unit import source

from .experiment import Options


__all__ = ["place_of", "read", "resumable_fit", "write"]


def place_of(fn: Callable[..., Any], item: Any, options: Options, suffix: str = ".json") -> Path | None:
    """The file of one piece, or None without a folder; a piece that is asked for in another way, or by other code, lies elsewhere.

    Args:
        fn: the function that does the piece, or a partial one.
        item: what it does it for.
        options: of the run. Neither the folder, nor the devices, nor bars make another piece.
        suffix: of the file.
    """
    if options.folder is None:
        return None
    asked = {f.name: describe(getattr(options, f.name)) for f in fields(options) if f.name not in ("folder", "mesh", "progress")}
    given = {name: value for name, value in getattr(fn, "keywords", {}).items() if not isinstance(value, Options | Mesh)}
    name = getattr(fn, "func", fn).__name__.strip("_")
    identity = asked | source(Path(__file__).parent) | {"item": describe(item), "function": name, "given": describe(given)}
    return options.folder / "cells" / f"{name}-{fingerprint(identity)}{suffix}"


def read(place: Path | None) -> Any:
    """What a finished piece returned, or None.

    Raises:
        CheckpointError: the file is broken.
    """
    if place is None or not place.exists():
        return None
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"cannot read {place}: {error}. Delete it to run this part of the experiment again") from error


def write(place: Path | None, value: Any) -> None:
    """Keeps what a piece returned, as JSON: lists, dicts and dataclasses (as lists) of plain values or NumPy's numbers."""
    if place is not None:
        with whole_file(place) as path:
            path.write_text(json.dumps(value, default=_plain) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    return [getattr(value, f.name) for f in fields(value)] if is_dataclass(value) else value.item()


def resumable_fit(
    name: str, options: Options, problem: Problem, scheme: Scheme, key: jax.Array, *data: Any, num_steps: int, **more: Any
) -> Fit:
    """`fit` that saves after every chunk and goes on from there; ctrl-C ends it after the chunk.

    Raises:
        Interrupted: the user asked to stop.
    """
    place = place_of(fit, name, options, ".npz")
    resume = place if place is not None and place.exists() else None
    with gentle_interrupt() as stop:
        done = fit(
            problem,
            scheme,
            key,
            *data,
            num_steps=num_steps,
            mesh=options.mesh,
            callbacks=(stop,),
            checkpoint=place,
            resume=resume,
            progress=options.progress,
            **more,
        )
        if stop.is_set() and len(done.losses) < num_steps:
            raise Interrupted(f"stopped at step {len(done.losses)} of {num_steps} of {name}")
    return done
