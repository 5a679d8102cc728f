"""2:4 sparsity: of every four consecutive weights along the input channels, the two largest are kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GROUP, KEPT = 4, 2


def why_not_sparse(shape: tuple[int, ...], axis: int) -> str | None:
    """Why a weight cannot be made sparse, or None.

    Args:
        shape: Of the weight.
        axis: Of the input channels.
    """
    channels = shape[axis]
    if channels <= KEPT:
        return f"it has {channels} input channels; of {GROUP} weights, {KEPT} are kept"
    return None


def two_of_four(weight: NDArray[np.floating], axis: int) -> NDArray[np.float32]:
    """The mask of the two largest magnitudes in every four weights.

    Where the channels are no multiple of four, zeros are thought to follow. Of equal magnitudes the first is kept.

    Args:
        weight: Any shape.
        axis: Along which four weights belong together.

    Returns:
        float32, the shape of `weight`, 1 where a weight is kept, else 0.

    Source: AMCT's L1SelectivePruner (specs of AMCT, section 1.11).
    """
    if why_not_sparse(weight.shape, axis) is not None:
        return np.ones(weight.shape, np.float32)
    rows = np.moveaxis(np.abs(weight), axis, -1)
    channels = rows.shape[-1]
    padding = [(0, 0)] * (rows.ndim - 1) + [(0, -channels % GROUP)]
    groups = np.pad(rows, padding, constant_values=-1.0).reshape(*rows.shape[:-1], -1, GROUP)
    order = np.argsort(-groups, axis=-1, kind="stable")
    mask = np.zeros(groups.shape, np.float32)
    np.put_along_axis(mask, order[..., :KEPT], 1.0, axis=-1)
    flat = mask.reshape(*rows.shape[:-1], -1)[..., :channels]
    return np.ascontiguousarray(np.moveaxis(flat, -1, axis))
