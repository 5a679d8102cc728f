"""Comparison of two models layer by layer, in passes over the data whose memory is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.calib.feeds import Feed
from onnxq.graph import GraphModel
from onnxq.report.metrics import ErrorMeter, Metrics
from onnxq.report.pairs import Pair, find_pairs
from onnxq.runtime import Session, make_session

BUDGET = 256 << 20
"""How many bytes of activations one pass over the data may hold at a time."""
_PROBED = 32

Ticks = Callable[[int, int], None]
"""Called with how much is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far one layer of the quantized model is from the float model's.

    Attributes:
        pair: The layer.
        metrics: The difference over all samples.
    """

    pair: Pair
    metrics: Metrics

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        pair = {"node": self.pair.node, "op_type": self.pair.op_type, "tensor": self.pair.reference}
        return {**pair, "quantized_tensor": self.pair.quantized, **self.metrics.to_dict()}


def compare_layers(
    reference: GraphModel,
    quantized: GraphModel,
    feeds: Callable[[], Iterable[Feed]],
    probe: Feed,
    *,
    batch: int = 1,
    threads: int = 0,
    budget: int = BUDGET,
    ticks: Ticks = lambda done, total: None,
) -> tuple[LayerError, ...]:
    """Compare all activations both models have under the same name.

    Args:
        reference: The float model.
        quantized: What became of it.
        feeds: Gives all batches, anew for each call.
        probe: One sample, to find the sizes of the activations.
        batch: Samples of one feed.
        threads: Threads of ONNX Runtime; 0 for all cores.
        budget: Bytes of activations held at a time.
        ticks: Told about each pass over the data.

    Returns:
        One entry per layer, in the order of the float model's nodes.

    Raises:
        ModelError: If a model cannot be loaded.
        DataError: If a run fails.
    """
    both = _Both(reference, quantized, threads)
    groups = list(_packed(_sizes(both, find_pairs(reference, quantized), probe), budget // max(1, batch)))
    found: list[LayerError] = []
    for number, group in enumerate(groups):
        ticks(number, len(groups))
        meters = [ErrorMeter() for _ in group]
        sessions = both.sessions(group)
        for feed in feeds():
            for meter, (a, b) in zip(meters, _run(sessions, group, feed), strict=True):
                meter.add(a, b)
        found += [LayerError(pair, meter.result()) for pair, meter in zip(group, meters, strict=True)]
    ticks(len(groups), len(groups))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Both:
    """Two models whose inner tensors can be asked for."""

    reference: GraphModel
    quantized: GraphModel
    threads: int

    def sessions(self, group: Sequence[Pair]) -> tuple[Session, Session]:
        """Sessions with the tensors of `group` as their only outputs."""
        wanted = list(dict.fromkeys(pair.reference for pair in group))
        found = list(dict.fromkeys(pair.quantized for pair in group))
        return (
            make_session(self.reference, threads=self.threads, source="the float model", outputs=wanted),
            make_session(self.quantized, threads=self.threads, source="the quantized model", outputs=found),
        )


def _run(sessions: tuple[Session, Session], group: Sequence[Pair], feed: Feed) -> Iterator[tuple[Any, Any]]:
    """The values of each pair."""
    a, b = (dict(zip(s.output_names, s.run(None, feed), strict=True)) for s in sessions)
    for pair in group:
        yield a[pair.reference], b[pair.quantized]


def _sizes(both: _Both, pairs: Sequence[Pair], probe: Feed) -> list[tuple[Pair, int]]:
    """The pairs that are floats of one shape in both models, with their bytes for one sample."""
    sized: list[tuple[Pair, int]] = []
    for start in range(0, len(pairs), _PROBED):
        group = pairs[start : start + _PROBED]
        for pair, (a, b) in zip(group, _run(both.sessions(group), group, probe), strict=True):
            if _comparable(a) and _comparable(b) and a.shape == b.shape:
                sized.append((pair, a.nbytes + b.nbytes))
    return sized


def _comparable(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size > 0


def _packed(sized: Sequence[tuple[Pair, int]], budget: int) -> Iterator[list[Pair]]:
    """Groups of neighbours that fit into `budget` together; one that alone does not is a group."""
    group: list[Pair] = []
    used = 0
    for pair, size in sized:
        if group and used + size > budget:
            yield group
            group, used = [], 0
        group.append(pair)
        used += size
    if group:
        yield group
