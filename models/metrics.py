# SPDX-License-Identifier: Apache-2.0
"""What the bundled models are measured by; each function can be a metric of `onnxq tune` and `onnxq zoo`.

All take the outputs of all samples, concatenated, and the labels; higher is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[Any]]


def accuracy(outputs: Outputs, labels: NDArray[Any]) -> float:
    """Share of samples whose largest logit is that of their label.

    Args:
        outputs: ``logits``, [N, classes].
        labels: Class indexes, [N].
    """
    return float((outputs["logits"].argmax(axis=1) == labels).mean())


def likelihood(outputs: Outputs, labels: NDArray[Any]) -> float:
    """Mean logarithm, base 2, of the probability of the token that follows: minus the bits per token.

    Args:
        outputs: ``logits``, [N, tokens, vocabulary].
        labels: The tokens that follow, [N, tokens].
    """
    logits = outputs["logits"].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    right = np.take_along_axis(logits, labels[..., np.newaxis], axis=-1)[..., 0]
    return float((right - np.log(np.exp(logits).sum(axis=-1))).mean() / np.log(2))
