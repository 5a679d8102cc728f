"""Order statistics of large arrays at small cost, where their ranks are close to either end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_PROBES = 4096
"""How many values tell roughly where an order statistic is."""
_MARGIN = 16


def order_statistics(x: NDArray[np.float32], ranks: Sequence[int]) -> NDArray[np.float32]:
    """Return what stands at some places of the sorted values, exactly.

    Args:
        x: Any shape, float32, finite, not empty.
        ranks: Places, counted from 0.

    Returns:
        shape (len(ranks),), float32.
    """
    flat = np.ascontiguousarray(x).reshape(-1)
    if flat.size < 4 * _PROBES:
        return np.partition(flat, sorted(set(ranks)))[list(ranks)] + np.float32(0)
    probes = np.sort(flat[:: flat.size // _PROBES])
    return np.array([_statistic(flat, rank, probes) for rank in ranks], np.float32) + np.float32(0)


def _statistic(flat: NDArray[np.float32], rank: int, probes: NDArray[np.float32]) -> np.float32:
    """One order statistic: only the values on the shorter side of a bound near it are put in order."""
    expected = rank * probes.size // flat.size
    if 2 * rank < flat.size:
        bound = probes[min(expected + _MARGIN, probes.size - 1)]
        some, place = flat[flat <= bound], rank
    else:
        bound = probes[max(expected - _MARGIN, 0)]
        some = flat[flat >= bound]
        place = rank - (flat.size - some.size)
    if not 0 <= place < some.size:  # the probes were unlucky
        some, place = flat, rank
    return np.float32(np.partition(some, place)[place])
