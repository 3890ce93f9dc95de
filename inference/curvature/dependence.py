"""Which outputs of a function can depend on its argument, read off the traced program without running it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


__all__ = ["dependent_outputs"]


def dependent_outputs(fn: Callable[[Any], Any], argument: Any) -> Any:
    """For every leaf of ``fn(argument)``, whether it can depend on the argument.

    Conservative: an operation with inner programs counts as mixing all its inputs.
    """
    program, shapes = jax.make_jaxpr(fn, return_shape=True)(argument)
    tainted = {id(variable) for variable in program.jaxpr.invars}
    for equation in program.jaxpr.eqns:
        if any(id(variable) in tainted for variable in equation.invars):
            tainted.update(id(variable) for variable in equation.outvars)
    flags = [id(variable) in tainted for variable in program.jaxpr.outvars]
    return jax.tree.unflatten(jax.tree.structure(shapes), flags)
