"""Normalizations in forms that the training runtime derives rightly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from onnxq.graph import Tensor
from onnxq.passes._legal_site import LegalChain, Rewrite, Site


def _normalized(chain: LegalChain, x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    """``(x - mean) / sqrt(variance + epsilon)`` over axes."""
    centered = chain.op("Sub", x, chain.reduce("ReduceMean", x, axes))
    variance = chain.reduce("ReduceMean", chain.op("Mul", centered, centered), axes)
    return chain.op("Div", centered, chain.op("Sqrt", chain.op("Add", variance, chain.real(epsilon))))


def instance_normalization(site: Site) -> Tensor:
    """By mean and variance of every channel of every sample."""
    rank, chain = site.rank(), site.chain
    y = _normalized(chain, site.input(), range(2, rank), float(site.attr("epsilon", 1e-5)))
    y = chain.op("Mul", y, chain.per_channel(site.input(1), rank))
    return chain.op("Add", y, chain.per_channel(site.input(2), rank))


def group_normalization(site: Site) -> Tensor:
    """By mean and variance of groups of channels; the scale is one per group before opset 21."""
    rank, chain, x, groups = site.rank(), site.chain, site.input(), int(site.attr("num_groups", 1))
    sizes = chain.sizes(x)
    y = _normalized(chain, chain.reshape(x, [0, groups, -1]), [2], float(site.attr("epsilon", 1e-5)))
    per_group = site.graph.opset < 21
    if per_group:
        y = chain.op("Mul", y, chain.per_channel(site.input(1), 3))
        y = chain.op("Add", y, chain.per_channel(site.input(2), 3))
    y = chain.reshape(y, [0, *sizes[1:]])
    if per_group:
        return y
    y = chain.op("Mul", y, chain.per_channel(site.input(1), rank))
    return chain.op("Add", y, chain.per_channel(site.input(2), rank))


def layer_normalization(site: Site) -> Tensor | bool:
    """With all three outputs and a bias, which its derivative reads; in parts where the runtime cannot run it."""
    graph, chain, node, rank = site.graph, site.chain, site.node, site.rank()
    if site.needed(1) or site.needed(2):
        site.refuse("mean or deviation are used, which have no derivative", "export it in single operators")
    axis = int(site.attr("axis", -1)) % rank
    shape = graph.shape(site.input())
    scale, bias = site.input(1), site.given(2)
    wanted = None if shape is None else tuple(shape[axis:])
    if any(graph.shape(t) != wanted for t in (scale, bias) if t is not None):
        y = _normalized(chain, site.input(), range(axis, rank), float(site.attr("epsilon", 1e-5)))
        return chain.plus(chain.op("Mul", y, scale), bias)
    if bias is not None and len(node.outputs) == 3 and all(o.name for o in node.outputs):
        return False
    if bias is None:
        bias = chain.real(np.zeros([int(d) for d in wanted or ()]))  # type: ignore[arg-type] # those of a weight
    attrs, name = dict(node.attrs), str(node.name)
    new = graph.add_node(
        "LayerNormalization", [site.input(), scale, bias], name=name, attrs=attrs, dtype=np.float32,
        outputs=[f"{name}/y", f"{name}/mean", f"{name}/deviation"],
    )  # fmt: skip
    return new.outputs[0]


def lrn(site: Site) -> Tensor:
    """``x / (bias + alpha / size * s) ** beta``, s being the sum of squares of neighbouring channels: a 1x1 Conv."""
    chain, x, rank, size = site.chain, site.input(), site.rank(), int(site.attr("size", 1))
    channels = site.length(1, "its window")
    band = np.zeros((channels, channels), np.float32)
    for c in range(channels):
        band[c, max(0, c - (size - 1) // 2) : min(channels, c + size // 2 + 1)] = 1
    weight = chain.real(
        (band * (float(site.attr("alpha", 1e-4)) / size)).reshape(channels, channels, *[1] * (rank - 2))
    )
    sums = chain.op("Conv", chain.op("Mul", x, x), weight, kernel_shape=[1] * (rank - 2))
    base = chain.op("Add", sums, chain.real(float(site.attr("bias", 1.0))))
    return chain.op("Mul", x, chain.op("Pow", base, chain.real(-float(site.attr("beta", 0.75)))))


def batch_normalization(site: Site) -> Tensor | bool:
    """By running statistics: ``(x - mean) * (scale / sqrt(variance + epsilon)) + shift``, scale and shift as they are.

    The runtime derives it as if it took the statistics of the batch.
    """
    if site.attr("training_mode", 0):
        return False
    chain, rank = site.chain, site.rank()
    mean, variance = site.values(3, "running statistics"), site.values(4, "running statistics")
    if mean is None or variance is None:
        site.refuse("it has no running statistics", "the model is not valid")
    epsilon = float(site.attr("epsilon", 1e-5))
    spread = (1 / np.sqrt(variance.astype(np.float64) + epsilon)).astype(np.float32)
    shape = [-1, *[1] * (rank - 2)]
    centered = chain.op("Sub", site.input(), chain.real(mean.reshape(shape)))
    scale = chain.op("Mul", chain.per_channel(site.input(1), rank), chain.real(spread.reshape(shape)))
    return chain.op("Add", chain.op("Mul", centered, scale), chain.per_channel(site.input(2), rank))


NORMS: Mapping[str, Rewrite] = MappingProxyType(
    {
        "InstanceNormalization": instance_normalization,
        "GroupNormalization": group_normalization,
        "LayerNormalization": layer_normalization,
        "LRN": lrn,
        "BatchNormalization": batch_normalization,
    }
)
