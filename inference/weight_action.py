"""How a group acts on the weights of a module, given how it acts on inputs, hidden channels and outputs."""

from __future__ import annotations

from typing import Literal

import jax

from bayes_sym import representations
from bayes_sym.errors import GroupActionError, OptionError
from bayes_sym.groups import FiniteGroup
from bayes_sym.layers.layer import Field, Layer
from bayes_sym.representations import Representation

from .problem import Problem
from .rows import Data
from .structure import Structure


__all__ = ["Hidden", "input_field", "target_module", "weight_action", "weight_representations"]

Hidden = Literal["trivial", "regular"] | tuple[Representation, ...]


def target_module(structure: Structure, module: str | None, who: str) -> tuple[str, Layer]:
    """The module meant: its name and specification.

    Raises:
        OptionError: there is none of this name, or several to choose from.
    """
    modules = structure.modules
    if module is not None and module not in modules:
        raise OptionError(f"{who}(module={module!r}): the model has the modules {list(modules)}")
    if module is None and len(modules) != 1:
        raise OptionError(f"{who} needs to know which module to act on, of {list(modules)}: pass module='...'")
    name = next(iter(modules)) if module is None else module
    return name, modules[name]


def input_field(action: Representation, data: Data) -> Field:
    """The action on the first argument of the model.

    Raises:
        GroupActionError: the action is on arrays of another shape.
    """
    x = jax.tree.leaves(data)[0]
    shape = action.shape
    if tuple(x.shape[1 : 1 + len(shape)]) != shape:
        raise GroupActionError(
            f"the action of {action.group.name} is on inputs of shape {shape}, but the data are {tuple(x.shape)}: use "
            f"representations.image(group, {tuple(x.shape[1:3])}) or another one of the data's shape"
        )
    return Field.of(action, int(x.shape[-1]))


def weight_representations(
    spec: Layer, field: Field, output: Representation | None = None, hidden: Hidden = "trivial"
) -> dict[str, Representation]:
    """The representation on every weight site of a specification, so that f(g x; g w) = g f(x; w).

    Args:
        spec: the net.
        field: the action on its inputs.
        output: the representation on its outputs; None for invariant ones.
        hidden: that on the channels of its hidden weighted layers: ``"trivial"``, ``"regular"`` (widths must be multiples of the
            group's order; channels are grouped by element first), or one representation per layer.

    Raises:
        GroupActionError: widths do not fit, or a layer does not commute with these actions.
    """
    stages, group = spec.stages(), field.group
    if isinstance(hidden, str):
        middle = [_hidden(group, stage.width, hidden) for stage in stages[:-1]]
    else:
        middle = list(hidden)
        if len(middle) != len(stages) - 1:
            raise GroupActionError(
                f"the net has {len(stages) - 1} hidden weighted layers, got {len(middle)} representations of channels"
            )
    final = representations.trivial(group, stages[-1].width) if output is None else output
    return spec.representations(field, iter([*middle, final]))[0]


def _hidden(group: FiniteGroup, width: int, kind: str) -> Representation:
    if kind == "trivial":
        return representations.trivial(group, width)
    if kind != "regular":
        raise OptionError(f"hidden must be 'trivial', 'regular' or a tuple of representations, got {kind!r}")
    if width % group.order:
        raise GroupActionError(
            f"a hidden layer of width {width} does not hold regular representations of {group.name}: make its width a multiple of "
            f"{group.order}, or use hidden='trivial'"
        )
    return (representations.regular(group) * representations.trivial(group, width // group.order)).reshape(width)


def weight_action(
    problem: Problem,
    data: Data,
    action: Representation,
    output: Representation | None = None,
    *,
    hidden: Hidden = "trivial",
    module: str | None = None,
) -> dict[str, Representation]:
    """The representation on every weight site of a model's module, by the full name of the site.

    Args:
        problem: the model.
        data: its arguments; the group acts on the first.
        action: how the group acts on one input.
        output: how it acts on one output; None for invariant outputs.
        hidden: how it acts on hidden channels: see `weight_representations`.
        module: which `random_module`; None if the model has one.
    """
    name, spec = target_module(problem.structure(*data), module, "weight_action")
    own = weight_representations(spec, input_field(action, data), output, hidden)
    return {f"{name}.{site}": rep for site, rep in own.items()}
