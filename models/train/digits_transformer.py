# SPDX-License-Identifier: Apache-2.0
"""digits_transformer: a pre-norm transformer encoder whose tokens are 2x2 image patches."""

from __future__ import annotations

import numpy as np
from builder import GraphBuilder
from digits_data import CLASSES
from training import Recipe

NAME = "digits_transformer"
TRAINING_OPSET = 17
CANONICAL_OPSET = 17
REEXPORT_OPSETS = (11, 13, 21)
RECIPE = Recipe(epochs=200, learning_rate=3e-3)

_PATCH = 2
_PATCHES_PER_SIDE = 4
_TOKENS = _PATCHES_PER_SIDE**2
_WIDTH = 48
_MLP_WIDTH = 96
_HEADS = 4
_LAYERS = 2
_POSITION_STD = 1.0


def _patch_tokens(graph: GraphBuilder, image: str) -> str:
    grid = [0, _PATCHES_PER_SIDE, _PATCH, _PATCHES_PER_SIDE, _PATCH]
    x = graph.reshape(image, "patches/grid", grid)
    x = graph.transpose(x, "patches/transpose", (0, 1, 3, 2, 4))
    x = graph.reshape(x, "patches/flatten", [0, _TOKENS, _PATCH**2])
    x = graph.linear(x, "embed", (_PATCH**2, _WIDTH))
    rng = np.random.default_rng(0)
    position = graph.weight(
        "position/embedding",
        lambda: rng.standard_normal((1, _TOKENS, _WIDTH)) * _POSITION_STD,
    )
    return graph.add(x, position, "position/add")


def _encoder_layer(graph: GraphBuilder, x: str, name: str) -> str:
    y = graph.layer_norm(x, f"{name}/attention_norm", _WIDTH)
    y = graph.attention(y, f"{name}/attention", width=_WIDTH, heads=_HEADS)
    x = graph.add(x, y, f"{name}/attention_residual")
    y = graph.layer_norm(x, f"{name}/mlp_norm", _WIDTH)
    y = graph.linear(y, f"{name}/mlp/up", (_WIDTH, _MLP_WIDTH))
    y = graph.gelu(y, f"{name}/mlp/gelu")
    y = graph.linear(y, f"{name}/mlp/down", (_MLP_WIDTH, _WIDTH))
    return graph.add(x, y, f"{name}/mlp_residual")


def network(graph: GraphBuilder, image: str) -> None:
    """Write the network from the input to the logits."""
    x = _patch_tokens(graph, image)
    for index in range(1, _LAYERS + 1):
        x = _encoder_layer(graph, x, f"layer{index}")
    x = graph.layer_norm(x, "final_norm", _WIDTH)
    x = graph.reduce_mean(x, "pool", 1, keepdims=False)
    graph.gemm_head(x, _WIDTH, CLASSES)
