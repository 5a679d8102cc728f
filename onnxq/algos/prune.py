"""Which output channels of a layer matter least: norms and first-order sensitivities, and how many are left."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def channel_norms(weight: NDArray[Any], *, out_first: bool) -> Scores:
    """``||W_c||_2 / (numel / Cout)`` of every output channel c.

    Args:
        weight: Any float type, shape (groups, a, b, taps). With `out_first`, a counts the outputs of a group and b its
            inputs; else the other way round.
        out_first: See `weight`.

    Returns:
        float64 (groups * outputs of a group,).

    Source: AMCT's BalancedL2NormFilterPruner (specs of AMCT, section 1.10).
    """
    channels = "ga" if out_first else "gb"
    squares = np.einsum(f"gabt,gabt->{channels}", weight, weight, dtype=np.float64, casting="unsafe").reshape(-1)
    found: Scores = np.sqrt(squares) * (squares.size / max(weight.size, 1))
    return found


def taylor_norms(weight: NDArray[Any], gradient: NDArray[Any], *, out_first: bool) -> Scores:
    """``sum |w * dL/dw|`` of every output channel: how much the loss changes, to first order, without its weights.

    Args:
        weight: As for `channel_norms`.
        gradient: Of the loss, of the same shape.
        out_first: As for `channel_norms`.

    Returns:
        float64 (groups * outputs of a group,).

    Source: AMCT's auto_channel_prune_search (specs of AMCT, section 1.10).
    """
    axes = (2, 3) if out_first else (1, 3)
    found: Scores = np.abs(weight.astype(np.float64) * gradient).sum(axis=axes).reshape(-1)
    return found


def normalised(scores: Scores) -> Scores:
    """Scores of one layer brought to 0 ... 1; all 0 where they are equal.

    Args:
        scores: float64 (C,).
    """
    if not scores.size:
        return scores
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.zeros_like(scores)


def remaining(channels: int, ratio: float, multiple: int = 1) -> int:
    """How many channels are left: ``C - round(C * ratio)``, rounded up to a multiple, which is the least.

    Args:
        channels: C.
        ratio: Part that is removed, at least 0 and less than 1.
        multiple: What is left is a multiple of this, unless nothing can be removed then.

    Source: AMCT (specs of AMCT, section 1.10).
    """
    left = max(channels - round(channels * ratio), 1)
    return min(-(-left // multiple) * multiple, channels)


def together(*multiples: int) -> int:
    """The smallest number that is a multiple of all."""
    return math.lcm(*multiples)


def kept_channels(scores: Scores, left: int) -> NDArray[np.int64]:
    """Sorted indexes of the channels with the largest scores; of equal ones the first are kept.

    Args:
        scores: float64 (C,).
        left: How many are kept.
    """
    return np.sort(np.argsort(-scores, kind="stable")[:left]).astype(np.int64)
