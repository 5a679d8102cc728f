# SPDX-License-Identifier: Apache-2.0
"""tones_conv1d: tells short sounds apart by convolutions over time, with ever wider steps between their taps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from builder import Weights
from digits_data import DigitsSplit
from float_training import FloatRecipe, train_float
from image_classifier import save
from net_builder import NetBuilder, Port
from tones_data import KINDS, LENGTH, calibration_sounds, held_out_sounds, training_sounds

NAME = "tones_conv1d"
OPSETS = (21, 13)
RECIPE = FloatRecipe(epochs=10, learning_rate=5e-3, batch_size=64)

_TRAINING_OPSET = 17
_STEM, _WIDE = 16, 32
_CONVERTER_STEPS = 32.0
_DILATIONS = (2, 4, 8)


def _conv_bn(
    graph: NetBuilder, x: str, name: str, channels: tuple[int, int], size: int, *, stride: int = 1, dilation: int = 1
) -> str:
    y = graph.conv_nd(x, f"{name}/conv", channels, (size,), stride=stride, dilation=dilation, bias=False)
    return graph.batch_norm(y, f"{name}/bn", channels[1])


def _separable(graph: NetBuilder, x: str, name: str, channels: int, dilation: int) -> str:
    """A convolution of each channel and one across them, beside a way past both."""
    y = graph.conv_nd(x, f"{name}/depthwise/conv", (channels, channels), (5,), dilation=dilation, group=channels)
    y = graph.relu(graph.batch_norm(y, f"{name}/depthwise/bn", channels), f"{name}/depthwise/relu")
    y = _conv_bn(graph, y, f"{name}/pointwise", (channels, channels), 1)
    return graph.node("Elu", [graph.add(y, x, f"{name}/add")], f"{name}/elu", alpha=1.0)


def network(graph: NetBuilder, signal: str) -> str:
    """Write the network from the input to the logits."""
    steps = graph.scalar("converter/steps", _CONVERTER_STEPS)
    x = graph.node("Mul", [signal, steps], "converter/mul")
    x = graph.node("Div", [graph.node("Floor", [x], "converter/floor"), steps], "converter/div")
    x = graph.node("LeakyRelu", [_conv_bn(graph, x, "stem", (1, _STEM), 9, stride=2)], "stem/leaky_relu", alpha=0.1)
    x = graph.node("MaxPool", [x], "stem/pool", kernel_shape=[2], strides=[2])
    x = graph.relu(_conv_bn(graph, x, "widen", (_STEM, _WIDE), 5), "widen/relu")
    for dilation in _DILATIONS:
        x = _separable(graph, x, f"block{dilation}", _WIDE, dilation)
    mean = graph.node("GlobalAveragePool", [x], "pool/mean")
    largest = graph.node("GlobalMaxPool", [x], "pool/largest")
    both = graph.node("Concat", [mean, largest], "pool/concat", axis=1)
    flat = graph.node("Flatten", [both], "flatten", axis=1)
    return graph.dense(flat, "head", (2 * _WIDE, len(KINDS)))


def _model(opset: int, weights: Weights | None) -> tuple[NetBuilder, onnx.ModelProto]:
    graph = NetBuilder(opset, weights=weights)
    logits = network(graph, "signal")
    ends = {"logits": (logits, Port(("N", len(KINDS))))}
    return graph, graph.assemble(NAME, {"signal": Port(("N", 1, LENGTH))}, ends)


def make(split: DigitsSplit, directory: Path) -> list[Path]:
    """Train it and write it and its data; the digits take no part."""
    del split
    train, test = training_sounds(), held_out_sounds()
    arrays = {"signal": train.signal, "labels": train.kind}
    weights = train_float(*_model(_TRAINING_OPSET, None), RECIPE, arrays)
    data = directory / "data"
    np.savez_compressed(data / "tones_calib.npz", signal=calibration_sounds().signal)
    np.savez_compressed(data / "tones_test.npz", signal=test.signal)
    np.save(data / "tones_test_labels.npy", test.kind)
    return [save(_model(opset, weights)[1], NAME, opset, OPSETS, directory) for opset in OPSETS]
