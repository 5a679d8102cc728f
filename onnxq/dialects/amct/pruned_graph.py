"""What was pruned of a model, read off the model before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq import GraphModel
from onnxq.dialects.amct.prune_records import PrunedChannels, PrunedNode, SelectiveMask
from onnxq.qat.manifest import Mask

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def removed_channels(
    before: GraphModel, after: GraphModel, kept: Mapping[str, Sequence[int]]
) -> tuple[PrunedChannels, ...]:
    """The channels that layers have lost, one entry for each layer, with the layers that read them.

    Args:
        before: The model as it came, with the names of `after`.
        after: The model without them.
        kept: Which output channels are left, by name of the layer.
    """
    found = []
    for name, channels in kept.items():
        node = before.node(name)
        count = _channels(before, node)[1]
        removed = tuple(sorted(set(range(count)) - set(channels)))
        producer = PrunedNode(name, str(node.op), 0, count, removed)
        found.append(PrunedChannels((producer,), tuple(_consumers(before, after, node))))
    return tuple(found)


def _consumers(before: GraphModel, after: GraphModel, node: Any) -> Iterator[PrunedNode]:  # noqa: ANN401 - a node
    """The layers behind a layer that lost input channels with it, in topological order."""
    reached, waiting = set[str](), [node]
    while waiting:
        for tensor in waiting.pop().outputs:
            for use in before.consumers(tensor):
                if use.node.name in reached:
                    continue
                reached.add(use.node.name)
                if not _reads_channels(before, use.node):
                    waiting.append(use.node)
    for reader in before.nodes(*_LAYERS):
        if reader.name in reached and reader.name != node.name and after.has_node(reader.name):
            count = _channels(before, reader)[0]
            if _channels(after, after.node(reader.name))[0] < count:
                yield PrunedNode(str(reader.name), str(reader.op), 0, count)


def _reads_channels(graph: GraphModel, node: Any) -> bool:  # noqa: ANN401 - a node
    """Whether a layer's outputs are channels of its own: a depthwise convolution passes channels on."""
    if node.op not in _LAYERS or len(node.inputs) < 2 or not graph.is_constant(node.inputs[1]):
        return False
    group = int(node.attrs.get("group", 1))
    return not (node.op == "Conv" and group > 1 and _channels(graph, node)[0] == group)


def _channels(graph: GraphModel, node: Any) -> tuple[int, int]:  # noqa: ANN401 - a node
    """Input and output channels of a layer."""
    shape = [int(size) for size in graph.shape(node.inputs[1]) or () if isinstance(size, int)]
    group = int(node.attrs.get("group", 1))
    if node.op == "Conv":
        return shape[1] * group, shape[0]
    if node.op == "ConvTranspose":
        return shape[0], shape[1] * group
    if node.op == "Gemm" and node.attrs.get("transB", 0):
        return shape[1], shape[0]
    return shape[-2], shape[-1]


def selective_masks(
    graph: GraphModel, masks: Sequence[Mask], values: Mapping[str, NDArray[Any]]
) -> tuple[SelectiveMask, ...]:
    """The masks of sparse weights, by layer.

    Args:
        graph: The model.
        masks: Which weights have masks.
        values: The masks by name.
    """
    by_weight = {mask.weight: mask.mask for mask in masks}
    found = []
    for node in graph.nodes(*_LAYERS):
        weight = str(node.inputs[1].name)
        if weight in by_weight:
            found.append(SelectiveMask(str(node.name), np.asarray(values[by_weight[weight]]) > 0))
    return tuple(found)
