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


def right_answers(outputs: Outputs, labels: NDArray[Any]) -> float:
    """Share of questions that are answered rightly.

    Args:
        outputs: ``answer``, the probability of yes, [N, 1].
        labels: 1 for yes, of the same shape.
    """
    return float(((outputs["answer"] > 0.5) == (labels > 0)).mean())


def overlap(outputs: Outputs, labels: NDArray[Any]) -> float:
    """Pixels that are ink and found, over those that are either: intersection over union, of all pictures together.

    Args:
        outputs: ``ink``, the probability of ink, [N, 1, height, width].
        labels: 1 where there is ink, of the same shape.
    """
    found, ink = outputs["ink"] > 0.5, labels > 0
    return float((found & ink).sum() / (found | ink).sum())


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
