# SPDX-License-Identifier: Apache-2.0
"""Random small distortions of training images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

_MAX_SHIFT = 1.0
_MAX_ROTATION = 0.25
_MAX_ZOOM = 0.15


def distort(images: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Shift, rotate and zoom every image a little, with bilinear interpolation.

    Args:
        images: Square images as [N, 1, size, size].
        rng: Source of the distortions.

    Returns:
        New images of the same shape; what comes from outside the image is 0.
    """
    count, _, size, _ = images.shape
    angle = rng.uniform(-_MAX_ROTATION, _MAX_ROTATION, size=(count, 1, 1))
    zoom = np.exp(rng.uniform(-_MAX_ZOOM, _MAX_ZOOM, size=(count, 1, 1)))
    shift = rng.uniform(-_MAX_SHIFT, _MAX_SHIFT, size=(2, count, 1, 1))
    centre = (size - 1) / 2
    rows, columns = np.mgrid[0:size, 0:size] - centre
    source_rows = zoom * (np.cos(angle) * rows - np.sin(angle) * columns) + shift[0] + centre
    source_columns = zoom * (np.sin(angle) * rows + np.cos(angle) * columns) + shift[1] + centre
    return _sample(images[:, 0], source_rows, source_columns)[:, np.newaxis]


def _sample(images: FloatArray, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> FloatArray:
    size = images.shape[-1]
    # One ring of zeros on each side; coordinates beyond it land on the ring.
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    rows = np.clip(rows + 1, 0, size + 1)
    columns = np.clip(columns + 1, 0, size + 1)
    top = np.minimum(rows.astype(np.int64), size)
    left = np.minimum(columns.astype(np.int64), size)
    down, right = rows - top, columns - left
    index = np.arange(len(images))[:, np.newaxis, np.newaxis]
    value = (
        padded[index, top, left] * (1 - down) * (1 - right)
        + padded[index, top, left + 1] * (1 - down) * right
        + padded[index, top + 1, left] * down * (1 - right)
        + padded[index, top + 1, left + 1] * down * right
    )
    return np.asarray(value, dtype=np.float32)
