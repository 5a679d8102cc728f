# SPDX-License-Identifier: Apache-2.0
"""digits_lstm: reads a digit row by row in both directions; its decision rests on the largest state over time."""

from __future__ import annotations

from pathlib import Path

from digits_data import CLASSES, DigitsSplit
from float_training import FloatRecipe
from image_classifier import make_classifier
from net_builder import NetBuilder

NAME = "digits_lstm"
OPSETS = (13, 11)
RECIPE = FloatRecipe(epochs=14, learning_rate=6e-3)

_SIZE = 8
_HIDDEN = 32


def network(graph: NetBuilder, image: str) -> str:
    """Write the network from the input to the logits."""
    rows = graph.with_axes("Squeeze", image, "rows/squeeze", [1])
    rows = graph.transpose(rows, "rows/time_first", (1, 0, 2))
    states = graph.recurrent(rows, "lstm", "LSTM", (_SIZE, _HIDDEN), bidirectional=True)
    largest = graph.with_axes("ReduceMax", states, "states/largest", [0], keepdims=0)
    last = graph.node("Add", [largest, "lstm/h"], "states/add")
    merged = graph.transpose(last, "states/batch_first", (1, 0, 2))
    merged = graph.reshape(merged, "states/merge", [0, 2 * _HIDDEN])
    return graph.dense(merged, "head", (2 * _HIDDEN, CLASSES))


def make(split: DigitsSplit, directory: Path) -> list[Path]:
    """Train it and write it at all its opsets."""
    return make_classifier(NAME, network, RECIPE, OPSETS, split, directory)
