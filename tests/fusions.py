"""Counting what ONNX Runtime fuses in a model: normalizations, activation functions, attention."""

from __future__ import annotations

from collections import Counter

import onnx

from onnxq.runtime import optimized

FUSED = (
    "LayerNormalization",
    "SkipLayerNormalization",
    "EmbedLayerNormalization",
    "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "RMSNormalization",
    "Gelu",
    "BiasGelu",
    "FastGelu",
    "QuickGelu",
    "Attention",
    "MultiHeadAttention",
    "GroupQueryAttention",
    "FusedMatMul",
    "BiasSoftmax",
    "Softmax",
)
"""Kernels that stand for patterns of several nodes, or that a pattern of attention is made of."""


def fused(model: onnx.ModelProto) -> dict[str, int]:
    """How many of each there are in the model as ONNX Runtime executes it."""
    counts = Counter(node.op_type for node in optimized(model).graph.node)
    return {op: counts[op] for op in FUSED if counts[op]}
