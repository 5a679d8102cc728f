"""How much a layer suffers from being quantized, by itself: the similarity AMCT ranks layers by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import CalibrationError, DataError

_BLOCK = 1 << 18


def similarity(reference: Iterable[NDArray[Any]], quantized: Iterable[NDArray[Any]]) -> float:
    """Compare what one layer gives in float with what it gives quantized, for the same float inputs.

    Of each batch ``0.5 + 0.5 * cosine`` of all elements; the mean over the batches. A batch that is zero
    throughout in float counts as 1, one that is so only after quantizing as 0. Batches are read in blocks and
    summed in float64, so memory does not grow with them.

    Source: AMCT's CosineSimilarity.

    Args:
        reference: Outputs of the float layer, one array of any shape per batch.
        quantized: Outputs of the quantized layer, of the same shapes.

    Returns:
        A number in [0, 1], 1 where nothing is lost.

    Raises:
        DataError: If the batches do not correspond, or there is none.
        CalibrationError: If a batch holds NaN or an infinity.
    """
    found = [_of_batch(number, a, b) for number, (a, b) in enumerate(zip_longest(reference, quantized))]
    if not found:
        raise DataError("there is no batch to compare a layer's outputs by")
    return math.fsum(found) / len(found)


def ranking(similarities: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Layers and their similarity, the one that suffers most first; of equals the one named first."""
    return tuple(sorted(similarities.items(), key=lambda item: item[1]))


def _of_batch(number: int, reference: NDArray[Any] | None, quantized: NDArray[Any] | None) -> float:
    if reference is None or quantized is None:
        side = "quantized" if quantized is None else "float"
        raise DataError(f"the {side} layer has no batch {number}; both must see the same data")
    if reference.shape != quantized.shape:
        shapes = f"{list(reference.shape)} and {list(quantized.shape)}"
        raise DataError(f"batch {number}: the shapes of the outputs differ: {shapes}")
    product = own = other = 0.0
    for a, b in _blocks(reference, quantized):
        product += float(a @ b)
        own += float(a @ a)
        other += float(b @ b)
    if not (math.isfinite(own) and math.isfinite(other)):
        side = "float" if not math.isfinite(own) else "quantized"
        raise CalibrationError(f"batch {number}: the output of the {side} layer holds NaN or an infinity")
    if own == 0.0:
        return 1.0
    if other == 0.0:
        return 0.0
    cosine = product / (math.sqrt(own) * math.sqrt(other))
    return 0.5 + 0.5 * min(1.0, max(-1.0, cosine))


def _blocks(a: NDArray[Any], b: NDArray[Any]) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    flat, other = a.reshape(-1), b.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK].astype(np.float64), other[start : start + _BLOCK].astype(np.float64)
