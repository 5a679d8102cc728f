# SPDX-License-Identifier: Apache-2.0
"""digits_cnn: a residual network with its BatchNormalization layers left unfused."""

from __future__ import annotations

from builder import GraphBuilder
from digits_data import CLASSES
from training import Recipe

NAME = "digits_cnn"
TRAINING_OPSET = 17
CANONICAL_OPSET = 13
REEXPORT_OPSETS = (11, 21)
RECIPE = Recipe(epochs=30, learning_rate=3e-3)

_STEM_CHANNELS = 16
_BLOCKS = ((16, 16, 1), (16, 32, 2), (32, 32, 1))


def _conv_bn(graph: GraphBuilder, x: str, name: str, channels: tuple[int, int], kernel: int, stride: int) -> str:
    y = graph.conv(x, f"{name}/conv", channels, kernel, stride=stride)
    return graph.batch_norm(y, f"{name}/bn", channels[1])


def _residual_block(graph: GraphBuilder, x: str, name: str, channels: tuple[int, int], stride: int) -> str:
    out_channels = channels[1]
    y = _conv_bn(graph, x, f"{name}/first", channels, 3, stride)
    y = graph.relu(y, f"{name}/first/relu")
    y = _conv_bn(graph, y, f"{name}/second", (out_channels, out_channels), 3, 1)
    shortcut = x
    if stride != 1 or channels[0] != out_channels:
        shortcut = _conv_bn(graph, x, f"{name}/shortcut", channels, 1, stride)
    return graph.relu(graph.add(y, shortcut, f"{name}/add"), f"{name}/relu")


def network(graph: GraphBuilder, image: str) -> None:
    """Write the network from the input to the logits."""
    x = _conv_bn(graph, image, "stem", (1, _STEM_CHANNELS), 3, 1)
    x = graph.relu(x, "stem/relu")
    for index, (in_channels, out_channels, stride) in enumerate(_BLOCKS, start=1):
        x = _residual_block(graph, x, f"block{index}", (in_channels, out_channels), stride)
    graph.pooled_classifier(x, _BLOCKS[-1][1], CLASSES)
