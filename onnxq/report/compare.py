"""Two models on the same data: how far their outputs are apart, which classes they choose, how fast they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.ascend import simulate_model
from onnxq.calib.feeds import Feed, InputInfo, batching, sample_count
from onnxq.calib.readers import CheckedReader, Folders, Layout, as_reader, rechunk
from onnxq.errors import DataError, GraphError, nearest
from onnxq.graph import GraphModel
from onnxq.modelio import load_model
from onnxq.report.files import disk_bytes
from onnxq.report.labels import Labels, check_range, read_labels
from onnxq.report.latency import Latency, measure
from onnxq.report.layers import LayerError, compare_layers
from onnxq.report.metrics import Accuracy, AccuracyMeter, ErrorMeter, Metrics
from onnxq.runtime import Session, make_session

if TYPE_CHECKING:
    from onnxq.recipe import ImagePreprocess

LOSSY_KERNELS_DB = 3.0
"""From which difference on it is said that the runtime computes a model less exactly than it is written."""

BATCH = 8
"""Samples the models are given at a time, where they take any batch."""

Progress = Callable[[str, int, int | None], None]
"""Called with what is going on, how much of it is done, and how much there is, if known."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is compared, and on what.

    Attributes:
        data: Evaluation data; see `onnxq.calib.readers.open_data`, or `onnxq.calib.readers.Folders`.
        labels: File with the true classes, for top-1 accuracy; see `onnxq.report.labels.read_labels`.
        samples: Use the first so many samples; None for all of them.
        batch_size: Samples at a time.
        preprocess: How image files become feeds.
        layers: Also compare layer by layer.
        latency: Also measure latency.
        threads: Threads of ONNX Runtime; 0 for all cores.
        bin_layout: Layout of the numbers in .bin files of 4 dimensions; None: as the model has it.
    """

    data: Path | Folders
    labels: Path | None = None
    samples: int | None = None
    batch_size: int = BATCH
    preprocess: ImagePreprocess | None = None
    layers: bool = False
    latency: bool = True
    threads: int = 0
    bin_layout: Layout | None = None


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far one output of the quantized model is from the float model's.

    Attributes:
        name: Name of the output.
        shape: Its shape on the first batch.
        metrics: The difference over all samples.
    """

    name: str
    shape: tuple[int, ...]
    metrics: Metrics

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {"name": self.name, "shape": list(self.shape), **self.metrics.to_dict()}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found.

    Attributes:
        reference: File of the float model.
        quantized: File of the quantized model.
        bytes_reference: Size of the float model with its external data.
        bytes_quantized: Size of the quantized model with its external data.
        data: What the data are, in a few words.
        samples: How many samples were run.
        outputs: One entry per output that is a tensor of numbers.
        accuracy: Classes chosen; None where no output holds scores.
        latency: None where it was not measured.
        layers: In the order of the float model's nodes; empty where they were not asked for.
        notes: What was left out, a sentence each.
    """

    reference: Path
    quantized: Path
    bytes_reference: int
    bytes_quantized: int
    data: str
    samples: int
    outputs: tuple[OutputError, ...]
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    layers: tuple[LayerError, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> OutputError:
        """The output with the least signal to noise ratio."""
        return min(self.outputs, key=lambda o: o.metrics.sqnr_db)

    def failures(self, *, min_sqnr: float | None = None, max_drop: float | None = None) -> tuple[str, ...]:
        """Which demands are not met, a sentence each.

        Args:
            min_sqnr: Least signal to noise ratio of every output, in decibels.
            max_drop: Most top-1 accuracy that may be lost, in percentage points.

        Raises:
            DataError: If the accuracy is not known.
        """
        failed = []
        if min_sqnr is not None and not self.worst.metrics.sqnr_db >= min_sqnr:
            found = self.worst.metrics.sqnr_db
            failed.append(f"output {self.worst.name!r} has an SQNR of {found:.2f} dB, demanded are {min_sqnr:g} dB")
        if max_drop is not None:
            drop = self.accuracy.drop_points if self.accuracy else None
            if drop is None:
                raise DataError("the drop of top-1 accuracy is not known without labels; give --labels")
            if drop > max_drop:
                failed.append(f"top-1 accuracy drops by {drop:.2f} points, allowed are {max_drop:g}")
        return tuple(failed)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {
            "reference": str(self.reference),
            "quantized": str(self.quantized),
            "bytes_reference": self.bytes_reference,
            "bytes_quantized": self.bytes_quantized,
            "data": self.data,
            "samples": self.samples,
            "outputs": [output.to_dict() for output in self.outputs],
            "accuracy": self.accuracy.to_dict() if self.accuracy else None,
            "latency": self.latency.to_dict() if self.latency else None,
            "layers": [layer.to_dict() for layer in self.layers],
            "notes": list(self.notes),
        }


def compare(
    reference: Path, quantized: Path, options: Options, *, progress: Progress = lambda what, done, total: None
) -> Comparison:
    """Run two models on the same data and compare them.

    Args:
        reference: The float model.
        quantized: What became of it.
        options: What to compare, and on what.
        progress: Told how it is going.

    Raises:
        ModelError: If a model cannot be loaded.
        GraphError: If their inputs or outputs differ.
        DataError: If the data or labels do not fit.
    """
    graphs = load_model(reference), load_model(quantized)
    executed, remarks = executable(quantized, graphs[1])
    sessions = (
        make_session(reference, threads=options.threads, source=str(reference)),
        make_session(executed, threads=options.threads, source=str(quantized)),
    )
    _check_same_interface(*sessions)
    inputs = sessions[0].inputs
    labels = None if options.labels is None else read_labels(options.labels, options.data)
    reader = as_reader(
        options.data, inputs, preprocess=options.preprocess, layout=options.bin_layout, samples=options.samples
    )
    run = _Run(sessions, inputs, labels, limited=options.samples is not None)
    for done in run.over(reader, options.batch_size):
        progress("comparing outputs", done, reader.len_hint())
    first = next(feed for _, feed in rechunk(reader, 1, inputs))
    notes = [*remarks, *run.notes, *reader.notes, *_lossy_kernels(sessions, executed, str(quantized), first)]
    pair = graphs[0], executed if isinstance(executed, GraphModel) else graphs[1]
    layers = _layers(pair, reader, inputs, options, progress) if options.layers else ()
    latency = None
    if options.latency:
        progress("measuring latency", 0, None)
        latency = measure(*sessions, first, threads=options.threads)
    return Comparison(
        reference=reference,
        quantized=quantized,
        bytes_reference=disk_bytes(reference, graphs[0]),
        bytes_quantized=disk_bytes(quantized, graphs[1]),
        data=reader.describe(),
        samples=run.samples,
        outputs=run.outputs(),
        accuracy=run.accuracy(),
        latency=latency,
        layers=layers,
        notes=tuple(notes),
    )


def _layers(
    graphs: tuple[GraphModel, GraphModel],
    reader: CheckedReader,
    inputs: Sequence[InputInfo],
    options: Options,
    progress: Progress,
) -> tuple[LayerError, ...]:
    def feeds(batch: int) -> Iterator[Feed]:
        return (feed for _, feed in rechunk(reader, batch, inputs))

    return compare_layers(
        *graphs,
        lambda: feeds(options.batch_size),
        next(feeds(1)),
        batch=options.batch_size,
        threads=options.threads,
        ticks=lambda done, total: progress("comparing layers", done, total),
    )


def executable(path: Path, graph: GraphModel) -> tuple[Path | GraphModel, tuple[str, ...]]:
    """What runs here in the place of a model, and what to say about it.

    Args:
        path: The model's file.
        graph: The model in it.
    """
    if not any(str(node.op).startswith("Ascend") for node in graph.nodes()):
        return path, ()
    note = f"{path} has operators for Ascend: it is simulated with exact integer sums; its latency says nothing"
    return simulate_model(path).graph, (note,)


def _lossy_kernels(
    sessions: tuple[Session, Session], quantized: Path | GraphModel, name: str, feed: Feed
) -> Iterator[str]:
    """Say so where the runtime's kernels are less exact than the model as it is written."""
    reference, executed = sessions
    written = make_session(quantized, threads=1, optimize=False, source=name)
    for name, value in zip(reference.output_names, reference.run(None, feed), strict=True):
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            continue
        found: list[float] = []
        for session in (executed, written):
            meter = ErrorMeter()
            meter.add(value, session.run([name], feed)[0])
            found.append(meter.result().sqnr_db)
        if found[1] - found[0] > LOSSY_KERNELS_DB:
            yield (
                f"ONNX Runtime computes output {name!r} less exactly on this processor than the model is written "
                f"(first sample: {found[0]:.1f} dB against {found[1]:.1f} dB): sums of uint8 x int8 products overflow "
                "where there are no VNNI instructions; int8 activations (activations: {type: int8}) avoid it"
            )


def _check_same_interface(reference: Session, quantized: Session) -> None:
    expected = {info.name: info for info in reference.inputs}
    found = {info.name: info for info in quantized.inputs}
    if expected.keys() != found.keys():
        raise GraphError(
            f"the models' inputs differ: {_names(expected)} and {_names(found)}; compare a model with its own"
        )
    for name, info in expected.items():
        if info.dtype != found[name].dtype or not _compatible(info, found[name]):
            raise GraphError(
                f"the models' inputs differ: {name!r} is {info} in the first and {found[name]} in the second"
            )
    missing = [name for name in reference.output_names if name not in quantized.output_names]
    extra = [name for name in quantized.output_names if name not in reference.output_names]
    if missing or extra:
        hint = nearest(missing[0], quantized.output_names, count=1) if missing else ""
        raise GraphError(
            f"the models' outputs differ: {_names(reference.output_names)} and {_names(quantized.output_names)}{hint}"
        )


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _compatible(a: InputInfo, b: InputInfo) -> bool:
    if a.shape is None or b.shape is None:
        return True
    pairs = zip(a.shape, b.shape, strict=False)
    return len(a.shape) == len(b.shape) and all(
        x == y or not (isinstance(x, int) and isinstance(y, int)) for x, y in pairs
    )


class _Run:
    """Both models on all samples, output by output."""

    def __init__(
        self, sessions: tuple[Session, Session], inputs: Sequence[InputInfo], labels: Labels | None, *, limited: bool
    ) -> None:
        self.samples = 0
        self.notes: list[str] = []
        self._sessions = sessions
        self._inputs = inputs
        self._labels = labels
        self._limited = limited
        self._meters: dict[str, ErrorMeter] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._classes: AccuracyMeter | None = None
        self._scores = ("", 0)

    def over(self, reader: CheckedReader, batch: int) -> Iterator[int]:
        """Run all samples; gives how many are done after each batch."""
        carried = batching(self._inputs).carried
        names = list(self._sessions[0].output_names)
        for first, feed in rechunk(reader, batch, self._inputs):
            rows = sample_count(feed, carried) or 1
            a, b = (dict(zip(names, s.run(names, feed), strict=True)) for s in self._sessions)
            if not self._shapes and not self.notes:
                self._start(a, rows)
            for name in self._shapes:
                self._add(name, a[name], b[name])
            self.samples = first + rows
            self._check_labels(exact=False)
            if self._classes is not None:
                name, width = self._scores
                self._classes.add(first, a[name].reshape(-1, width), b[name].reshape(-1, width))
            yield self.samples
        self._check_labels(exact=not self._limited)

    def _check_labels(self, *, exact: bool) -> None:
        """Refuse too few labels, or too many where they must be as many as the samples."""
        if self._labels is None:
            return
        count = len(self._labels)
        if count < self.samples or (exact and count > self.samples):
            seen = "at least " if count < self.samples else ""
            raise DataError(f"there are {count} labels for {seen}{self.samples} samples; give one for each")

    def _start(self, outputs: Feed, rows: int) -> None:
        """Look at the first batch: which outputs are numbers, which one holds the scores of classes."""
        for name, value in outputs.items():
            if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
                self.notes.append(f"output {name!r} is no tensor of numbers and was not compared")
                continue
            self._meters[name] = ErrorMeter()
            self._shapes[name] = value.shape
            if self._classes is None and _is_scores(value, rows):
                self._scores = (name, value.shape[1])
                self._classes = AccuracyMeter(name, value.shape[1], self._labels)
        if not self._shapes:
            raise GraphError("no output of the models is a tensor of numbers; there is nothing to compare")
        if self._labels is not None and self._classes is None:
            found = ", ".join(f"{name!r} {list(shape)}" for name, shape in self._shapes.items())
            raise DataError(f"labels are given, but no output is [samples, classes]: {found}")
        if self._labels is not None:
            check_range(self._labels, self._scores[1])

    def _add(self, name: str, a: Any, b: Any) -> None:  # noqa: ANN401 - whatever the runtime returns
        if a.shape != b.shape:
            raise GraphError(
                f"output {name!r} is {list(a.shape)} in the first model and {list(b.shape)} in the second; "
                "they cannot be compared"
            )
        self._meters[name].add(a, b)

    def outputs(self) -> tuple[OutputError, ...]:
        """The difference of each output."""
        return tuple(OutputError(n, self._shapes[n], meter.result()) for n, meter in self._meters.items())

    def accuracy(self) -> Accuracy | None:
        """The classes chosen, if there are any."""
        return None if self._classes is None else self._classes.result()


def _is_scores(value: Any, rows: int) -> bool:  # noqa: ANN401 - whatever the runtime returns
    shape = value.shape
    return bool(
        value.dtype.kind == "f"
        and value.ndim >= 2
        and shape[0] == rows
        and shape[1] > 1
        and all(size == 1 for size in shape[2:])
    )
