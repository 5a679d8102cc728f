"""What a model is worth on the user's data: the float model's outputs are kept, other models are scored by them.

scorer = Evaluation("eval.npz", metric="top1", labels="labels.csv").prepare(float_graph)
scorer.score(quantized_graph), scorer.reference
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.calib.feeds import Feed, InputInfo, batching, sample_count
from onnxq.calib.readers import CheckedReader, DataLike, Folders, Layout, as_reader, rechunk
from onnxq.errors import DataError, ModelError, RecipeError, nearest
from onnxq.graph import GraphModel
from onnxq.observers import find_named
from onnxq.passes._inputs import inputs_of
from onnxq.report.labels import Labels, read_labels
from onnxq.runtime import Session, make_session
from onnxq.tune.metrics_builtin import (
    Agreement,
    Array,
    Batch,
    Divergence,
    Measure,
    Meter,
    Metric,
    Perplexity,
    Sqnr,
    Top1,
    UserFunction,
    Users,
    guide_for,
)

if TYPE_CHECKING:
    from onnxq.recipe import ImagePreprocess

__all__ = ["METRICS", "Evaluation", "Metric", "Rating", "Scorer"]

METRICS = ("top1", "agreement", "sqnr", "kl", "perplexity")
"""Metrics that have a name; any other is ``path.py:function`` or ``module:function``."""
KEPT_MB = 512
"""Data stay in memory if they are not more; of the float model's outputs as much stays, the rest is computed anew."""

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and on what.

    Attributes:
        data: Samples, as for `onnxq.quantize`.
        metric: A name of `METRICS`, ``path.py:function``, ``module:function``, or the function: of the outputs of all
            samples by name and of the labels (None where there are none), it gives a number, higher is better.
        labels: The true class of each sample: a file (see `onnxq.report.labels.read_labels`) or whole numbers of
            shape (samples,); a function of the user's may be given any array.
        preprocess: How image files become feeds.
        bin_layout: Layout of the numbers in .bin files of 4 dimensions; None: as the model has it.
        samples: Use the first so many; None for all.
        batch: Samples at a time, where the model takes any batch.
        threads: Threads of ONNX Runtime; 0 for all cores.
        optimize: Run models as ONNX Runtime does it best; otherwise other models than the float one are run as they
            are written: the same numbers on every processor, and not those of its integer kernels.
    """

    data: DataLike
    metric: str | UserFunction = "top1"
    labels: str | Path | Array | None = None
    preprocess: ImagePreprocess | None = None
    bin_layout: Layout | None = None
    samples: int | None = None
    batch: int = 8
    threads: int = 0
    optimize: bool = True

    def prepare(self, float_graph: GraphModel, *, guided: bool = False, progress: Progress | None = None) -> Scorer:
        """Run the float model and keep what other models are compared with.

        Args:
            float_graph: The float model.
            guided: Keep what `Scorer.rate` needs as well.
            progress: Is told how far it is.

        Raises:
            RecipeError: If there is no such metric.
            DataError: If data, labels or outputs do not fit.
        """
        measure = self._measure()
        inputs = inputs_of(float_graph)
        reader = as_reader(self.data, inputs, preprocess=self.preprocess, layout=self.bin_layout, samples=self.samples)
        return Scorer(self, measure, float_graph, _Feeds(reader, inputs, self.batch), progress, guided=guided)

    def check(self) -> None:
        """Refuse a metric or labels that do not exist.

        Raises:
            RecipeError: If there is no such metric, or its code cannot be loaded.
            DataError: If the labels cannot be read.
        """
        if isinstance(self.metric, str) and ":" in self.metric:
            find_named(self.metric, "metric", "function")
        elif isinstance(self.metric, str) and self.metric not in METRICS:
            raise RecipeError(
                f"there is no metric {self.metric!r}; known are {', '.join(METRICS)}, and functions as "
                f"mymetric.py:function{nearest(self.metric, METRICS, count=1)}"
            )
        self._labels()

    def _measure(self) -> Measure:
        self.check()
        labels = self._labels()
        if not isinstance(self.metric, str):
            return Users(self.metric, getattr(self.metric, "__qualname__", "function"), labels)
        if ":" in self.metric:
            return Users(find_named(self.metric, "metric", "function"), self.metric, labels)
        known: Mapping[str, Measure] = {
            "top1": Top1(labels), "agreement": Agreement(), "sqnr": Sqnr(), "kl": Divergence(),
            "perplexity": Perplexity(),
        }  # fmt: skip
        if self.metric == "top1" and labels is None:
            raise DataError("metric top1 compares with the true classes and needs labels; give them, or use agreement")
        return known[self.metric]

    def _labels(self) -> Labels | None:
        if self.labels is None:
            return None
        if isinstance(self.labels, (str, Path)):
            data = self.data if isinstance(self.data, Folders) else Path(str(self.data))
            return read_labels(Path(self.labels), data)
        labels = np.asarray(self.labels)
        return labels.astype(np.int64) if labels.dtype.kind in "iub" else labels

    def digest(self, reader: CheckedReader) -> str:
        """sha256 of all that decides a score besides the model.

        Args:
            reader: The data.
        """
        content = hashlib.sha256(reader.digest().encode())
        name = self.metric if isinstance(self.metric, str) else getattr(self.metric, "__qualname__", "function")
        content.update(f"|{name}|{self.batch}|".encode())
        file = Path(name.rpartition(":")[0])
        if file.suffix == ".py" and file.is_file():
            content.update(file.read_bytes())
        labels = self._labels()
        if labels is not None:
            content.update(np.ascontiguousarray(labels).tobytes())
        return content.hexdigest()


class _Feeds:
    """Batches of the data, kept in memory if all of them find room there."""

    def __init__(self, reader: CheckedReader, inputs: tuple[InputInfo, ...], batch: int) -> None:
        self.reader = reader
        self.inputs = inputs
        self._batch = batch
        self._kept: list[tuple[int, Feed]] = []
        self._complete = self._too_many = False

    def rows(self, feed: Feed) -> int:
        """How many samples a feed holds."""
        return sample_count(feed, batching(self.inputs).carried) or 1

    def __iter__(self) -> Iterator[tuple[int, Feed]]:
        """Number of the first sample and feed of each batch, always the same."""
        if self._complete:
            yield from self._kept
            return
        kept: list[tuple[int, Feed]] = []
        room, count = KEPT_MB << 20, 0
        for first, feed in rechunk(self.reader, self._batch, self.inputs):
            count += 1
            room -= _bytes(feed)
            if room >= 0 and not self._too_many:
                kept.append((first, feed))
            yield first, feed
        self._complete, self._too_many = len(kept) == count, len(kept) < count
        self._kept = kept if self._complete else []


def _bytes(arrays: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in arrays.values())


@dataclass(frozen=True, slots=True)
class Rating:
    """What a model is worth, and what quantizing it did to the outputs.

    Attributes:
        score: By the metric.
        damage: 0 where the outputs are the float model's, more the farther they are from them: the divergence of the
            probabilities where there are scores of classes, else the noise over the signal.
    """

    score: float
    damage: float


@dataclass(frozen=True, slots=True)
class _Kept:
    """What was kept of the float model's outputs for one batch, for the metric and for the guide."""

    metric: Mapping[str, Array]
    guide: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        return _bytes(self.metric) + _bytes(self.guide)

    def copy(self) -> _Kept:
        """The same in arrays of its own."""
        return _Kept(*({name: array.copy() for name, array in part.items()} for part in (self.metric, self.guide)))


class Scorer:
    """Scores models on one set of data.

    Attributes:
        metric: What is measured.
        reference: The float model's own score.
        samples: How many samples there are.
        digest: sha256 of all that decides a score besides the model.
        notes: What a user should know about the data.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        measure: Measure,
        float_graph: GraphModel,
        feeds: _Feeds,
        progress: Progress | None,
        *,
        guided: bool = False,
    ) -> None:
        self._threads = evaluation.threads
        self._optimize = evaluation.optimize
        self._measure = measure
        self._float = float_graph
        self._feeds = feeds
        self._progress = progress
        self._guided = guided
        self._guide: Measure | None = None
        self._kept: list[_Kept] = []
        self._again: Session | None = None
        self.samples = 0
        self.metric: Metric = measure.metric
        self.reference = self._of_float()
        self.digest = evaluation.digest(feeds.reader)
        self.notes: tuple[str, ...] = feeds.reader.notes
        self._check_count(evaluation)

    def score(self, graph: GraphModel) -> float:
        """What a model is worth; the worst score there is where its outputs hold NaN.

        Args:
            graph: A model with the float model's inputs and outputs that runs here.

        Raises:
            DataError: If a function of the user's fails.
            ModelError: If ONNX Runtime cannot load or run it.
        """
        return self._scores(graph)[0]

    def rate(self, graph: GraphModel) -> Rating:
        """The score, and how far the outputs are from the float model's, in one run over the data.

        Args:
            graph: As for `score`.

        Raises:
            OnnxqError: As `score`; also if it was not prepared with ``guided``.
        """
        if self._guide is None:
            raise DataError("the evaluation was not prepared for ratings; use prepare(graph, guided=True)")
        score, found = self._scores(graph)
        if math.isnan(found):
            return Rating(score, math.inf)
        # Of decibels what the noise is over the signal, so that damage is 0 for the float model in either case.
        return Rating(score, 10.0 ** (-found / 10.0) if self._guide.metric.higher_is_better else found)

    @property
    def guide(self) -> str:
        """The metric that damage is told by: kl where there are scores of classes, else sqnr."""
        return "sqnr" if self._guide is None else self._guide.metric.name

    def sample(self) -> Feed:
        """The first sample, alone."""
        return next(feed for _, feed in rechunk(self._feeds.reader, 1, self._feeds.inputs))

    def _scores(self, graph: GraphModel) -> tuple[float, float]:
        """What the metric and the guide say."""
        session = make_session(graph, threads=self._threads, optimize=self._optimize, source="the quantized model")
        meter = self._measure.meter()
        guide = None if self._guide is None else self._guide.meter()
        for number, (first, feed) in enumerate(self._feeds):
            try:
                outputs = _run(session, feed)
            except DataError as err:  # the float model took the same feed
                raise ModelError(str(err)) from err
            kept = self._kept_of(number, feed)
            meter.add(Batch(first, feed, outputs, kept.metric))
            if guide is not None:
                guide.add(Batch(first, feed, outputs, kept.guide))
            self._tell("evaluating", first)
        found = _result(meter)
        return self.metric.worst if math.isnan(found) else found, math.nan if guide is None else _result(guide)

    def meter(self) -> Meter:
        """Start measuring a model by hand: give it `rounds` with the model's outputs, and take its `result`."""
        return self._measure.meter()

    def rounds(self) -> Iterator[Batch]:
        """The data with what is kept of the float model's outputs, and no outputs; always the same."""
        for number, (first, feed) in enumerate(self._feeds):
            yield Batch(first, feed, {}, self._kept_of(number, feed).metric)

    def result(self, meter: Meter) -> float:
        """What a model is worth; the worst score there is where its outputs hold NaN.

        Raises:
            DataError: If a function of the user's fails.
        """
        found = _result(meter)
        return self.metric.worst if math.isnan(found) else found

    def _of_float(self) -> float:
        session = make_session(self._float, threads=self._threads, source="the float model")
        meter, size, room = self._measure.meter(), 0, KEPT_MB << 20
        for first, feed in self._feeds:
            outputs = _run(session, feed)
            if self._guided and self._guide is None:
                self._guide = guide_for(self.metric, outputs)
            kept = self._keep(outputs)
            if size + kept.nbytes <= room:
                size += kept.nbytes
                self._kept.append(kept.copy())
            else:
                room, self._again = 0, session
            meter.add(Batch(first, feed, outputs, kept.metric))
            self.samples = first + self._feeds.rows(feed)
            self._tell("evaluating the float model", first)
        found = _result(meter)
        if math.isnan(found):
            raise DataError(f"metric {self.metric.name} of the float model is not a number (NaN)")
        return found

    def _keep(self, outputs: Mapping[str, Any]) -> _Kept:
        return _Kept(self._measure.keep(outputs), {} if self._guide is None else self._guide.keep(outputs))

    def _kept_of(self, number: int, feed: Feed) -> _Kept:
        if number < len(self._kept):
            return self._kept[number]
        if self._again is None:
            return _Kept({}, {})
        return self._keep(_run(self._again, feed))

    def _check_count(self, evaluation: Evaluation) -> None:
        """Refuse more labels than samples: they belong to other data."""
        labels = getattr(self._measure, "labels", None)
        if labels is None or evaluation.samples is not None or self.metric.name != "top1":
            return
        if len(labels) > self.samples:
            raise DataError(f"there are {len(labels)} labels for {self.samples} samples; give one for each")

    def _tell(self, what: str, done: int) -> None:
        if self._progress is not None:
            self._progress(what, done, self.samples or self._feeds.reader.len_hint())


def _run(session: Session, feed: Feed) -> dict[str, Any]:
    return dict(zip(session.output_names, session.run(None, feed), strict=True))


def _result(meter: Meter) -> float:
    with np.errstate(all="ignore"):
        return meter.result()
