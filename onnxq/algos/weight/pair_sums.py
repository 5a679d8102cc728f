"""Weights whose products cannot saturate where a CPU adds two of them in 16 bits.

x86 CPUs without VNNI multiply unsigned activations and signed weights with ``vpmaddubsw``: it adds two neighbouring
products and saturates the sum at 16 bits, silently. A sum of two stays below that as long as two neighbouring weights
of the same sign add up to at most 128 codes: ``255 * 128 = 32640 < 2**15``. It costs a slightly coarser scale in the
channels that have such a pair, a few percent as a rule, and no speed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LIMIT = 127.0
"""Largest sum of two neighbours in codes before rounding, which may add half a code to each of them."""

_ROWS = 1 << 22


def largest_pair_sums(weight: NDArray[np.floating], *, outputs_first: bool) -> NDArray[np.float32]:
    """Return the largest magnitude that two neighbours of the same sign, 2k and 2k + 1 of a sum, add up to.

    Args:
        weight: shape (N, K), the numbers of one output side by side, or (K, N). Memmaps are read in pieces.
        outputs_first: Which of the two.

    Returns:
        shape (N,), float32, >= 0.
    """
    count = weight.shape[0] if outputs_first else weight.shape[1]
    largest: NDArray[np.float32] = np.zeros(count, np.float32)
    length = max(1, weight.shape[1])
    step = max(2, _ROWS // length // 2 * 2)
    for start in range(0, weight.shape[0], step):
        part = np.asarray(weight[start : start + step], np.float32)
        if outputs_first:
            largest[start : start + step] = _over_columns(part)
        else:
            largest = np.maximum(largest, _over_columns(np.ascontiguousarray(part.T)))
    return largest


def _over_columns(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    even, odd = rows[:, 0::2], rows[:, 1::2]
    if odd.shape[1] < even.shape[1]:
        odd = np.concatenate([odd, np.zeros((len(odd), 1), np.float32)], axis=1)
    zero = np.float32(0)
    positive = np.maximum(even, zero) + np.maximum(odd, zero)
    negative = np.minimum(even, zero) + np.minimum(odd, zero)
    result: NDArray[np.float32] = np.maximum(positive.max(axis=1, initial=0), -negative.min(axis=1, initial=0))
    return result


def safe_scale(scale: NDArray[np.float32], pair_sums: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scales that are large enough for the pair sums.

    Args:
        scale: shape () or (N,), float32, > 0.
        pair_sums: shape (N,), as `largest_pair_sums` gives them.

    Returns:
        The shape of `scale`; never smaller than `scale`.
    """
    needed = pair_sums / np.float32(LIMIT)
    wanted = needed if scale.shape else needed.max(initial=0)
    return np.maximum(scale, wanted.astype(np.float32))
