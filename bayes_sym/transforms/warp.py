"""One bilinear warp of a batch of images by an affine map per example: a single gather, whatever the map was composed of."""

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

    # The four corners of every cell lie side by side, so one gather brings them all: XLA-CPU pays per index, not per number.
    bordered = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
    corners = [bordered[:, i : i + height + 2, j : j + width + 2] for i in (0, 1) for j in (0, 1)]
    cells = jnp.concatenate(corners, axis=-1).reshape(batch, -1, 4 * channels)
    index = ((top + 1) * (width + 2) + left + 1).astype(int).reshape(batch, -1)
    found = jax.vmap(lambda cells, index: jnp.take(cells, index, axis=0, mode="clip"))(cells, index)
    found = found.reshape(batch, height, width, 4, channels)
    upper = (1 - right) * found[..., 0, :] + right * found[..., 1, :]
    lower = (1 - right) * found[..., 2, :] + right * found[..., 3, :]
    warped = (1 - down) * upper + down * lower

    # At home the slopes above are those of one side; these terms are 0 and turn their gradients into the means of both.
    rows, columns = np.indices((height, width))
    home = ((row == rows[None]) & (column == columns[None]))[..., None]
    around = bordered[:, : height + 2, : width + 2]
    bend_down = around[:, 2:, 1:-1] - 2 * x + around[:, :-2, 1:-1]
    bend_right = around[:, 1:-1, 2:] - 2 * x + around[:, 1:-1, :-2]
    slope = _gradient_only(down) * bend_down + _gradient_only(right) * bend_right
    return warped - jnp.where(home, slope / 2, 0)


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


def _gradient_only(value: jax.Array) -> jax.Array:
    """0, with the gradient of `value`."""
    return value - jax.lax.stop_gradient(value)
