"""One run of ``onnxq quantize``: from files to files, with what there is to tell about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.errors import ModelError
from onnxq.modelio import load_model
from onnxq.passes._base import Instrument, Pass
from onnxq.pipeline import Result, quantize
from onnxq.report.anatomy_result import Spreads
from onnxq.report.debug import check_folder, write_debug
from onnxq.report.examine import examine_job
from onnxq.report.files import disk_bytes, model_files, write_text
from onnxq.report.html import quantize_report
from onnxq.report.reasons import ReasonGroup, group_reasons

if TYPE_CHECKING:
    from onnxq.calib.readers import DataLike
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel
    from onnxq.recipe import Recipe
    from onnxq.report.debug_files import DebugFiles

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be quantized, how, and where to.

    Attributes:
        model: The float model.
        output: The file to write.
        data: Calibration data; None where the recipe needs none or asks for random ones.
        recipe: What is wanted.
        report: HTML report to write; None for none.
        external_data: Whether weights go into a file of their own; None for as the model has them.
        threads: Threads of calibration; 0 for all cores.
        debug: Folder to write a debug report to; None for none. See `onnxq.write_debug`.
        workers: Calibrate on so many processes, or on those of the scheduler at this address; None for in this one.
    """

    model: Path
    output: Path
    data: DataLike | None
    recipe: Recipe
    report: Path | None = None
    external_data: bool | None = None
    threads: int = 0
    debug: Path | None = None
    workers: int | str | None = None


@dataclass(frozen=True)
class Done:
    """What became of a job.

    Attributes:
        job: The job.
        result: The quantized model.
        bytes_before: Size of the float model with its external data.
        bytes_after: Size of what was written.
        seconds: Wall time from opening the model to its last byte written.
        debug: The debug report; None where none was asked for, or nothing was quantized.
    """

    job: Job
    result: Result
    bytes_before: int
    bytes_after: int
    seconds: float
    debug: DebugFiles | None = None

    @cached_property
    def groups(self) -> tuple[ReasonGroup, ...]:
        """What stayed float, by reason."""
        return group_reasons(self.result.plan.left_float())

    @property
    def ratio(self) -> float:
        """Size after over size before."""
        return self.bytes_after / max(1, self.bytes_before)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {
            "model": str(self.job.model),
            "output": str(self.job.output),
            "report": None if self.job.report is None else str(self.job.report),
            "debug": None if self.debug is None else str(self.debug.folder),
            "target": self.job.recipe.target,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "seconds": round(self.seconds, 3),
            **self.result.to_dict(),
        }


class _Announce(Instrument):
    """Tells a progress bar which pass runs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def before_pass(self, position: int, step: Pass, graph: GraphModel, ctx: QuantContext) -> None:
        """Show the name of the pass."""
        self._progress(step.name, 0, None)


def run_job(job: Job, *, progress: Progress = lambda what, done, total: None) -> Done:
    """Quantize, save and report.

    Args:
        job: What to do.
        progress: Told how it is going.

    Raises:
        OnnxqError: If the model, data or recipe cannot be used, or a file cannot be written; nothing
            half-written is left.
    """
    start = time.perf_counter()
    _check_external(job)
    if job.debug is not None:
        check_folder(job.debug)
    spreads = Spreads()
    result = quantize(
        job.model,
        job.data,
        recipe=job.recipe,
        threads=job.threads,
        workers=job.workers,
        instruments=(_Announce(progress), *([spreads] if job.report is not None else [])),
        progress=progress,
    )
    progress("saving", 0, None)
    before = disk_bytes(job.model, result.original)
    result.save(job.output, external_data=job.external_data)
    after = disk_bytes(job.output, load_model(job.output))
    seconds = time.perf_counter() - start
    debug = None
    if job.debug is not None and result.changed:
        debug = write_debug(result, job.data, job.debug, threads=job.threads, progress=progress)
    done = Done(job, result, before, after, seconds, debug)
    if job.report is not None:
        examined = examine_job(job, result, spreads.found, progress)
        write_text(job.report, quantize_report(done, examined))
    return done


def _check_external(job: Job) -> None:
    """Refuse to overwrite the float model's own weights."""
    written = [job.output]
    if job.external_data is not False:
        written.append(job.output.with_name(job.output.name + ".data"))
    for used in model_files(job.model):
        for path in written:
            if path.exists() and used.exists() and path.samefile(used):
                raise ModelError(f"{path} holds weights of {job.model} and would be overwritten; give another output")
