# SPDX-License-Identifier: Apache-2.0
"""ink_unet: finds the ink of a digit behind stripes, shades and noise.

A U-net whose ways down and up are all different: SpaceToDepth, MaxPool and AveragePool down, ConvTranspose, Resize
and DepthToSpace up, with a Concat of what was kept at every size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from builder import Weights
from digits_data import DigitsSplit
from float_training import FloatRecipe, train_float
from image_classifier import save
from ink_data import SIZE, calibration_pictures, held_out_pictures, training_pictures
from net_builder import NetBuilder, Port

NAME = "ink_unet"
OPSETS = (11, 17)
RECIPE = FloatRecipe(epochs=14, learning_rate=4e-3, loss="bce", batch_size=64)

_TRAINING_OPSET = 17
_ROI_OPTIONAL_SINCE = 13
_STEM, _LOW, _LOWER, _LOWEST = 12, 16, 24, 32


def _block(graph: NetBuilder, x: str, name: str, channels: tuple[int, int]) -> str:
    y = graph.conv_nd(x, f"{name}/conv", channels, (3, 3), bias=False)
    return graph.relu(graph.batch_norm(y, f"{name}/bn", channels[1]), f"{name}/relu")


def _stem(graph: NetBuilder, picture: str) -> str:
    """Mirrored at its edges, so that there is no frame."""
    pads = graph.indexes("stem/pad/pads", [0, 0, 1, 1, 0, 0, 1, 1])
    x = graph.node("Pad", [picture, pads], "stem/pad", mode="reflect")
    weight = graph.weight("stem/conv/weight", lambda: graph.normal((_STEM, 1, 3, 3), 0.5))
    x = graph.node("Conv", [x, weight], "stem/conv", kernel_shape=[3, 3])
    gamma = graph.weight("stem/norm/gamma", lambda: np.ones(_STEM))
    beta = graph.weight("stem/norm/beta", lambda: np.zeros(_STEM))
    x = graph.node("InstanceNormalization", [x, gamma, beta], "stem/norm", epsilon=1e-5)
    return graph.node("LeakyRelu", [x], "stem/leaky_relu", alpha=0.1)


def _twice(graph: NetBuilder, x: str, name: str) -> str:
    scales = graph.constant(f"{name}/scales", np.asarray([1, 1, 2, 2], dtype=np.float32))
    roi = "" if graph.opset >= _ROI_OPTIONAL_SINCE else graph.constant(f"{name}/roi", np.zeros(0, np.float32))
    return graph.node("Resize", [x, roi, scales], name, mode="linear", coordinate_transformation_mode="half_pixel")


def network(graph: NetBuilder, picture: str) -> str:
    """Write the network from the input to the logits of ink."""
    whole = _stem(graph, picture)
    x = graph.node("SpaceToDepth", [whole], "down1/space_to_depth", blocksize=2)
    half = _block(graph, x, "down1", (4 * _STEM, _LOW))
    x = graph.node("MaxPool", [half], "down2/pool", kernel_shape=[2, 2], strides=[2, 2])
    quarter = _block(graph, x, "down2", (_LOW, _LOWER))
    x = graph.node("AveragePool", [quarter], "down3/pool", kernel_shape=[2, 2], strides=[2, 2])
    x = _block(graph, x, "down3", (_LOWER, _LOWEST))
    x = graph.conv_transpose(x, "up3/conv_transpose", (_LOWEST, _LOWER), 2)
    x = graph.node("Concat", [x, quarter], "up3/concat", axis=1)
    x = _block(graph, x, "up3", (2 * _LOWER, _LOWER))
    x = _twice(graph, x, "up2/resize")
    x = graph.node("Concat", [x, half], "up2/concat", axis=1)
    x = _block(graph, x, "up2", (_LOWER + _LOW, _LOW))
    x = graph.conv_nd(x, "up1/expand", (_LOW, 4 * _STEM), (1, 1))
    x = graph.node("DepthToSpace", [x], "up1/depth_to_space", blocksize=2)
    x = graph.node("Concat", [x, whole], "up1/concat", axis=1)
    x = _block(graph, x, "up1", (2 * _STEM, _STEM))
    return graph.conv_nd(x, "head", (_STEM, 1), (1, 1))


def _model(opset: int, weights: Weights | None) -> tuple[NetBuilder, onnx.ModelProto]:
    """The model; while it is trained, without its Sigmoid, which belongs to the loss."""
    graph = NetBuilder(opset, weights=weights)
    ink = network(graph, "picture")
    if weights is not None:
        ink = graph.node("Sigmoid", [ink], "sigmoid")
    port = Port(("N", 1, SIZE, SIZE))
    return graph, graph.assemble(NAME, {"picture": port}, {"ink": (ink, port)})


def make(split: DigitsSplit, directory: Path) -> list[Path]:
    """Train it and write it and its data."""
    train, test = training_pictures(split), held_out_pictures(split)
    arrays = {"picture": train.picture, "labels": train.ink.astype(np.float32)}
    weights = train_float(*_model(_TRAINING_OPSET, None), RECIPE, arrays)
    data = directory / "data"
    np.savez_compressed(data / "ink_calib.npz", picture=calibration_pictures(split).picture)
    np.savez_compressed(data / "ink_test.npz", picture=test.picture)
    np.save(data / "ink_test_labels.npy", test.ink)
    return [save(_model(opset, weights)[1], NAME, opset, OPSETS, directory) for opset in OPSETS]
