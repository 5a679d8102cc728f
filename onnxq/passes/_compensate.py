"""GPTQ for layers whose activations have codes too: scales and zero points are given, codes are chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.affine import dequantize, quantize
from onnxq.algos.weight.gptq import GptqConfig, Hessian, better_rows, compensate_fixed
from onnxq.algos.weight.rtn import BlockMatrix, BlockShape
from onnxq.passes._fitting import saturating_outputs
from onnxq.passes._linear import Linear
from onnxq.passes._rows import from_rows, to_rows
from onnxq.plan import WeightPlan
from onnxq.spec import PerBlock, QuantParams


def why_not_compensated(params: QuantParams) -> str | None:
    """Why codes of these numbers are rounded to nearest; None if they need not be."""
    spec = params.spec
    if spec.qtype.floating or spec.bits > 8:
        return f"GPTQ rounds to integers of up to 8 bits, not to {spec.bits} bits of {spec.qtype.label}"
    return "GPTQ needs one scale for each output" if isinstance(spec.granularity, PerBlock) else None


def compensated(
    linear: Linear,
    plan: WeightPlan,
    weight: NDArray[np.float32],
    params: QuantParams,
    squares: Sequence[Hessian],
    config: GptqConfig,
    workers: int,
    *,
    safe_pairs: bool,
) -> tuple[NDArray[np.float32], int]:
    """The weight as its chosen codes stand for it.

    An output keeps its nearest codes where others do not make it better on the data.

    Args:
        linear: The layer.
        plan: Its weight.
        weight: The float weight.
        params: Scale and zero point.
        squares: ``X X'`` of the unfolded inputs of each group, shape (K, K).
        config: Parameters.
        workers: Threads.
        safe_pairs: Also keep them where two neighbours would add up to more than a CPU's 16 bits hold.

    Returns:
        float32, the shape of the weight; and how many outputs have other codes than the nearest.
    """
    low, high = params.spec.bounds
    nearest = to_rows(linear, quantize(weight, params).astype(np.int32))
    floats = to_rows(linear, np.asarray(weight, np.float32))
    ones = np.ones(weight.shape, np.int32)
    scale = to_rows(linear, dequantize(ones, QuantParams(params.spec, params.scale, np.zeros_like(params.zero_point))))
    plain = QuantParams(params.spec, np.ones_like(params.scale), params.zero_point)
    zero = -to_rows(linear, dequantize(np.zeros_like(ones), plain))
    shape, found = BlockShape(params.spec.bits, nearest.shape[1]), nearest.copy()
    each = len(nearest) // len(squares)
    for group, square in enumerate(squares):
        rows = slice(group * each, (group + 1) * each)
        start = BlockMatrix(
            shape, (nearest[rows] - low).astype(np.uint8), np.ascontiguousarray(scale[rows, :1]),
            (zero[rows, :1] - low).astype(np.uint8),
        )  # fmt: skip
        way = compensate_fixed(floats[rows], square, start, config, workers=workers)
        limited = np.minimum(way.codes, np.uint8(high - low))  # a narrow range has a code less
        way = better_rows(floats[rows], square, start, BlockMatrix(shape, limited, way.scale, way.zero_point))
        found[rows] = way.codes.astype(np.int32) + low
    values = dequantize(from_rows(linear, found), params)
    saturated = saturating_outputs(linear.node, plan, values, params) if safe_pairs else None
    if saturated is not None and saturated.any():
        found[saturated] = nearest[saturated]
        values = dequantize(from_rows(linear, found), params)
    return values, int((found != nearest).any(axis=1).sum())
