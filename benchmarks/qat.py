"""Quantization-aware training: accuracy against post-training quantization, and speed against float training.

Every digits model, and the residual one on a harder task (noisy, shifted digits, trained in float first), at several
widths and with several seeds: accuracy of the float model, of onnxq's post-training quantization and of the trained
quantized model. All of a row comes from the same process; the quantized models run in ONNX Runtime as written.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import tools
from numpy.typing import NDArray

import onnxq
from onnxq.qat.artifacts import create
from onnxq.qat.save import quantized, trained_values
from onnxq.qat.trainer import QatTrainer, TrainOptions

MODELS = Path(__file__).parents[1] / "models"
WIDTHS = {"A8W8": (8, 8), "A8W4": (8, 4), "A4W4": (4, 4), "A4W2": (4, 2)}
"""Bits of activations and of weights."""
SEEDS = (0, 1, 2)
OPTIONS = TrainOptions(epochs=12, batch_size=32, learning_rate=2e-3)
FEW_BITS = replace(OPTIONS, epochs=60, learning_rate=1e-2)
"""Weights of 2 bits need longer, and larger steps."""
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """A float model and its data."""

    name: str
    model: Path
    train: Arrays
    test: Arrays

    @property
    def calibration(self) -> Arrays:
        """Samples for calibration: some of those for training."""
        return {"image": self.train["image"][:300]}


def digits() -> tuple[Arrays, Arrays]:
    """The digits for training and for test."""
    with np.load(MODELS / "data" / "digits_train.npz") as content:
        train = {name: content[name] for name in content.files}
    with np.load(MODELS / "data" / "digits_test.npz") as content:
        test = {"image": content["image"], "labels": np.load(MODELS / "data" / "digits_test_labels.npy")}
    return train, test


def harder(data: Arrays, copies: int, seed: int) -> Arrays:
    """Digits shifted by up to two pixels, with noise, `copies` times."""
    rng = np.random.default_rng(seed)
    images = np.concatenate([data["image"]] * copies)
    moved = np.zeros_like(images)
    for number, (rows, columns) in enumerate(rng.integers(-2, 3, (len(images), 2))):
        moved[number, 0] = _shifted(images[number, 0], int(rows), int(columns))
    noisy = np.clip(moved + rng.normal(0, 0.2, moved.shape), 0, 1).astype(np.float32)
    return {"image": noisy, "labels": np.concatenate([data["labels"]] * copies)}


def _shifted(image: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    padded = np.pad(image, 2)
    return padded[2 + rows : 2 + rows + image.shape[0], 2 + columns : 2 + columns + image.shape[1]]


def tasks(folder: Path, names: Sequence[str]) -> list[Task]:
    """The digits models that exist, and the harder task, whose float model is trained here."""
    train, test = digits()
    found = [Task(name, MODELS / f"{name}.onnx", train, test) for name in names]
    hard_train, hard_test = harder(train, 4, seed=1), harder(test, 2, seed=2)
    artifacts = folder / "harder"
    create(MODELS / "digits_cnn.onnx", None, artifacts, quantize=False)
    QatTrainer(artifacts, replace(OPTIONS, epochs=12, learning_rate=3e-3)).fit(hard_train, evaluation=hard_test)
    model = quantized(artifacts, trained_values(artifacts)).save(folder / "harder.onnx")
    return [*found, Task("digits_cnn, noise and shifts", model, hard_train, hard_test)]


def accuracy(model: onnx.ModelProto, data: Arrays) -> float:
    """Part of the samples whose class is right, with the model run as it is written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    logits = session.run(None, {"image": data["image"]})[0]
    return float((logits.argmax(1) == data["labels"]).mean())


def recipe_of(bits: tuple[int, int], seed: int) -> dict[str, object]:
    """Per channel, with the first and last layer at 8 bits only where all are."""
    activations, weights = bits
    return {
        "activations": {"bits": activations, "type": "uint8"},
        "weights": {"bits": weights, "type": "int8", "narrow": weights > 2},
        "calibration": {"seed": seed},
    }


@dataclass(frozen=True)
class Outcome:
    """Accuracies of one width, for each seed."""

    float_: float
    after: tuple[float, ...]
    trained: tuple[float, ...]
    seconds: float


def measure(task: Task, bits: tuple[int, int], folder: Path) -> Outcome:
    """Quantize after training, and train, once for each seed."""
    after, trained = [], []
    begun = time.perf_counter()
    for seed in SEEDS:
        recipe = recipe_of(bits, seed)
        some = {"image": np.random.default_rng(seed).permutation(task.train["image"])[:300]}
        after.append(accuracy(onnxq.quantize(task.model, some, recipe=recipe).model, task.test))
        artifacts = folder / f"{task.name}-{bits}-{seed}"
        create(task.model, some, artifacts, recipe=recipe)
        options = FEW_BITS if bits[1] <= 2 else OPTIONS
        QatTrainer(artifacts, replace(options, seed=seed)).fit(task.train)
        trained.append(accuracy(quantized(artifacts, trained_values(artifacts)).model, task.test))
    seconds = (time.perf_counter() - begun) / len(SEEDS)
    return Outcome(accuracy(onnx.load(task.model), task.test), tuple(after), tuple(trained), seconds)


def told(values: Sequence[float]) -> str:
    """Mean and spread (standard deviation) in percent."""
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.pstdev(values):.2f}"


def speeds(task: Task, folder: Path, rounds: int = 3) -> dict[str, float]:
    """Samples per second of training in the same worker, float and quantized in turn; medians."""
    made = {"float": folder / "speed-float", "A8W8": folder / "speed-8", "A4W4": folder / "speed-4"}
    create(task.model, None, made["float"], quantize=False)
    create(task.model, task.calibration, made["A8W8"], recipe=recipe_of((8, 8), 0))
    create(task.model, task.calibration, made["A4W4"], recipe=recipe_of((4, 4), 0))
    found: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, artifacts in made.items():
            rows = QatTrainer(artifacts, replace(OPTIONS, epochs=2)).fit(task.train)
            found[name].append(rows[-1].samples_per_second)
    return {name: statistics.median(values) for name, values in found.items()}


def processes(task: Task, folder: Path) -> Mapping[int, tuple[float, float]]:
    """Accuracy and samples per second with one and with two processes."""
    found = {}
    for count in (1, 2):
        artifacts = folder / f"ranks-{count}"
        create(task.model, task.calibration, artifacts, recipe=recipe_of((4, 4), 0))
        rows = QatTrainer(artifacts, replace(OPTIONS, processes=count)).fit(task.train)
        model = quantized(artifacts, trained_values(artifacts)).model
        found[count] = (accuracy(model, task.test), statistics.median(r.samples_per_second for r in rows))
    return found


def accuracies(chosen: Sequence[Task], folder: Path, *, quick: bool) -> tools.Table:
    """A row for each task and width."""
    rows: list[tools.Row] = []
    widths = {"A4W4": WIDTHS["A4W4"]} if quick else WIDTHS
    for task in chosen:
        for width, bits in widths.items():
            found = measure(task, bits, folder)
            row: tools.Row = {"model": task.name, "width": width, "float %": 100 * found.float_}
            row |= {"after training %": told(found.after), "trained %": told(found.trained), "s": found.seconds}
            rows.append(row)
    told_options = f"{OPTIONS.epochs} epochs, AdamW, {OPTIONS.learning_rate:g}"
    few = f"2 bits: {FEW_BITS.epochs} epochs, {FEW_BITS.learning_rate:g}"
    notes = [f"mean and standard deviation of {len(SEEDS)} seeds; {told_options}; {few}"]
    return tools.Table("Accuracy of quantized digits models", rows, notes)


def training_speed(chosen: Sequence[Task], folder: Path, rounds: int) -> tools.Table:
    """A row for each task."""
    rows: list[tools.Row] = []
    for task in chosen:
        found = speeds(task, folder, rounds)
        row: tools.Row = {"model": task.name} | {f"{name}, samples/s": value for name, value in found.items()}
        rows.append(row | {f"{name} / float": found[name] / found["float"] for name in ("A8W8", "A4W4")})
    return tools.Table("Training speed, one process of one thread", rows)


def data_parallel(task: Task, folder: Path) -> tools.Table:
    """A row for each number of processes."""
    found = processes(task, folder)
    rows: list[tools.Row] = [
        {"processes": count, "accuracy %": 100 * right, "samples/s": speed} for count, (right, speed) in found.items()
    ]
    return tools.Table(f"Data-parallel training of {task.name}, A4W4", rows)


def run(options: tools.Options) -> list[tools.Table]:
    """All tables."""
    names = [n for n in ("digits_cnn", "digits_mobilenet", "digits_transformer") if options.wants(n)]
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        folder = Path(name)
        chosen = tasks(folder, names)
        return [
            accuracies(chosen, folder, quick=options.quick),
            training_speed(chosen, folder, 1 if options.quick else options.rounds),
            data_parallel(chosen[0], folder),
        ]


if __name__ == "__main__":
    tools.main([run], __doc__)
