"""`check_equivariance` tests by numbers that a net, or a layer under the action on its weights, is equivariant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from .. import representations
from .._precision import full_precision
from ..errors import GroupActionError, OptionError, ShapeError
from ..groups import FiniteGroup
from ..layers.layer import Field, Layer
from ..representations import Representation
from .declared import channel_representations


__all__ = ["EquivarianceCheck", "check_equivariance"]


@dataclass(frozen=True)
class EquivarianceCheck:
    """What `check_equivariance` found; true in an `if` when it passed.

    Attributes:
        passed: whether `max_error` is within `tolerance`.
        max_error: the largest |f(g x) - rho_out(g) f(x)| over entries, examples and elements, relative to the largest
            |f(x)|; infinite where the group cannot act at all, nan where an output is not finite.
        worst_element: the element with the largest error, or None where the group cannot act at all.
        tolerance: what was allowed.
        reason: why it did not pass; empty if it did.
    """

    passed: bool
    max_error: float
    worst_element: int | None
    tolerance: float
    reason: str = ""

    def __bool__(self) -> bool:
        return self.passed


@full_precision
def check_equivariance(
    layer_or_net: Layer | Callable[[jax.Array], jax.Array],
    group: FiniteGroup,
    *,
    input: Representation | tuple[int, int],
    output: Representation | None = None,
    hidden: Sequence[Representation] | None = None,
    channels: int | Representation | None = None,
    key: jax.Array,
    num_examples: int = 4,
    tolerance: float | None = None,
    raise_if_broken: bool = True,
) -> EquivarianceCheck:
    """Checks equivariance on Gaussian inputs, for every element of the group.

    A net is any callable f from a batch of inputs to a batch of outputs, and must satisfy

        f(g x) = rho_out(g) f(x).

    A `Layer` has no weights yet. Gaussian ones, w, are drawn, and transformed along with the inputs as the layer's
    `representations` say; whatever the representations on its channels, it must satisfy

        f(g x; g w) = rho_out(g) f(x; w).

    Args:
        layer_or_net: the callable or the layer.
        group: the group.
        input: the representation on the inputs, or the (height, width) of images, which the group then turns and mirrors.
            Of a representation on two axes, they are taken for height and width.
        output: of a net, the representation on the outputs, whose first axes are ``output.shape``; of a layer, that on the
            output channels of its last weighted layer. None: trivial, i.e. invariant outputs or channels.
        hidden: of a layer, the representations on the output channels of its other weighted layers, in order; None: all
            trivial.
        channels: how many channels come after the axes of `input`, or the representation on them. None: one for images,
            and no channel axis otherwise.
        key: draws the inputs and the weights.
        num_examples: inputs in the batch.
        tolerance: the largest relative error allowed; None: 1000 times the machine epsilon of the default float,
            1.2e-4 in float32.
        raise_if_broken: whether to raise when the check fails, or when the layer says that the group cannot act on it.

    Returns:
        The largest error and where it stands.

    Raises:
        GroupActionError: the check failed and `raise_if_broken` is set, or the inputs do not fit the group.
        OptionError: `hidden` or `output` do not fit the layer.
        ShapeError: the outputs are not a batch that `output` can act on.
    """
    if not isinstance(input, Representation):
        input = representations.image(group, input)
    if channels is None and len(input.shape) == 2:
        channels = 1
    if channels is not None:
        channels = representations.trivial(group, channels) if isinstance(channels, int) else channels.reshape(channels.dim)
    for name, rep in {"input": input, "output": output, "channels": channels}.items():
        if rep is not None and rep.group != group:
            raise GroupActionError(f"{name}= must be a representation of {group.name}, got one of {rep.group.name}")
    features = input if channels is None else input * channels
    if tolerance is None:
        tolerance = 1000 * float(jnp.finfo(jnp.result_type(float)).eps)
    # numpy draws, because jax would compile a generator for every shape, for a second each in float64
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    x = jnp.asarray(generator.standard_normal((num_examples, *features.shape)), jnp.result_type(float))
    if isinstance(layer_or_net, Layer):
        field = Field.of(input, channels) if channels is not None and len(input.shape) == 2 else Field(features)
        try:
            forward, output = _with_weights(layer_or_net, field, output, hidden, generator)
        except GroupActionError as refusal:
            if raise_if_broken:
                raise
            return EquivarianceCheck(False, math.inf, None, tolerance, str(refusal))
    elif hidden is not None:
        raise OptionError("hidden= is for layers; the weights of a net are not transformed, so leave it out")
    else:
        forward = _without_weights(layer_or_net)
    compare = _comparison(forward, features, output, x)
    errors = _relative_errors(jax.jit(compare) if isinstance(layer_or_net, Layer) else compare, group.order)
    worst = max(range(group.order), key=lambda g: (math.isnan(errors[g]), errors[g]))
    if errors[worst] <= tolerance:
        return EquivarianceCheck(True, errors[worst], worst, tolerance)
    what = "the layer, with its weights transformed," if isinstance(layer_or_net, Layer) else "the net"
    reason = (
        f"{what} is not equivariant under {group.name}: the relative error is {errors[worst]:.3g} at element {worst}, more than "
        f"{tolerance:.3g}, over {num_examples} Gaussian inputs of shape {features.shape}. Look at padding, strides and pointwise "
        "maps, and at whether output= is the representation on its outputs"
    )
    if raise_if_broken:
        raise GroupActionError(reason)
    return EquivarianceCheck(False, errors[worst], worst, tolerance, reason)


Forward = Callable[[int, jax.Array], jax.Array]


def _without_weights(net: Callable[[jax.Array], jax.Array]) -> Forward:
    return lambda g, x: net(x)


def _with_weights(
    layer: Layer,
    field: Field,
    output: Representation | None,
    hidden: Sequence[Representation] | None,
    generator: np.random.Generator,
) -> tuple[Forward, Representation]:
    """The map (g, x) -> f(x; g w) at Gaussian weights w, and the action on its outputs."""
    outputs = channel_representations(layer, field.group, hidden, output)
    reps, after = layer.representations(field, iter(outputs))
    weights = {
        site.name: jnp.asarray(generator.standard_normal(site.shape) / math.sqrt(site.fan_in), jnp.result_type(float))
        for site in layer.sites()
    }

    def forward(g: int, x: jax.Array) -> jax.Array:
        return layer.apply({name: reps[name].act(g, w, tuple(range(w.ndim))) for name, w in weights.items()}, x)

    return forward, after.representation


def _relative_errors(compare: Callable[[int], tuple[jax.Array, jax.Array]], order: int) -> list[float]:
    """For every element the largest error relative to the largest output; nan where an output is not finite."""
    pairs = [tuple(map(float, compare(g))) for g in range(order)]
    return [error / max(scale, float(jnp.finfo(jnp.float32).tiny)) for error, scale in pairs]


def _comparison(
    forward: Forward, features: Representation, output: Representation | None, x: jax.Array
) -> Callable[[int], tuple[jax.Array, jax.Array]]:
    """The map from g to the largest |f(g x) - rho_out(g) f(x)| and the largest |f(x)|."""
    move = jax.jit(features.transform)
    expect = jax.jit(output.transform) if output is not None else lambda g, y: y

    def compare(g: int) -> tuple[jax.Array, jax.Array]:
        here = forward(0, x)
        if here.ndim < 1 or here.shape[0] != x.shape[0]:
            raise ShapeError(f"a net maps a batch to a batch, got outputs of shape {here.shape} from inputs of shape {x.shape}")
        return jnp.abs(forward(g, move(g, x)) - expect(g, here)).max(), jnp.abs(here).max()

    return compare
