# SPDX-License-Identifier: Apache-2.0
"""Trains and exports classifiers of digits that are written with the larger builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from augment import distort
from builder import INPUT_NAME, OUTPUT_NAME, Weights
from digits_data import CLASSES, IMAGE_SHAPE, DigitsSplit
from float_training import FloatRecipe, train_float
from net_builder import NetBuilder, Port

_TRAINING_OPSET = 17
_COPIES = 8


def make_classifier(
    name: str,
    network: Callable[[NetBuilder, str], str],
    recipe: FloatRecipe,
    opsets: tuple[int, ...],
    split: DigitsSplit,
    directory: Path,
) -> list[Path]:
    """Train a network that gives logits of pictures, and write it at all its opsets, the canonical one first."""

    def model(opset: int, weights: Weights | None) -> tuple[NetBuilder, onnx.ModelProto]:
        graph = NetBuilder(opset, weights=weights)
        logits = network(graph, INPUT_NAME)
        ends = {OUTPUT_NAME: (logits, Port(("N", CLASSES)))}
        return graph, graph.assemble(name, {INPUT_NAME: Port(("N", *IMAGE_SHAPE))}, ends)

    rng = np.random.default_rng(0)
    images = [split.train_images, *(distort(split.train_images, rng) for _ in range(_COPIES))]
    arrays = {INPUT_NAME: np.concatenate(images), "labels": np.tile(split.train_labels, len(images))}
    weights = train_float(*model(_TRAINING_OPSET, None), recipe, arrays)
    return [save(model(opset, weights)[1], name, opset, opsets, directory) for opset in opsets]


def save(model: onnx.ModelProto, name: str, opset: int, opsets: tuple[int, ...], directory: Path) -> Path:
    """Write a model under its name; other opsets than the first one are in the name of the file."""
    path = directory / (f"{name}.onnx" if opset == opsets[0] else f"{name}_opset{opset}.onnx")
    onnx.save(model, path)
    return path
