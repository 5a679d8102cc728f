"""One run of ``onnxq sensitivity``: from files to a ranking, and to files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.pipeline import Progress
from onnxq.recipe import Recipe
from onnxq.report.files import write_text
from onnxq.report.page import render
from onnxq.stages import measure
from onnxq.tune.evaluation import Evaluation
from onnxq.tune.ranking import Method, Sensitivity
from onnxq.tune.sensitivity import rank_layers
from onnxq.tune.sensitivity_page import sensitivity_page

if TYPE_CHECKING:
    from onnxq.calib.readers import DataLike


@dataclass(frozen=True)
class SensitivityJob:
    """What is to be ranked, by what, and where to.

    Attributes:
        model: The float model.
        data: Calibration data.
        recipe: How layers are quantized; it says how the data are read as well.
        method: See `onnxq.tune.ranking.Method`.
        metric: As for `Evaluation`; None: top1 where there are labels, else sqnr.
        evaluation: Data that effects are measured on; None for the calibration data.
        labels: File with the true classes of `evaluation`.
        samples: Measure effects on the first so many samples; None as for `rank_layers`.
        csv: File for the rows; None for none.
        report: HTML report to write; None for none.
        threads: Threads of ONNX Runtime; 0 for all cores.
    """

    model: Path
    data: DataLike
    recipe: Recipe
    method: Method = "first_order"
    metric: str | None = None
    evaluation: Path | None = None
    labels: Path | None = None
    samples: int | None = None
    csv: Path | None = None
    report: Path | None = None
    threads: int = 0


def run_sensitivity(job: SensitivityJob, *, progress: Progress = lambda what, done, total: None) -> Sensitivity:
    """Calibrate once, rank and report.

    Args:
        job: What to do.
        progress: Is told how far it is.

    Raises:
        OnnxqError: If the model, data, metric or recipe cannot be used, or a file cannot be written; nothing
            half-written is left.
    """
    reading = job.recipe.calibration
    metric = job.metric or ("sqnr" if job.labels is None else "top1")
    wanted: Evaluation | str = metric
    if job.evaluation is not None or job.labels is not None:
        data = job.data if job.evaluation is None else job.evaluation
        wanted = Evaluation(
            data, metric, job.labels, preprocess=reading.preprocess, bin_layout=reading.bin_layout, threads=job.threads
        )
    measured = measure(job.model, job.data, recipe=job.recipe, threads=job.threads, progress=progress)
    found = rank_layers(
        measured, wanted, method=job.method, samples=job.samples, threads=job.threads, progress=progress
    )
    if job.csv is not None:
        found.save_csv(job.csv)
    if job.report is not None:
        write_text(job.report, render(sensitivity_page(found, str(job.model), job.recipe.target)))
    return found
