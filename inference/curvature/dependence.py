"""Which outputs of a function can depend on its argument, read off the traced program without running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import jaxpr_as_fun


__all__ = ["dependent_outputs", "traced"]


def dependent_outputs(fn: Callable[[Any], Any], argument: Any) -> Any:
    """For every leaf of ``fn(argument)``, whether it can depend on the argument.

    Looks into loops over rows and into called programs; any other operation with inner programs counts as mixing all its
    inputs.
    """
    return traced(fn, argument)[0]


def traced(fn: Callable[[Any], Any], argument: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The same, and the function as it was traced: for arguments of the same shapes, without running its Python code again."""
    program, shapes = jax.make_jaxpr(fn, return_shape=True)(argument)
    structure = jax.tree.structure(shapes)
    flags = _outputs(program.jaxpr, [True] * len(program.jaxpr.invars))

    def again(argument: Any) -> Any:
        return jax.tree.unflatten(structure, jaxpr_as_fun(program)(*jax.tree.leaves(argument)))

    return jax.tree.unflatten(structure, flags), again


def _outputs(program: Any, inputs: Sequence[bool]) -> list[bool]:
    """Which outputs of a traced program depend on its marked inputs."""
    tainted = {id(variable) for variable, mark in zip(program.invars, inputs, strict=True) if mark}
    for equation in program.eqns:
        marks = [id(variable) in tainted for variable in equation.invars]
        if any(marks):
            outputs = _equation(equation, marks)
            tainted.update(id(variable) for variable, mark in zip(equation.outvars, outputs, strict=True) if mark)
    return [id(variable) in tainted for variable in program.outvars]


def _equation(equation: Any, marks: list[bool]) -> list[bool]:
    everything = [True] * len(equation.outvars)
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    inner = getattr(inner, "jaxpr", inner)  # with its constants, or without
    if not hasattr(inner, "invars") or len(inner.invars) != len(marks) or len(inner.outvars) != len(everything):
        return everything
    if equation.primitive.name != "scan":
        return _outputs(inner, marks) if equation.primitive.name in ("jit", "pjit", "checkpoint", "remat2") else everything
    # What a loop carries keeps its shape; what it runs over or collects has one axis more outside.
    carried = sum(out.aval.ndim == of.aval.ndim for out, of in zip(equation.outvars, inner.outvars, strict=True))
    over = sum(value.aval.ndim > of.aval.ndim for value, of in zip(equation.invars, inner.invars, strict=True))
    constants = len(marks) - carried - over
    while True:  # what one round of the loop hands to the next
        outputs = _outputs(inner, marks)
        again = [*marks]
        for i in range(carried):
            again[constants + i] = marks[constants + i] or outputs[i]
        if again == marks:
            return outputs
        marks = again
