"""What a model is worth by its outputs: metrics that are added up batch by batch, and the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxq.calib.feeds import Feed
from onnxq.errors import DataError
from onnxq.report.labels import Labels, check_range
from onnxq.report.metrics import ErrorMeter

Array = NDArray[Any]
UserFunction = Callable[[Mapping[str, Array], Array | None], object]
"""Of the outputs of all samples by name, and the labels: how good the model is; higher is better."""

_TOKEN_INPUTS = ("tokens", "input_ids", "token_ids", "ids")
_MASK = "attention_mask"
_SURE = 0.9999
"""Mean probability of the first class from which on a model is sure of it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured of a model.

    Attributes:
        name: What it is called.
        higher_is_better: Whether a better model has a higher score.
        unit: What its points are, such as ``%`` or ``dB``; empty where they have no unit.
    """

    name: str
    higher_is_better: bool
    unit: str = ""

    def better(self, a: float, b: float) -> bool:
        """Whether a score of `a` is better than one of `b`."""
        return a > b if self.higher_is_better else a < b

    @property
    def worst(self) -> float:
        """The score of a model that gives nothing usable."""
        return -math.inf if self.higher_is_better else math.inf

    def text(self, score: float) -> str:
        """A score for people."""
        if math.isinf(score):
            return "equal" if (score > 0) == self.higher_is_better else "unusable"
        number = f"{score:.2f}" if abs(score) >= 1 else f"{score:.4g}"
        return f"{number} {self.unit}".rstrip()

    def points(self, count: float) -> str:
        """A difference of two scores for people."""
        unit = "points" if self.unit in ("", "%") else self.unit
        return f"{count:.3g} {unit}"


@dataclass(frozen=True, slots=True)
class Batch:
    """One run of a model.

    Attributes:
        first: Number of the first sample.
        feed: What it was fed.
        outputs: What it gave, by name.
        kept: What was kept of the float model's outputs for the same feed.
    """

    first: int
    feed: Feed
    outputs: Mapping[str, Any]
    kept: Mapping[str, Array]


class Meter(Protocol):
    """Adds up what one model gives."""

    def add(self, batch: Batch) -> None:
        """Take one more batch."""
        ...

    def result(self) -> float:
        """The score; NaN where the outputs have none."""
        ...


class Measure(Protocol):
    """A metric and how it is measured."""

    @property
    def metric(self) -> Metric:
        """What is measured."""
        ...

    def keep(self, outputs: Mapping[str, Any]) -> dict[str, Array]:
        """What must be kept of the float model's outputs for a batch.

        Raises:
            DataError: If the outputs are not of the kind that the metric is about.
        """
        ...

    def meter(self) -> Meter:
        """Start measuring a model."""
        ...


def scores_axis(value: Any) -> int | None:  # noqa: ANN401 - whatever the runtime returns
    """The axis of an output that holds one score per class; None where it holds no such scores.

    It is axis 1 of [samples, classes] and [samples, classes, 1, 1], the last one of [samples, places, classes].
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim < 2:
        return None
    if value.shape[1] > 1 and all(size == 1 for size in value.shape[2:]):
        return 1
    return 2 if value.ndim == 3 and value.shape[2] > 1 else None


def find_scores(outputs: Mapping[str, Any], who: str) -> tuple[str, int]:
    """The first output with scores of classes, and their axis.

    Raises:
        DataError: If there is none.
    """
    for name, value in outputs.items():
        axis = scores_axis(value)
        if axis is not None:
            return name, axis
    found = ", ".join(f"{name!r} {list(np.shape(value))}" for name, value in outputs.items())
    raise DataError(
        f"metric {who} needs an output of scores, [samples, classes] or [samples, places, classes]; the model has "
        f"{found}. Use sqnr, or a function of your own (mymetric.py:function)"
    )


def numbers(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """The outputs that are tensors of numbers."""
    return {n: v for n, v in outputs.items() if isinstance(v, np.ndarray) and v.dtype.kind in "fiub"}


def log_probabilities(scores: Array, axis: int) -> NDArray[np.float64]:
    """Logarithms of the probabilities that scores stand for; scores that are probabilities already are taken as such.

    Args:
        scores: Any shape.
        axis: The axis of the classes.
    """
    x = scores.astype(np.float64)
    if x.size and x.min() >= 0.0 and np.allclose(x.sum(axis=axis), 1.0, atol=1e-3):
        smallest = float(np.finfo(np.float32).tiny)
        return np.asarray(np.log(np.maximum(x, smallest)))
    x = x - x.max(axis=axis, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=axis, keepdims=True)))


def _require_labels(labels: Labels | None, batch: Batch, rows: int, name: str) -> Labels:
    if labels is None:
        raise DataError(f"metric {name} compares with the true classes and needs labels; give them, or use agreement")
    if len(labels) < batch.first + rows:
        raise DataError(f"there are {len(labels)} labels for at least {batch.first + rows} samples; give one for each")
    return labels[batch.first : batch.first + rows]


@dataclass(frozen=True)
class Top1:
    """The percentage of samples whose first class is the true one."""

    labels: Labels | None
    metric: ClassVar[Metric] = Metric("top1", higher_is_better=True, unit="%")

    def keep(self, outputs: Mapping[str, Any]) -> dict[str, Array]:
        """Nothing, but the outputs are looked at."""
        name, axis = find_scores(outputs, self.metric.name)
        if axis != 1:
            raise DataError(f"metric top1 needs an output [samples, classes]; {name!r} has one score list per place")
        if self.labels is not None:
            check_range(self.labels, outputs[name].shape[1])
        return {}

    def meter(self) -> Meter:
        """Start counting."""
        return _Top1Meter(self.labels)


class _Top1Meter:
    def __init__(self, labels: Labels | None) -> None:
        self._labels = labels
        self._right = self._seen = 0

    def add(self, batch: Batch) -> None:
        name, _ = find_scores(batch.outputs, "top1")
        scores = batch.outputs[name]
        found = scores.reshape(scores.shape[:2]).argmax(axis=1)
        self._right += int((found == _require_labels(self._labels, batch, len(found), "top1")).sum())
        self._seen += len(found)

    def result(self) -> float:
        return 100.0 * self._right / self._seen if self._seen else math.nan


@dataclass(frozen=True)
class Agreement:
    """The percentage of samples, or places in them, where both models have the same first class."""

    metric: ClassVar[Metric] = Metric("agreement", higher_is_better=True, unit="%")

    def keep(self, outputs: Mapping[str, Any]) -> dict[str, Array]:
        """The float model's classes."""
        name, axis = find_scores(outputs, self.metric.name)
        return {name: outputs[name].argmax(axis=axis).astype(np.int32)}

    def meter(self) -> Meter:
        """Start counting."""
        return _AgreementMeter()


class _AgreementMeter:
    def __init__(self) -> None:
        self._same = self._seen = 0

    def add(self, batch: Batch) -> None:
        name, axis = find_scores(batch.outputs, "agreement")
        same = batch.outputs[name].argmax(axis=axis) == batch.kept[name]
        self._same += int(same.sum())
        self._seen += same.size

    def result(self) -> float:
        return 100.0 * self._same / self._seen if self._seen else math.nan


@dataclass(frozen=True)
class Sqnr:
    """The signal to quantization noise ratio of the worst output, over all samples."""

    metric: ClassVar[Metric] = Metric("sqnr", higher_is_better=True, unit="dB")

    def keep(self, outputs: Mapping[str, Any]) -> dict[str, Array]:
        """The float model's outputs."""
        kept = numbers(outputs)
        if not kept:
            raise DataError("metric sqnr needs an output that is a tensor of numbers; the model has none")
        return kept

    def meter(self) -> Meter:
        """Start adding up."""
        return _SqnrMeter()


class _SqnrMeter:
    def __init__(self) -> None:
        self._meters: dict[str, ErrorMeter] = {}

    def add(self, batch: Batch) -> None:
        for name, reference in batch.kept.items():
            self._meters.setdefault(name, ErrorMeter()).add(reference, batch.outputs[name])

    def result(self) -> float:
        return min((meter.result().sqnr_db for meter in self._meters.values()), default=math.nan)


@dataclass(frozen=True)
class Divergence:
    """The Kullback-Leibler divergence of the float model's probabilities from the other's, mean over samples or places.

    It is ``sum(p log(p / q))`` in nats, p of the float model.
    """

    metric: ClassVar[Metric] = Metric("kl", higher_is_better=False, unit="nats")

    def keep(self, outputs: Mapping[str, Any]) -> dict[str, Array]:
        """The float model's scores."""
        name, _ = find_scores(outputs, self.metric.name)
        return {name: outputs[name]}

    def meter(self) -> Meter:
        """Start adding up."""
        return _DivergenceMeter()


class _DivergenceMeter:
    def __init__(self) -> None:
        self._total = 0.0
        self._seen = 0

    def add(self, batch: Batch) -> None:
        name, axis = find_scores(batch.kept, "kl")
        p, q = log_probabilities(batch.kept[name], axis), log_probabilities(batch.outputs[name], axis)
        each = (np.exp(p) * (p - q)).sum(axis=axis)
        self._total += float(each.sum())
        self._seen += each.size

    def result(self) -> float:
        if not self._seen or math.isnan(self._total):
            return math.nan
        return max(0.0, self._total / self._seen)  # rounding can leave it just below


@dataclass(frozen=True)
class Perplexity:
    """``exp`` of the mean cross-entropy of the next token, of a model whose output is [samples, places, tokens].

    The tokens are the model's own input; where it has an attention mask, places behind its end do not count.
    """

    metric: ClassVar[Metric] = Metric("perplexity", higher_is_better=False)

    def keep(self, outputs: Mapping[str, Any]) -> dict[str, Array]:
        """Nothing, but the outputs are looked at."""
        _logits(outputs)
        return {}

    def meter(self) -> Meter:
        """Start adding up."""
        return _PerplexityMeter()


def _logits(outputs: Mapping[str, Any]) -> str:
    name, axis = find_scores(outputs, "perplexity")
    if axis != 2:
        found = list(outputs[name].shape)
        raise DataError(f"metric perplexity needs an output [samples, places, tokens]; {name!r} is {found}")
    return name


def _tokens(feed: Feed, shape: Sequence[int]) -> Array:
    """The input that holds the tokens: whole numbers, one per place."""
    fitting = {n: a for n, a in feed.items() if a.dtype.kind in "iu" and a.shape == tuple(shape) and n != _MASK}
    named = [n for n in _TOKEN_INPUTS if n in fitting]
    chosen = named[:1] or list(fitting)
    if len(chosen) != 1:
        found = f"candidates are {', '.join(map(repr, chosen))}" if chosen else "there is none"
        raise DataError(
            f"metric perplexity needs one input of tokens, whole numbers of shape {list(shape)}, called "
            f"{' or '.join(_TOKEN_INPUTS)}; {found}"
        )
    return fitting[chosen[0]]


class _PerplexityMeter:
    def __init__(self) -> None:
        self._total = 0.0
        self._seen = 0.0

    def add(self, batch: Batch) -> None:
        logits = batch.outputs[_logits(batch.outputs)]
        if logits.shape[1] < 2:
            raise DataError("metric perplexity needs texts of two tokens at least: the second is what is predicted")
        tokens = _tokens(batch.feed, logits.shape[:2])
        wanted = tokens[:, 1:, np.newaxis].astype(np.int64)
        mask = batch.feed.get(_MASK)
        counted = np.ones(wanted.shape[:2]) if mask is None else mask[:, 1:].astype(np.float64)
        # A text at a time: in float64 the scores of all tokens of the vocabulary take eight times their memory.
        for row in range(len(logits)):
            known = log_probabilities(logits[row, :-1], 1)
            chosen = np.take_along_axis(known, wanted[row], axis=1)[:, 0]
            self._total -= float((chosen * counted[row]).sum())
        self._seen += float(counted.sum())

    def result(self) -> float:
        if not self._seen:
            return math.nan
        mean = self._total / self._seen
        return math.exp(mean) if mean < 700 else math.nan if math.isnan(mean) else math.inf


@dataclass(frozen=True)
class Users:
    """What a function of the user's gives for the outputs of all samples.

    Attributes:
        function: The user's.
        label: What messages call it.
        labels: What it is given besides.
    """

    function: UserFunction
    label: str
    labels: Labels | None

    @property
    def metric(self) -> Metric:
        """What is measured."""
        return Metric(self.label, higher_is_better=True)

    def keep(self, outputs: Mapping[str, Any]) -> dict[str, Array]:
        """Nothing."""
        del outputs
        return {}

    def meter(self) -> Meter:
        """Start collecting."""
        return _UsersMeter(self)


class _UsersMeter:
    def __init__(self, wanted: Users) -> None:
        self._wanted = wanted
        self._parts: dict[str, list[Array]] = {}
        self._samples = 0

    def add(self, batch: Batch) -> None:
        for name, value in batch.outputs.items():
            array = np.asarray(value) if not isinstance(value, list) else None
            if array is not None:
                self._parts.setdefault(name, []).append(array if array.ndim else array.reshape(1))
                self._samples = max(self._samples, batch.first + len(array.reshape(-1) if not array.ndim else array))

    def result(self) -> float:
        label, labels = self._wanted.label, self._wanted.labels
        outputs = {name: _joined(name, parts) for name, parts in self._parts.items()}
        try:
            found = self._wanted.function(outputs, None if labels is None else labels[: self._samples])
        except Exception as err:
            told = f"{type(err).__name__}: {err}" if str(err) else type(err).__name__
            raise DataError(f"metric {label} failed: {told}") from err
        try:
            return float(found)  # type: ignore[arg-type]
        except (TypeError, ValueError) as err:
            raise DataError(f"metric {label} gave {found!r}; it must return one number, higher is better") from err


def _joined(name: str, parts: Sequence[Array]) -> Array:
    if len({part.shape[1:] for part in parts}) > 1:
        shapes = f"{list(parts[0].shape)} and {list(next(p.shape for p in parts if p.shape[1:] != parts[0].shape[1:]))}"
        raise DataError(f"output {name!r} has the shapes {shapes}: a metric of your own needs samples of one size")
    return np.concatenate(parts)


def guide_for(metric: Metric, outputs: Mapping[str, Any]) -> Measure:
    """What tells small differences of two models apart: divergence where there are scores of classes, else noise.

    Where the model is sure of all it says, noise as well: the divergence would be 0 for anything.

    Args:
        metric: What is measured besides.
        outputs: What the float model gives for one batch.
    """
    if metric.name == Sqnr.metric.name:
        return Sqnr()
    axes = {name: axis for name, value in outputs.items() if (axis := scores_axis(value)) is not None}
    for name, axis in axes.items():
        largest = log_probabilities(outputs[name], axis).max(axis=axis)
        return Divergence() if float(np.exp(largest).mean()) < _SURE else Sqnr()
    return Sqnr()
