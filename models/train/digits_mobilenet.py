# SPDX-License-Identifier: Apache-2.0
"""digits_mobilenet: inverted residuals with ReLU6, and channels that are badly scaled.

After training, channels are rescaled between layers without changing the function, so that
weights and activations of neighbouring channels differ widely in range.
"""

from __future__ import annotations

from dataclasses import dataclass

from builder import GraphBuilder, Weights
from channel_scaling import ScaledPair, unbalance
from digits_data import CLASSES, DigitsSplit
from training import Recipe

NAME = "digits_mobilenet"
TRAINING_OPSET = 17
CANONICAL_OPSET = 17
REEXPORT_OPSETS = (11, 13)
RECIPE = Recipe(epochs=60, learning_rate=4e-3)

_STEM_CHANNELS = 16
_HEAD_CHANNELS = 64
_SCALING_SEED = 0


@dataclass(frozen=True)
class _Block:
    name: str
    in_channels: int
    hidden: int
    out_channels: int
    stride: int
    relu6: bool


_BLOCKS = (
    _Block("block1", 16, 48, 16, 1, relu6=True),
    _Block("block2", 16, 48, 24, 2, relu6=False),
    _Block("block3", 24, 72, 24, 1, relu6=True),
)


def _activation(graph: GraphBuilder, x: str, name: str, *, relu6: bool) -> str:
    return graph.relu6(x, f"{name}/relu6") if relu6 else graph.relu(x, f"{name}/relu")


def _inverted_residual(graph: GraphBuilder, x: str, block: _Block) -> str:
    name, hidden = block.name, block.hidden
    y = graph.conv(x, f"{name}/expand/conv", (block.in_channels, hidden), 1)
    y = graph.batch_norm(y, f"{name}/expand/bn", hidden)
    y = _activation(graph, y, f"{name}/expand", relu6=block.relu6)
    y = graph.conv(y, f"{name}/depthwise/conv", (hidden, hidden), 3, stride=block.stride, group=hidden)
    y = graph.batch_norm(y, f"{name}/depthwise/bn", hidden)
    y = _activation(graph, y, f"{name}/depthwise", relu6=block.relu6)
    y = graph.conv(y, f"{name}/project/conv", (hidden, block.out_channels), 1)
    y = graph.batch_norm(y, f"{name}/project/bn", block.out_channels)
    if block.stride == 1 and block.in_channels == block.out_channels:
        y = graph.add(y, x, f"{name}/add")
    return y


def network(graph: GraphBuilder, image: str) -> None:
    """Write the network from the input to the logits."""
    x = graph.conv(image, "stem/conv", (1, _STEM_CHANNELS), 3)
    x = graph.batch_norm(x, "stem/bn", _STEM_CHANNELS)
    x = graph.relu6(x, "stem/relu6")
    for block in _BLOCKS:
        x = _inverted_residual(graph, x, block)
    x = graph.conv(x, "last/conv", (_BLOCKS[-1].out_channels, _HEAD_CHANNELS), 1)
    x = graph.batch_norm(x, "last/bn", _HEAD_CHANNELS)
    x = graph.relu6(x, "last/relu6")
    graph.pooled_classifier(x, _HEAD_CHANNELS, CLASSES)


def finish(weights: Weights, split: DigitsSplit) -> Weights:
    """Unbalance the channels on both sides of every depthwise convolution."""
    pairs = []
    for block in _BLOCKS:
        ceiling = 6.0 if block.relu6 else None
        suffix = "relu6" if block.relu6 else "relu"
        for source, target, axis in (("expand", "depthwise", 0), ("depthwise", "project", 1)):
            pairs.append(
                ScaledPair(
                    batch_norm=f"{block.name}/{source}/bn",
                    activation=f"{block.name}/{source}/{suffix}/out",
                    next_weight=f"{block.name}/{target}/conv/weight",
                    channel_axis=axis,
                    ceiling=ceiling,
                )
            )
    graph = GraphBuilder(CANONICAL_OPSET, weights=weights)
    network(graph, "image")
    return unbalance(graph, weights, pairs, split.train_images, seed=_SCALING_SEED)
