"""Widths of layers for an average width: those with the least error that the budget allows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def choose_widths(
    errors: NDArray[np.floating], widths: Sequence[int], sizes: Sequence[int], average: float
) -> list[int]:
    """Choose a width for each layer so that the sum of errors is small and the widths average at most `average`.

    All layers begin with the smallest width. Then the step that saves the most error per bit is taken again and again,
    along the lower convex hull of each layer's errors, as long as it fits; so the result is the best one for the bits
    that it uses, as a Lagrange multiplier would find it. Steps that do not fit any more are left out, smaller ones
    may still fit.

    Args:
        errors: shape (layers, widths), the error of each layer with each width.
        widths: Ascending.
        sizes: How many weights each layer has.
        average: Bits per weight, over all weights of all layers.

    Raises:
        ValueError: If even the smallest width is too much, or the arguments do not fit.
    """
    table = np.asarray(errors, np.float64)
    if table.shape != (len(sizes), len(widths)) or list(widths) != sorted(set(widths)):
        raise ValueError(f"errors of shape {table.shape} for {len(sizes)} layers and widths {list(widths)}")
    left = math.floor(average * sum(sizes) + 1e-9) - widths[0] * sum(sizes)
    if left < 0:
        raise ValueError(f"an average of {average:g} bits is below the smallest width, {widths[0]}")
    hulls = [_hull(row, widths) for row in table]
    steps: list[tuple[float, int, int]] = []  # what is saved per bit, as a negative number; layer; step of its hull
    for layer, hull in enumerate(hulls):
        for step, (here, there) in enumerate(itertools.pairwise(hull)):
            bits = (widths[there] - widths[here]) * sizes[layer]
            steps.append((-(table[layer, here] - table[layer, there]) / max(bits, 1), layer, step))
    position = [0] * len(sizes)
    for _, layer, step in sorted(steps):
        hull = hulls[layer]
        bits = (widths[hull[step + 1]] - widths[hull[step]]) * sizes[layer]
        if position[layer] == step and bits <= left:  # a layer's steps come in their order: a hull is convex
            position[layer] += 1
            left -= bits
    return [widths[hull[at]] for hull, at in zip(hulls, position, strict=True)]


def _hull(errors: NDArray[np.float64], widths: Sequence[int]) -> list[int]:
    """Indexes of the lower convex hull, from the smallest width on as long as the error falls."""
    hull = [0]
    while True:
        here = hull[-1]
        slopes = [((errors[k] - errors[here]) / (widths[k] - widths[here]), -k) for k in range(here + 1, len(widths))]
        if not slopes or min(slopes)[0] >= 0:
            return hull
        hull.append(-min(slopes)[1])
