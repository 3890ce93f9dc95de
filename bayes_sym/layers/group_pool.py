"""Pooling over the copies of a group, and the checks of axes that hold copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn

import jax
import jax.numpy as jnp

from .. import representations
from ..errors import GroupActionError, OptionError, ShapeError
from ..groups import FiniteGroup
from ..representations import Representation
from .layer import Field, Layer, Role, Site, Stage, Weights


__all__ = ["GroupPool", "check_channels", "copies_of", "refuse_expansion"]


@dataclass(frozen=True)
class GroupPool(Layer):
    """The mean or maximum over the copies that `GroupConv` makes: what is left are channels that the group does not move.

    Attributes:
        group: the group whose copies the last axis holds, copy by copy.
        kind: ``"mean"`` or ``"max"``.

    Raises:
        OptionError: another kind.
    """

    group: FiniteGroup
    kind: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        if self.kind not in ("mean", "max"):
            raise OptionError(f"kind must be 'mean' or 'max', got {self.kind!r}")

    def sites(self) -> tuple[Site, ...]:
        """No weights."""
        return ()

    def apply(self, weights: Weights, x: jax.Array, *, path: str = "") -> jax.Array:
        """(batch, ..., order * channels) to (batch, ..., channels); feature maps and vectors alike."""
        if x.ndim < 2 or x.shape[-1] % self.group.order:
            raise ShapeError(
                f"GroupPool {path!r} takes arrays (batch, ..., {self.group.order} copies x channels), got one of shape {x.shape}: put "
                f"it after a GroupConv over {self.group.name}"
            )
        apart = x.reshape(*x.shape[:-1], self.group.order, -1)
        return (jnp.mean if self.kind == "mean" else jnp.max)(apart, axis=-2)

    def representations(self, field: Field, outputs: Iterator[Representation]) -> tuple[dict[str, Representation], Field]:
        """From copies to channels on which the group acts trivially."""
        channels = max(field.channels.dim // self.group.order, 1)
        what = f"GroupPool({self.group.name})"
        check_channels(what, self.group, field, copies_of(self.group, channels), "put it after a GroupConv, before Flatten")
        return {}, Field(representations.trivial(self.group, channels), field.grid)

    def stages(self) -> tuple[Stage, ...]:
        """No weights."""
        return ()

    def expand(self, order: int, roles: Iterator[Role]) -> NoReturn:
        """Refused: the layers before it have copies of their own."""
        refuse_expansion(f"GroupPool over {self.group.name}")


def copies_of(group: FiniteGroup, channels: int) -> Representation:
    """The action on `channels` channels per group element, on one axis: regular(group) * trivial(group, channels)."""
    return (representations.regular(group) * representations.trivial(group, channels)).reshape(group.order * channels)


def check_channels(what: str, group: FiniteGroup, field: Field, before: Representation, fix: str) -> None:
    """Refuses a field of another group, or whose channels do not carry the representation `before`."""
    if field.group != group:
        raise GroupActionError(
            f"{what} commutes with {group.name}, but the group that acts is {field.group.name}: build the layer with that group, or "
            f"let {group.name} act"
        )
    if field.channels.reshape(field.channels.dim) != before:
        plain, size = before.is_trivial, before.dim // (1 if before.is_trivial else group.order)
        form = f"trivial(group, {size})" if plain else f"regular(group) * trivial(group, {size})"
        raise GroupActionError(
            f"{what} takes channels that carry {form}, of dimension {before.dim}, but {group.name} acts on them by {field.channels}: "
            f"{fix}"
        )


def refuse_expansion(what: str) -> NoReturn:
    """Raised by layers that hold copies already."""
    raise GroupActionError(
        f"{what} is equivariant by construction and holds copies already, so it cannot be expanded over a group: leave out the "
        "expansion, or expand a net of Conv and Dense layers"
    )
