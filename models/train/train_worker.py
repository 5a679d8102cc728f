# SPDX-License-Identifier: Apache-2.0
"""Trains one network; runs in its own process, with the training package first on its path.

Usage: train_worker.py OVERLAY JOB_DIR. The job directory holds `model.onnx`, `job.json` and
`data.npz`; the trained weights are written to `weights.npz` in it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, sys.argv[1])

import numpy as np
import onnx
import onnxruntime as ort
from augment import distort
from numpy.typing import NDArray

_MAX_IR_VERSION = 10


def _import_training() -> tuple[ModuleType, ModuleType]:
    """Import the training modules past the package's `__init__`, which requires torch."""
    package = ModuleType("onnxruntime.training")
    package.__path__ = [str(Path(ort.__file__).parent / "training")]
    sys.modules["onnxruntime.training"] = package
    ort.training = package
    from onnxruntime.training import api, artifacts

    return api, artifacts


def _generate_artifacts(artifacts: ModuleType, directory: Path, job: dict[str, Any]) -> None:
    model = onnx.load(directory / "model.onnx")
    # The generator logs to the file descriptor, whatever the logger's severity.
    saved = os.dup(2)
    with Path(os.devnull).open("w") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            artifacts.generate_artifacts(
                model,
                requires_grad=job["trainable"],
                frozen_params=job["running_stats"],
                loss=artifacts.LossType.CrossEntropyLoss,
                optimizer=artifacts.OptimType.AdamW,
                artifact_directory=directory,
            )
        finally:
            os.dup2(saved, 2)
            os.close(saved)
    for name in ("training_model", "eval_model", "optimizer_model"):
        path = directory / f"{name}.onnx"
        model = onnx.load(path)
        model.ir_version = min(model.ir_version, _MAX_IR_VERSION)
        if name == "eval_model":
            for node in model.graph.node:
                if node.op_type == "BatchNormalization":
                    del node.output[1:]
        onnx.save(model, path)


def _batches(
    images: NDArray[Any], labels: NDArray[Any], size: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    order = rng.permutation(len(images))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        yield distort(images[chosen], rng), labels[chosen]


def train(directory: Path) -> None:
    """Train the network of one job directory."""
    api, artifacts = _import_training()
    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    with np.load(directory / "data.npz") as data:
        images, labels = data["images"], data["labels"]
    _generate_artifacts(artifacts, directory, job)

    options = ort.SessionOptions()
    # With one thread every sum is taken in the same order, so a run can be repeated.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    state = api.CheckpointState.load_checkpoint(str(directory / "checkpoint"))
    module = api.Module(
        str(directory / "training_model.onnx"),
        state,
        str(directory / "eval_model.onnx"),
        session_options=options,
    )
    optimizer = api.Optimizer(str(directory / "optimizer_model.onnx"), module)

    rng = np.random.default_rng(job["seed"])
    size, epochs = job["batch_size"], job["epochs"]
    total = epochs * (len(images) // size)
    step = 0
    module.train()
    for epoch in range(epochs):
        losses = []
        for batch, targets in _batches(images, labels, size, rng):
            cosine = 0.5 * (1.0 + math.cos(math.pi * step / total))
            optimizer.set_learning_rate(job["learning_rate"] * cosine)
            losses.append(float(module(batch, targets)))
            optimizer.step()
            module.lazy_reset_grad()
            step += 1
        print(f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.4f}", flush=True)

    names = [*job["trainable"], *job["running_stats"]]
    trained: dict[str, Any] = {name: np.array(state.parameters[name].data) for name in names}
    np.savez(directory / "weights.npz", **trained)


if __name__ == "__main__":
    train(Path(sys.argv[2]))
