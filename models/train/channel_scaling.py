# SPDX-License-Identifier: Apache-2.0
"""Makes channels badly scaled without changing what a network computes.

A channel that is multiplied by s where BatchNormalization produces it, and divided by s where
the next convolution consumes it, leaves the function as it was: a rectifier in between commutes
with a positive factor, and one clipped at 6 does so while the channel stays below the ceiling.
The factors are powers of two, which floating point multiplies exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from builder import INPUT_NAME, FloatArray, GraphBuilder, Weights
from digits_data import CLASSES, IMAGE_SHAPE
from numpy.typing import NDArray
from onnx import TensorProto, helper

# Below the ceiling with room for images that were not measured.
_CEILING_MARGIN = 0.9
_CLIPPED_EXPONENTS = (-5, 0)
_UNCLIPPED_EXPONENTS = (-2, 3)


@dataclass(frozen=True)
class ScaledPair:
    """Two layers between which channels may be rescaled.

    Attributes:
        batch_norm: Name of the normalization that produces the channels.
        activation: Tensor after the activation.
        next_weight: Weight of the convolution that consumes them.
        channel_axis: Axis of `next_weight` that runs over these channels.
        ceiling: Where the activation clips, if it does.
    """

    batch_norm: str
    activation: str
    next_weight: str
    channel_axis: int
    ceiling: float | None


def unbalance(
    graph: GraphBuilder,
    weights: Weights,
    pairs: Sequence[ScaledPair],
    images: FloatArray,
    *,
    seed: int,
) -> Weights:
    """Rescale the channels of every pair by random powers of two.

    Channels that come near the ceiling of their activation keep their scale.

    Args:
        graph: The network in inference form, with `weights`.
        weights: The trained weights.
        pairs: Where to rescale.
        images: Images on which the channels are measured.
        seed: Seed of the factors.

    Returns:
        The new weights.
    """
    maxima = _channel_maxima(graph, [pair.activation for pair in pairs], images)
    rng = np.random.default_rng(seed)
    result = dict(weights)
    for pair in pairs:
        maximum = maxima[pair.activation]
        clipped = pair.ceiling is not None
        low, high = _CLIPPED_EXPONENTS if clipped else _UNCLIPPED_EXPONENTS
        exponents = rng.integers(low, high + 1, size=maximum.shape)
        if pair.ceiling is not None:
            exponents = np.where(maximum < _CEILING_MARGIN * pair.ceiling, exponents, 0)
        factors = np.exp2(exponents).astype(np.float32)
        for part in ("gamma", "beta"):
            result[f"{pair.batch_norm}/{part}"] = result[f"{pair.batch_norm}/{part}"] * factors
        weight = result[pair.next_weight]
        shape = [1] * weight.ndim
        shape[pair.channel_axis] = -1
        result[pair.next_weight] = weight / factors.reshape(shape)
    return result


def _channel_maxima(graph: GraphBuilder, tensors: Sequence[str], images: FloatArray) -> dict[str, NDArray[np.float32]]:
    model = graph.build("probe", IMAGE_SHAPE, CLASSES)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(list(tensors), {INPUT_NAME: images})
    return {name: np.asarray(value).max(axis=(0, 2, 3)) for name, value in zip(tensors, values, strict=True)}
