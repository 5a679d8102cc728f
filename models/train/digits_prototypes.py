# SPDX-License-Identifier: Apache-2.0
"""digits_prototypes: classifies by distances to learned examples, and says which is nearest and how far.

The picture is reduced to a few greys, and read beside its outline in black and white.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from augment import distort
from builder import INPUT_NAME, OUTPUT_NAME, Weights
from digits_data import CLASSES, IMAGE_SHAPE, DigitsSplit
from float_training import FloatRecipe, train_float
from image_classifier import save
from net_builder import NetBuilder, Port
from onnx import TensorProto

NAME = "digits_prototypes"
OPSETS = (13, 21)
RECIPE = FloatRecipe(epochs=12, learning_rate=4e-3, output=OUTPUT_NAME)

_TRAINING_OPSET = 17
_GREYS = 5.0
_STEM, _WIDE, _EMBEDDED = 12, 24, 24
_PROTOTYPES = 30
_COPIES = 4


def _levels(graph: NetBuilder, image: str) -> str:
    """The picture in a few greys, and in two."""
    greys = graph.scalar("levels/greys", _GREYS)
    grey = graph.node("Round", [graph.node("Mul", [image, greys], "levels/mul")], "levels/round")
    grey = graph.node("Div", [grey, greys], "levels/div")
    half = graph.scalar("levels/half", 0.5)
    outline = graph.node("Ceil", [graph.node("Sub", [image, half], "levels/sub")], "levels/ceil")
    return graph.node("Concat", [grey, outline], "levels/concat", axis=1)


def _embedding(graph: NetBuilder, x: str) -> str:
    x = graph.conv_nd(x, "stem/conv", (2, _STEM), (3, 3))
    x = graph.node("Elu", [x], "stem/elu")
    x = graph.node("MaxPool", [x], "stem/pool", kernel_shape=[2, 2], strides=[2, 2])
    x = graph.conv_nd(x, "wide/conv", (_STEM, _WIDE), (3, 3))
    x = graph.node("Elu", [x], "wide/elu")
    x = graph.node("AveragePool", [x], "wide/pool", kernel_shape=[2, 2], strides=[2, 2])
    x = graph.node("Flatten", [x], "flatten", axis=1)
    x = graph.dense(x, "embed", (4 * _WIDE, _EMBEDDED))
    return graph.node("Tanh", [x], "embed/tanh")


def network(graph: NetBuilder, image: str, *, learning: bool) -> dict[str, str]:
    """Write the network; the tensors of its outputs by name."""
    x = _embedding(graph, _levels(graph, image))
    if not learning:
        # As exporters leave it behind: without effect outside of training.
        x = graph.node("Identity", [graph.node("Dropout", [x], "embed/dropout")], "embed/identity")
    x = graph.with_axes("Unsqueeze", x, "distance/unsqueeze", [1])
    x = graph.node("Tile", [x, graph.indexes("distance/times", [1, _PROTOTYPES, 1])], "distance/tile")
    table = graph.weight("prototypes", lambda: graph.normal((_PROTOTYPES, _EMBEDDED), 0.5))
    apart = graph.node("Sub", [x, table], "distance/sub")
    squares = graph.node("Mul", [apart, apart], "distance/mul")
    distance = graph.with_axes("ReduceSum", squares, "distance/sum", [2], keepdims=0)
    quarter = graph.scalar("similarity/width", 0.25)
    negative = graph.node("Neg", [graph.node("Mul", [distance, quarter], "similarity/mul")], "similarity/neg")
    similarity = graph.node("Exp", [negative], "similarity/exp")
    logits = graph.dense(similarity, "head", (_PROTOTYPES, CLASSES))
    if learning:
        return {OUTPUT_NAME: logits}
    root = graph.node("Sqrt", [distance], "nearest/sqrt")
    return {
        OUTPUT_NAME: logits,
        "nearest": graph.node("ArgMin", [distance], "nearest/index", axis=1, keepdims=0),
        "far": graph.with_axes("ReduceMin", root, "nearest/far", [1], keepdims=0),
    }


def _model(opset: int, weights: Weights | None) -> tuple[NetBuilder, onnx.ModelProto]:
    graph = NetBuilder(opset, weights=weights)
    ports = {
        OUTPUT_NAME: Port(("N", CLASSES)),
        "nearest": Port(("N",), TensorProto.INT64),
        "far": Port(("N",)),
    }
    found = network(graph, INPUT_NAME, learning=weights is None)
    ends = {name: (tensor, ports[name]) for name, tensor in found.items()}
    return graph, graph.assemble(NAME, {INPUT_NAME: Port(("N", *IMAGE_SHAPE))}, ends)


def make(split: DigitsSplit, directory: Path) -> list[Path]:
    """Train it and write it at all its opsets."""
    rng = np.random.default_rng(0)
    images = [split.train_images, *(distort(split.train_images, rng) for _ in range(_COPIES))]
    arrays = {INPUT_NAME: np.concatenate(images), "labels": np.tile(split.train_labels, len(images))}
    weights = train_float(*_model(_TRAINING_OPSET, None), RECIPE, arrays)
    return [save(_model(opset, weights)[1], NAME, opset, OPSETS, directory) for opset in OPSETS]
