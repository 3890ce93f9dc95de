"""One bilinear warp of a batch of images by an affine map per example, whatever the map was composed of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import ShapeError


__all__ = ["affine_warp"]


def affine_warp(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Moves every pixel p of every image to ``matrix @ p``, with bilinear interpolation and zeros outside.

    Values are those of ``scipy.ndimage.affine_transform(order=1, mode="grid-constant")``: beyond the border an image goes on
    as zeros, so it fades out within one pixel. Gradients in the matrix are those of the bilinear interpolant; where a pixel
    stays exactly in its place, at a kink of the interpolant, the gradient is the mean of those of both sides, so that at the
    identity it is that of central differences, (x[i+1] - x[i-1]) / 2.

    Args:
        x: images (batch, height, width, channels).
        matrix: (batch, 3, 3) or (3, 3), acting on (row, column, 1) in pixels from the centre ((height - 1)/2,
            (width - 1)/2); its last row is taken to be (0, 0, 1). Must be invertible.

    Returns:
        Images of the same shape.

    Raises:
        ShapeError: the shapes do not fit.
    """
    x, matrix = jnp.asarray(x), jnp.asarray(matrix)
    if x.ndim != 4 or matrix.shape not in ((3, 3), (x.shape[0], 3, 3)):
        raise ShapeError(
            f"affine_warp takes images (batch, height, width, channels) and matrices (batch, 3, 3) or (3, 3), got shapes {x.shape} and "
            f"{matrix.shape}"
        )
    batch, height, width, channels = x.shape
    matrix = jnp.broadcast_to(matrix.astype(x.dtype), (batch, 3, 3))
    row, column = _sources(matrix, height, width)
    # whatever lies a pixel or more beyond the border is 0, so these places stand for all of them
    row, column = jnp.clip(row, -1, height), jnp.clip(column, -1, width)
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = (row - top)[..., None], (column - left)[..., None]

    bordered = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
    pixels, stride = bordered.reshape(batch, -1, channels), width + 3
    index = ((top + 1) * stride + left + 1).astype(int).reshape(batch, -1)

    def corner(offset: int) -> jax.Array:
        found = jax.vmap(lambda pixels, index: jnp.take(pixels, index, axis=0, mode="clip"))(pixels, index + offset)
        return found.reshape(x.shape)

    upper = (1 - right) * corner(0) + right * corner(1)
    lower = (1 - right) * corner(stride) + right * corner(stride + 1)
    warped = (1 - down) * upper + down * lower
    rows, columns = np.indices((height, width))
    home = ((row == rows[None]) & (column == columns[None]))[..., None]
    around = bordered[:, : height + 2, : width + 2]
    return _with_even_slopes(warped, down, right, around, home)


@jax.custom_jvp
def _with_even_slopes(warped: jax.Array, down: jax.Array, right: jax.Array, around: jax.Array, home: jax.Array) -> jax.Array:
    """`warped`, with a gradient in which the slopes of one side become the means of both where pixels are at home.

    Args:
        warped: the warped images, with slopes of one side.
        down, right: how far each pixel is from the corner of its cell, (batch, height, width, 1).
        around: the images with a border of one pixel.
        home: which pixels stay exactly in their place.
    """
    return warped


@_with_even_slopes.defjvp
def _with_even_slopes_jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    warped, _, _, around, home = primals
    bend_down = around[:, 2:, 1:-1] - 2 * around[:, 1:-1, 1:-1] + around[:, :-2, 1:-1]
    bend_right = around[:, 1:-1, 2:] - 2 * around[:, 1:-1, 1:-1] + around[:, 1:-1, :-2]
    change = tangents[1] * jnp.where(home, bend_down / -2, 0) + tangents[2] * jnp.where(home, bend_right / -2, 0)
    return warped, tangents[0] + change


def _sources(matrix: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Where each pixel comes from: rows and columns, (batch, height, width) each, by the inverse of the matrix."""
    a, b, c, d = (matrix[:, i, j, None, None] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)))
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    rows, columns = (axis.astype(matrix.dtype) for axis in np.indices((height, width)))
    # halves are exact in any precision, so at the identity every pixel comes exactly from its own place
    down = (rows - middle[0]).astype(matrix.dtype)[None] - matrix[:, 0, 2, None, None]
    right = (columns - middle[1]).astype(matrix.dtype)[None] - matrix[:, 1, 2, None, None]
    determinant = a * d - b * c
    row = (d * down - b * right) / determinant + matrix.dtype.type(middle[0])
    column = (a * right - c * down) / determinant + matrix.dtype.type(middle[1])
    return row, column
