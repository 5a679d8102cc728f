"""Runs a float and a quantized model for what a report says of their layers and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.calib.chunks import rechunk
from onnxq.calib.feeds import Feed, InputInfo
from onnxq.calib.readers import CheckedReader, Folders, as_reader
from onnxq.errors import OnnxqError
from onnxq.graph import GraphModel, Tensor
from onnxq.modelio import load_model
from onnxq.passes._inputs import inputs_of
from onnxq.report.anatomy import Anatomy
from onnxq.report.anatomy_models import read_anatomy
from onnxq.report.anatomy_result import anatomy_of
from onnxq.report.compare import BATCH, Comparison, Options, compare, executable
from onnxq.report.distributions import Distribution, measured
from onnxq.report.layers import compare_layers

if TYPE_CHECKING:
    from onnxq.report.job import Job
    from onnxq.result import Result

SAMPLES = 32
"""Calibration samples that the outputs of a job are compared on."""
LAYER_SAMPLES = 8
"""Of these, the ones that its layers are compared on."""

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found.

    Attributes:
        anatomy: Nodes and tensors; None where the float model was not kept.
        comparison: The models beside each other; None where they could not be run.
        notes: What could not be found out and why, a sentence each.
    """

    anatomy: Anatomy | None
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExaminedPair:
    """What was found of two models that could be run.

    Attributes:
        anatomy: Nodes and tensors.
        comparison: The models beside each other.
    """

    anatomy: Anatomy
    comparison: Comparison


def examine_job(job: Job, result: Result, spreads: Mapping[str, Distribution], progress: Progress) -> Examined:
    """Compare what a job has written with its float model, on the first calibration samples.

    Args:
        job: The job.
        result: What it gave; it has been saved.
        spreads: How the values of activations are spread, from calibration.
        progress: Told how it is going.
    """
    anatomy = anatomy_of(result, spreads)
    reading = job.recipe.calibration
    if not result.changed or anatomy is None:
        return Examined(anatomy)
    if not isinstance(job.data, (str, Path, Folders)) or reading.random:
        return Examined(anatomy, notes=("the model was not run for this report: that takes samples of real data",))
    data = Path(job.data) if isinstance(job.data, str) else job.data
    options = Options(
        data, samples=SAMPLES, preprocess=reading.preprocess, threads=job.threads, bin_layout=reading.bin_layout
    )
    try:
        few = replace(options, samples=LAYER_SAMPLES)
        run = _Run(anatomy.graph, result.twin or result.graph, few, progress)
        anatomy = run.layers(run.values(anatomy))
        found = compare(job.model, job.output, options, progress=progress)
    except OnnxqError as err:
        return Examined(anatomy, notes=(f"the models could not be compared: {err}",))
    return Examined(anatomy, found)


def examine_models(reference: Path, quantized: Path, options: Options, progress: Progress) -> ExaminedPair:
    """Compare two models, with all that can be read and measured of their layers and values.

    Args:
        reference: The float model.
        quantized: What became of it.
        options: What to compare and on what; `layers` counts as true.
        progress: Told how it is going.

    Raises:
        OnnxqError: If a model or the data cannot be used.
    """
    found = compare(reference, quantized, replace(options, layers=True), progress=progress)
    floats = load_model(reference)
    executed, _ = executable(quantized, load_model(quantized))
    run = _Run(floats, executed if isinstance(executed, GraphModel) else load_model(quantized), options, progress)
    anatomy = run.values(read_anatomy(floats, run.quantized))
    return ExaminedPair(replace(anatomy, errors=found.layers, samples=found.samples), found)


@dataclass(frozen=True)
class _Run:
    """A float and a quantized model, and the data to run them on."""

    floats: GraphModel
    quantized: GraphModel
    options: Options
    progress: Progress

    def _reader(self) -> tuple[CheckedReader, tuple[InputInfo, ...]]:
        inputs = inputs_of(self.floats)
        given = self.options
        layout = given.bin_layout
        return as_reader(given.data, inputs, preprocess=given.preprocess, layout=layout, samples=given.samples), inputs

    def values(self, anatomy: Anatomy) -> Anatomy:
        """The same with the distributions of those quantized activations whose are not known yet."""
        tensors = self.floats.tensors()
        unknown = [name for name in anatomy.activations if name in tensors and not _counted(anatomy, name)]
        missing = [name for name in unknown if self._float32(tensors[name])]
        if not missing:
            return anatomy
        self.progress("looking at values", 0, None)
        reader, _ = self._reader()
        found = measured(self.floats, missing, anatomy.activations, reader, threads=self.options.threads)
        both = {**anatomy.spreads, **found}
        ordered = {name: both[name] for name in (*anatomy.activations, *both) if name in both}
        return replace(anatomy, spreads=ordered)

    def _float32(self, tensor: Tensor) -> bool:
        """Whether a tensor holds 32-bit floats; where no type is written, it is the one of the model's inputs."""
        dtype = self.floats.dtype(tensor)
        given = {str(self.floats.dtype(t)) for t in self.floats.inputs} if dtype is None else {str(dtype)}
        return "float32" in given and "float16" not in given

    def layers(self, anatomy: Anatomy) -> Anatomy:
        """The same with the errors of the layers."""
        reader, inputs = self._reader()

        def feeds(batch: int) -> Iterator[Feed]:
            return (feed for _, feed in rechunk(reader, batch, inputs))

        errors = compare_layers(
            self.floats,
            self.quantized,
            lambda: feeds(BATCH),
            next(feeds(1)),
            batch=BATCH,
            threads=self.options.threads,
            ticks=lambda done, total: self.progress("comparing layers", done, total),
        )
        return replace(anatomy, errors=errors, samples=min(LAYER_SAMPLES, reader.len_hint() or LAYER_SAMPLES))


def _counted(anatomy: Anatomy, name: str) -> bool:
    return name in anatomy.spreads and bool(anatomy.spreads[name].counts)
