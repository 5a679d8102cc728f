# SPDX-License-Identifier: Apache-2.0
"""digits_gru: two stacked GRUs that read a digit row by row, from rows embedded by a linear layer and Tanh."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from digits_data import CLASSES, DigitsSplit
from float_training import FloatRecipe
from image_classifier import make_classifier
from net_builder import NetBuilder

NAME = "digits_gru"
OPSETS = (17, 21)
RECIPE = FloatRecipe(epochs=8, learning_rate=6e-3)

_SIZE = 8
_EMBEDDED = 24
_HIDDEN = 40


def network(graph: NetBuilder, image: str) -> str:
    """Write the network from the input to the logits."""
    x = graph.reshape(image, "rows/reshape", [0, _SIZE, _SIZE])
    x = graph.linear(x, "rows/embed", (_SIZE, _EMBEDDED))
    x = graph.node("Tanh", [x], "rows/tanh")
    x = graph.transpose(x, "rows/time_first", (1, 0, 2))
    x = graph.recurrent(x, "gru1", "GRU", (_EMBEDDED, _HIDDEN), reset_after=True)
    x = graph.with_axes("Squeeze", x, "gru1/squeeze", [1])
    x = graph.recurrent(x, "gru2", "GRU", (_HIDDEN, _HIDDEN), reset_after=True)
    last = graph.constant("gru2/last/index", np.asarray(-1, dtype=np.int64))
    x = graph.node("Gather", [x, last], "gru2/last", axis=0)
    x = graph.with_axes("Squeeze", x, "gru2/squeeze", [0])
    return graph.dense(x, "head", (_HIDDEN, CLASSES))


def make(split: DigitsSplit, directory: Path) -> list[Path]:
    """Train it and write it at all its opsets."""
    return make_classifier(NAME, network, RECIPE, OPSETS, split, directory)
