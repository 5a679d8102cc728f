"""Small models for Ascend, made by hand, and what they must give: a slow reference in int64 and float32.

Written from the description of the operators, not from the passes: loops over windows and channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
FLOAT = TensorProto.FLOAT


def deploy(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, int],
    *,
    opset: int = 13,
    half: bool = False,
) -> onnx.ModelProto:
    """A model whose inputs are float32 (float16 with `half`); nothing is checked: stock onnx knows no Ascend."""
    graph = helper.make_graph(
        list(nodes),
        "deploy",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT16 if half else FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, t, None) for n, t in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def quant_node(x: str, y: str, scale: float, offset: int, dst_type: str = "INT8", **attrs: Any) -> onnx.NodeProto:
    """An AscendQuant; `scale` is what a step stands for, its reciprocal is stored."""
    factor = float(np.float32(1.0) / np.float32(scale))
    return helper.make_node(
        "AscendQuant", [x], [y], name=f"{y}.quant", scale=factor, offset=float(offset), dst_type=dst_type, **attrs
    )


def dequant_node(x: str, y: str, words: str, **attrs: Any) -> onnx.NodeProto:
    """An AscendDequant."""
    return helper.make_node("AscendDequant", [x, words], [y], name=f"{y}.dequant", dtype=attrs.pop("dtype", 0), **attrs)


def words(*scales: float) -> Array:
    """The 64-bit words of some float32 scales."""
    return np.asarray(scales, np.float32).view(np.uint32).astype(np.uint64)


# ---- the reference


def quantized(x: Array, scale: float, offset: int, bits: int = 8) -> Array:
    """Codes, int64: ``round(x * (1 / scale)) + offset`` with float32 products and ties to even."""
    factor = np.float32(1.0) / np.float32(scale)
    codes = np.rint(x.astype(np.float32) * factor).astype(np.int64) + offset
    return np.clip(codes, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def dequantized(sums: Array, scales: Array, axis: int) -> Array:
    """``float32(sum) * scale`` along an axis of channels."""
    shape = [1] * sums.ndim
    if scales.size > 1:
        shape[axis] = scales.size
    return sums.astype(np.float32) * scales.astype(np.float32).reshape(shape)


def conv(
    x: Array, w: Array, *, pads: Sequence[int], strides: Sequence[int], dilations: Sequence[int], group: int = 1
) -> Array:
    """A convolution of whole numbers, (N, Cin, *size) by (Cout, Cin / group, *kernel), window by window."""
    rank = w.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    sizes = [(n - s) // t + 1 for n, s, t in zip(x.shape[2:], spans, strides, strict=True)]
    result = np.zeros((x.shape[0], w.shape[0], *sizes), np.int64)
    outs, ins = w.shape[0] // group, w.shape[1]
    for place in itertools.product(*map(range, sizes)):
        window = tuple(slice(p * t, p * t + s, d) for p, t, s, d in zip(place, strides, spans, dilations, strict=True))
        for g in range(group):
            part = x[(slice(None), slice(g * ins, (g + 1) * ins), *window)].reshape(x.shape[0], -1)
            kernels = w[g * outs : (g + 1) * outs].reshape(outs, -1)
            result[(slice(None), slice(g * outs, (g + 1) * outs), *place)] = part @ kernels.T
    return result


def conv_transpose(
    x: Array,
    w: Array,
    *,
    pads: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    output_padding: Sequence[int],
    group: int = 1,
) -> Array:
    """A transposed convolution of whole numbers: every element spreads a kernel, what sticks out is cut off."""
    rank = w.ndim - 2
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    full = [t * (n - 1) + s + o for t, n, s, o in zip(strides, x.shape[2:], spans, output_padding, strict=True)]
    ins, outs = w.shape[0] // group, w.shape[1]
    result = np.zeros((x.shape[0], outs * group, *full), np.int64)
    for place in itertools.product(*map(range, x.shape[2:])):
        window = tuple(slice(p * t, p * t + s, d) for p, t, s, d in zip(place, strides, spans, dilations, strict=True))
        for c in range(x.shape[1]):
            g = c // ins
            spread = np.multiply.outer(x[(slice(None), c, *place)], w[c])
            result[(slice(None), slice(g * outs, (g + 1) * outs), *window)] += spread
    crop = tuple(slice(b, n - e) for b, e, n in zip(pads[:rank], pads[rank:], full, strict=True))
    return result[(slice(None), slice(None), *crop)]


def window_sums(x: Array, kernel: Sequence[int], pads: Sequence[int], strides: Sequence[int]) -> Array:
    """Sums of whole numbers over windows, channel by channel."""
    ones = np.ones((x.shape[1], 1, *kernel), np.int64)
    return conv(x, ones, pads=pads, strides=strides, dilations=[1] * len(kernel), group=x.shape[1])
