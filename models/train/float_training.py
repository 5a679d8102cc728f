# SPDX-License-Identifier: Apache-2.0
"""Trains a float model as it is, with onnxq's own trainer.

What onnxruntime-training has no gradients of, such as Resize or HardSwish, onnxq rewrites for training; the
weights keep their names and go back into the model as it was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from builder import Weights
from net_builder import NetBuilder
from numpy.typing import NDArray

from onnxq.qat.artifacts import create
from onnxq.qat.overlay import install_overlay
from onnxq.qat.save import trained_values
from onnxq.qat.trainer import Progress, QatTrainer, TrainOptions


@dataclass(frozen=True)
class FloatRecipe:
    """How a model is trained: AdamW with a cosine schedule after a short warm-up.

    Attributes:
        epochs: Passes over the data.
        learning_rate: The highest one.
        loss: A loss of the training part of an onnxq recipe, or a model that computes it.
        batch_size: Samples per step.
        warmup: Steps in which the rate rises.
        output: The output that the loss is for; empty: the first.
    """

    epochs: int
    learning_rate: float
    loss: str | onnx.ModelProto = "cross_entropy"
    batch_size: int = 32
    warmup: int = 20
    output: str = ""


def train_float(
    graph: NetBuilder, model: onnx.ModelProto, recipe: FloatRecipe, arrays: Mapping[str, NDArray[Any]]
) -> Weights:
    """Train a model with freshly drawn weights.

    Args:
        graph: What the model was built with.
        model: The model.
        recipe: The training settings.
        arrays: Its inputs and the labels, by name, with a sample on each entry of the first axis.

    Returns:
        All weights, including running statistics, by tensor name.
    """
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        onnx.save(model, directory / "model.onnx")
        loss: Any = recipe.loss
        if isinstance(loss, onnx.ModelProto):
            onnx.save(loss, directory / "loss.onnx")
            loss = {"kind": "model", "path": str(directory / "loss.onnx")}
        training: dict[str, Any] = {"batchnorm": "train", "loss": loss, "freeze": graph.fixed(), "clip_grad_norm": 1.0}
        if recipe.output:
            training["output"] = recipe.output
        install_overlay()
        create(directory / "model.onnx", None, directory / "artifacts", recipe={"training": training}, quantize=False)
        options = TrainOptions(recipe.epochs, recipe.batch_size, recipe.learning_rate, warmup=recipe.warmup, threads=1)
        QatTrainer(directory / "artifacts", options).fit(arrays, report=_report)
        values = trained_values(directory / "artifacts")
    weights = dict(graph.weights)
    for name, before in graph.weights.items():
        if values[name].shape != before.shape:
            raise RuntimeError(f"{name} has shape {before.shape}, trained it has {values[name].shape}")
        weights[name] = np.asarray(values[name], dtype=np.float32)
    return weights


def _report(progress: Progress) -> None:
    print(f"epoch {progress.epoch}: loss {progress.loss:.4f}", flush=True)
