# SPDX-License-Identifier: Apache-2.0
"""What the bundled models are measured by; each function can be a metric of `onnxq tune` and `onnxq zoo`.

All take the outputs of all samples, concatenated, and the labels; higher is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[Any]]


def accuracy(outputs: Outputs, labels: NDArray[Any]) -> float:
    """Share of samples whose largest logit is that of their label.

    Args:
        outputs: ``logits``, [N, classes].
        labels: Class indexes, [N].
    """
    return float((outputs["logits"].argmax(axis=1) == labels).mean())
