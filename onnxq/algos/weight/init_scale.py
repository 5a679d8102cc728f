"""Searching the coarsest quantization of a whole model that still gives its outputs: a grid, then finer ones.

Source: MindSpore Lite's parameter tuner (specs of MindSpore Lite, section A5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import CalibrationError

WANTED = 0.995
"""Mean cosine of the outputs that is good enough."""
_END = 30000
_FINE_PASSES = 3


def mean_cosine(expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> float:
    """Return the mean cosine similarity of outputs; those that are no numbers are left out.

    Args:
        expected: Outputs of the float model.
        found: The same ones of another model.
    """
    pairs = [
        (a, b) for a, b in zip(expected, found, strict=True) if isinstance(a, np.ndarray) and a.dtype.kind in "fiub"
    ]
    return float(np.mean([_cosine(a, b) for a, b in pairs])) if pairs else 1.0


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    x, y = (v.astype(np.float64).reshape(-1) for v in (a, b))
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norms == 0:
        return float(np.array_equal(x, y))
    cosine = float(x @ y) / norms
    return cosine if math.isfinite(cosine) else -1.0


def search_inverse(cosine: Callable[[int], float], largest: int, max_iterations: int = 40) -> int:
    """Return the smallest whole number s found whose ``1 / s`` as init_scale gives a mean cosine of 0.995.

    A grid from 1 upwards is searched first, and once more up to four times its end where nothing is found; then up to
    three finer grids below what was found.

    Args:
        cosine: The mean cosine of the outputs for a whole number s.
        largest: Elements of the largest weight.
        max_iterations: A fourth of it is the number of steps of the first grid, 173 at the most.

    Raises:
        CalibrationError: If nothing is found; the message says what to do.
    """
    tried: dict[int, float] = {}

    def first(start: int, end: int, step: int) -> int | None:
        for s in range(start, end + 1, step):
            if s not in tried:
                tried[s] = cosine(s)
            if tried[s] >= WANTED:
                return s
        return None

    count = max(1, min(173, max_iterations // 4))
    step = (_END - 1) // count
    end = max(_END, int(1 / math.sqrt(24e-6 / largest)))
    found = first(1, end, step)
    if found is None:
        step = 3 * end // count
        found = first(end, 4 * end, step)
    if found is None:
        raise CalibrationError(_nothing(tried))
    for _ in range(_FINE_PASSES):
        if step <= 2:
            break
        start = max(1, found - 2 * step)
        step = max(1, int(max((found - start) / min(count, 20), math.sqrt(found - start) / 2)))
        found = first(start, found, step) or found
    return found


def _nothing(tried: dict[int, float]) -> str:
    best = max(tried, key=lambda s: tried[s])
    return (
        f"auto_tune: no init_scale gives outputs with a mean cosine of {WANTED} to those of the float model; the best "
        f"of {len(tried)} is {tried[best]:.5f} at {1 / best:.3g}. Leave auto_tune out and set init_scale, skip the "
        "most sensitive nodes, or give a real sample if there was none"
    )
