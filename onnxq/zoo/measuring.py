"""One entry of a zoo: quantized, saved, scored, timed."""

from __future__ import annotations

import hashlib
import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from onnxq.ascend import simulate_model
from onnxq.calib.readers import DataLike, as_reader, rechunk
from onnxq.errors import ManifestError, OnnxqError
from onnxq.graph import GraphModel
from onnxq.modelio import load_model
from onnxq.observers import find_named
from onnxq.pipeline import Result, quantize
from onnxq.recipe import Recipe
from onnxq.report.files import disk_bytes, model_files
from onnxq.report.latency import measure
from onnxq.result import twin_path
from onnxq.runtime import make_session
from onnxq.tune.evaluation import Evaluation, Scorer
from onnxq.zoo.matrix import Data, Entry
from onnxq.zoo.recipes import recipe_for
from onnxq.zoo.tolerances import SCORES

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """What became of one entry.

    Attributes:
        model: Name of the model.
        recipe: Name of the recipe.
        status: Whether it was measured, failed, or could not be run here.
        message: Why, where it was not measured.
        details: Where in the code it failed, for failures that are not about the user's input.
        metrics: The quantized model's numbers by metric.
        reference: The float model's, where it has its own.
        times: Ratios of times by metric.
        sha256: Of the bytes of all files of the quantized model.
        notes: What a user should know, a sentence each.
        seconds: Time it took.
    """

    model: str
    recipe: str
    status: Status
    message: str = ""
    details: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    reference: Mapping[str, float] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)
    sha256: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """``model/recipe``."""
        return f"{self.model}/{self.recipe}"

    @property
    def values(self) -> dict[str, float]:
        """All numbers by metric, times as well."""
        return {**self.metrics, **self.times}

    def to_dict(self) -> dict[str, object]:
        """Content for JSON; what two runs differ in is in ``timings``."""
        return {
            "model": self.model,
            "recipe": self.recipe,
            "status": self.status,
            "message": self.message,
            "metrics": {key: number(value) for key, value in self.metrics.items()},
            "reference": {key: number(value) for key, value in self.reference.items()},
            "sha256": self.sha256,
            "notes": list(self.notes),
            "timings": {**{key: number(v) for key, v in self.times.items()}, "seconds": round(self.seconds, 3)},
        }

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Outcome:
        """Read back what `to_dict` wrote.

        Raises:
            KeyError: If something is missing.
            ValueError: If something is no number.
        """
        timings = {key: float(value) for key, value in content["timings"].items()}
        seconds = timings.pop("seconds", 0.0)
        return Outcome(
            str(content["model"]), str(content["recipe"]), cast("Status", content["status"]), str(content["message"]),
            metrics={key: float(value) for key, value in content["metrics"].items()},
            reference={key: float(value) for key, value in content["reference"].items()},
            times=timings, sha256=str(content["sha256"]), notes=tuple(content["notes"]), seconds=seconds,
        )  # fmt: skip


def number(value: float) -> float | str:
    """A number for JSON, which has no infinities: ``"inf"``, ``"-inf"``, ``"nan"`` as `float` reads them."""
    return value if math.isfinite(value) else str(value)


class Bench:
    """Measures entries one after the other; keeps what those of one model share.

    Args:
        folder: Where quantized models are written, as ``model/recipe.onnx``.
        threads: Threads of ONNX Runtime; they do not change what is measured, but times.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self._folder = folder
        self._threads = threads
        self._model = ""
        self._scorers: dict[tuple[object, ...], Scorer] = {}

    def measure(self, entry: Entry) -> Outcome:
        """Measure one entry; whatever fails is told in what is returned.

        Args:
            entry: The entry.
        """
        if entry.skipped:
            return Outcome(entry.model, entry.recipe, "skipped", entry.skipped)
        start = time.perf_counter()
        try:
            found = self._measured(entry)
        except OnnxqError as err:
            found = Outcome(entry.model, entry.recipe, "failed", str(err))
        except Exception as err:  # noqa: BLE001 - a defect met by one entry does not keep the others from being measured
            message = f"{type(err).__name__}: {err}".rstrip(": ")
            found = Outcome(entry.model, entry.recipe, "failed", message, traceback.format_exc())
        return replace(found, seconds=time.perf_counter() - start)

    def _measured(self, entry: Entry) -> Outcome:
        if entry.model != self._model:
            self._model = entry.model
            self._scorers.clear()
        recipe = recipe_for(entry)
        calibration = None if entry.calibration is None else opened(entry.calibration)
        result = quantize(entry.file, calibration, recipe=recipe, threads=self._threads)
        path = self._folder / entry.model / f"{entry.recipe}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        result.save(path)
        executed = _executable(path)
        metrics: dict[str, float] = {}
        reference: dict[str, float] = {}
        for metric in entry.settings.metrics:
            scorer = self._scorer(entry, metric)
            metrics[metric] = scorer.score(executed)
            if math.isfinite(scorer.reference):
                reference[metric] = scorer.reference
        metrics["size"] = float(disk_bytes(path))
        reference["size"] = float(disk_bytes(entry.file))
        metrics["quantized"] = float(result.plan.counts().get("quantized", 0))
        times = self._times(entry, recipe, result, executed) if entry.settings.timings else {}
        return Outcome(
            entry.model, entry.recipe, "ok", metrics=metrics, reference=reference, times=times,
            sha256=_digest(path), notes=result.notes,
        )  # fmt: skip

    def _scorer(self, entry: Entry, metric: str) -> Scorer:
        """What scores models by a metric; the float model is run once for all recipes."""
        settings = entry.settings
        key = (metric, settings.eval_samples, settings.batch, settings.kernels)
        if key not in self._scorers:
            function = metric if metric in SCORES else str(entry.folder / metric)
            evaluation = Evaluation(
                opened(entry.evaluation), metric=function, labels=_labels(entry.labels, metric),
                preprocess=entry.preprocess, bin_layout=entry.bin_layout, samples=settings.eval_samples,
                batch=settings.batch, threads=self._threads, optimize=settings.kernels == "fused",
            )  # fmt: skip
            self._scorers[key] = evaluation.prepare(load_model(entry.file))
        return self._scorers[key]

    def _times(self, entry: Entry, recipe: Recipe, result: Result, executed: GraphModel) -> dict[str, float]:
        """Calibration over bare runs of the same samples, latency over the float model's."""
        session = make_session(entry.file, threads=self._threads, source=str(entry.file))
        found: dict[str, float] = {}
        calibrating = sum(r.seconds for r in result.reports if r.name.startswith("Calibrate"))
        inputs = session.inputs
        if entry.calibration is not None and calibrating:
            reading = recipe.calibration
            reader = as_reader(
                opened(entry.calibration), inputs, preprocess=reading.preprocess, layout=reading.bin_layout,
                samples=reading.samples,
            )  # fmt: skip
            start = time.perf_counter()
            bare = make_session(entry.file, threads=self._threads, source=str(entry.file))
            for _, feed in rechunk(reader, reading.batch_size or entry.settings.batch, inputs):
                bare.run(None, feed)
            found["calibration_ratio"] = calibrating / (time.perf_counter() - start)
        data = as_reader(opened(entry.evaluation), inputs, preprocess=entry.preprocess, layout=entry.bin_layout)
        _, first = next(iter(rechunk(data, 1, inputs)))
        quantized = make_session(executed, threads=self._threads, source=f"{entry.name}, quantized")
        seconds = entry.settings.latency_seconds
        found["latency_ratio"] = measure(session, quantized, first, threads=self._threads, seconds=seconds).ratio
        return found


def opened(data: Data) -> DataLike:
    """Data as `onnxq.quantize` takes them.

    Args:
        data: What a manifest names; a function is called.

    Raises:
        ManifestError: If the function fails.
        RecipeError: If there is no such function.
    """
    if not isinstance(data, str):
        return data
    function = find_named(data, "data", "function")
    try:
        return cast("DataLike", function())
    except Exception as err:
        raise ManifestError(f"data {data}: {type(err).__name__}: {err}") from err


def _labels(path: Path | None, metric: str) -> Path | NDArray[Any] | None:
    """The labels' file where a metric compares with it; for a function of the user's its array, of any shape."""
    if path is None or (metric in SCORES and metric != "top1"):
        return None
    if metric in SCORES or path.suffix.lower() != ".npy":
        return path
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        raise ManifestError(f"labels {path}: cannot be read: {err}") from err
    return cast("NDArray[Any]", found)


def _executable(path: Path) -> GraphModel:
    """What of a saved model runs here: itself, or exact integer sums in the place of operators for Ascend."""
    graph = load_model(path)
    ascend = any(str(node.op).startswith("Ascend") for node in graph.nodes())
    return simulate_model(path).graph if ascend else graph


def _digest(path: Path) -> str:
    """sha256 of the bytes of all files of a model, its twin's as well."""
    content = hashlib.sha256()
    for model in (path, twin_path(path)):
        if model.exists():
            for file in model_files(model):
                content.update(file.read_bytes())
    return content.hexdigest()
