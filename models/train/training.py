# SPDX-License-Identifier: Apache-2.0
"""Runs one training job in a child process and brings the weights back."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from builder import GraphBuilder, Weights
from digits_data import CLASSES, IMAGE_SHAPE, DigitsSplit
from overlay import ensure_overlay

_WORKER = Path(__file__).with_name("train_worker.py")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW with a cosine schedule on distorted images."""

    epochs: int
    learning_rate: float
    batch_size: int = 32
    seed: int = 0


def train(graph: GraphBuilder, name: str, recipe: Recipe, split: DigitsSplit) -> Weights:
    """Train a network built in training form.

    Args:
        graph: The network, with its initial weights.
        name: Name of the network.
        recipe: The training settings.
        split: The data; only its training part is used.

    Returns:
        All weights, including running statistics, by tensor name.

    Raises:
        RuntimeError: If the training process fails.
    """
    model = graph.build(name, IMAGE_SHAPE, CLASSES)
    overlay = ensure_overlay()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        onnx.save(model, directory / "model.onnx")
        np.savez(directory / "data.npz", images=split.train_images, labels=split.train_labels)
        job = {
            "trainable": graph.trainable,
            "running_stats": graph.running_stats,
            "epochs": recipe.epochs,
            "learning_rate": recipe.learning_rate,
            "batch_size": recipe.batch_size,
            "seed": recipe.seed,
        }
        (directory / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, str(_WORKER), str(overlay), str(directory)]
        if subprocess.run(command, check=False).returncode != 0:
            raise RuntimeError(f"training of {name} failed; see the messages above")
        with np.load(directory / "weights.npz") as trained:
            return {key: np.asarray(trained[key], dtype=np.float32) for key in trained.files}
