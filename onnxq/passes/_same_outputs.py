"""Whether two models compute the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxq.calib.feeds import Feed
from onnxq.runtime import make_session

if TYPE_CHECKING:
    from onnxq.graph import GraphModel


def largest_deviation(before: GraphModel, after: GraphModel, feed: Feed) -> float:
    """Run both and compare every output.

    Args:
        before: A model.
        after: Another one with the same inputs and outputs.
        feed: What both are fed.

    Returns:
        The largest ``max|a - b| / max|a|`` over the outputs; infinity where shapes, types or NaNs differ.

    Raises:
        ModelError: If ONNX Runtime cannot load one of them.
        DataError: If it cannot run one of them on the feed.
    """
    first, second = (make_session(m, threads=1, optimize=False) for m in (before, after))
    worst = 0.0
    for a, b in zip(first.run(first.output_names, feed), second.run(first.output_names, feed), strict=True):
        worst = max(worst, _deviation(np.asarray(a), np.asarray(b)))
    return worst


def _deviation(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype.kind not in "fc":
        return 0.0 if np.array_equal(a, b) else float("inf")
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    differ = (a != b) & ~np.isnan(a)
    if not differ.any():
        return 0.0
    wide = a.astype(np.float64)
    scale = np.abs(wide[np.isfinite(wide)]).max(initial=0.0)
    return float(np.abs(wide[differ] - b.astype(np.float64)[differ]).max() / max(scale, 1e-30))
