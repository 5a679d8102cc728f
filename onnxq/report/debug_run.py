"""Runs a float and a quantized model on the same samples and describes their tensors, within a budget of memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calib.feeds import Feed
from onnxq.graph import GraphModel
from onnxq.report.debug_reading import Constants, Reading, decoded, fetched
from onnxq.report.debug_rows import Measure, as_floats
from onnxq.report.debug_statistics import Comparison, compare_values
from onnxq.runtime import Session, make_session, thread_count

BUDGET = 256 << 20
"""How many bytes of activations are held at a time."""
KEPT = 1 << 30
"""How many bytes of weights the sessions of all groups together may hold; beyond, each round makes them anew."""

Found = Mapping[Measure, Comparison]


@dataclass(frozen=True, slots=True)
class _Group:
    """Measures whose tensors are fetched together."""

    measures: tuple[Measure, ...]
    origins: tuple[str, ...]
    sources: tuple[str, ...]


class Runs:
    """Both models on one sample after the other.

    Args:
        original: The float model.
        reading: What became of it, as it runs here.
        measures: What is to be described.
        threads: Threads of ONNX Runtime, and how many tensors are described at a time; 0 for all cores.
        budget: Bytes of activations held at a time.
    """

    def __init__(
        self,
        original: GraphModel,
        reading: Reading,
        measures: Sequence[Measure],
        *,
        threads: int = 0,
        budget: int = BUDGET,
    ) -> None:
        self._original = original
        self._reading = reading
        self._constants = [m for m in measures if m.constant]
        self._variables = [m for m in measures if not m.constant]
        self._threads = threads
        self._budget = budget
        self._groups: tuple[_Group, ...] | None = None
        self._kept: dict[int, tuple[Session, Session]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    @cached_property
    def fixed(self) -> Found:
        """What can be told about constants; they are the same in every round and described one after the other."""
        constants = Constants(self._reading)
        found: dict[Measure, Comparison] = {}
        for measure in self._constants:
            dequant = decoded(constants, measure.source)
            origin = None if measure.origin is None else self._original.value(self._original.tensor(measure.origin))
            self.shapes[measure.source.names[0]] = dequant.shape
            _describe(found, measure, origin, dequant)
        return found

    def round(self, feed: Feed) -> Found:
        """What can be told about the tensors of one sample; those that hold no floats are left out.

        Raises:
            ModelError: If a model cannot be loaded.
            DataError: If a model cannot be run on this sample.
        """
        if self._groups is None:
            self._groups = tuple(self._grouped(feed))
        found = dict(self.fixed)
        with ThreadPoolExecutor(thread_count(self._threads)) as pool:
            for number, group in enumerate(self._groups):
                reference, quantized = self._values(number, group, feed)

                def describe(
                    measure: Measure, a: Mapping[str, Any] = reference, b: Mapping[str, Any] = quantized
                ) -> None:
                    origin = None if measure.origin is None else a[measure.origin]
                    if all(isinstance(b[name], np.ndarray) for name in measure.source.names):
                        _describe(found, measure, origin, fetched(measure.source, b))

                for _ in pool.map(describe, group.measures):
                    pass
        return found

    def _values(self, number: int, group: _Group, feed: Feed) -> tuple[dict[str, Any], dict[str, Any]]:
        sessions = self._kept.get(number) or self._sessions(group)
        if self._keeping:
            self._kept[number] = sessions
        reference, quantized = sessions
        return _run(reference, group.origins, feed), _run(quantized, group.sources, feed)

    @cached_property
    def _keeping(self) -> bool:
        weights = self._original.weight_bytes + self._reading.graph.weight_bytes
        return weights * len(self._groups or ()) <= KEPT or len(self._groups or ()) == 1

    def _sessions(self, group: _Group) -> tuple[Session, Session]:
        inputs = {t.name for t in self._original.inputs}
        origins = [name for name in group.origins if name not in inputs]
        sources = [name for name in group.sources if name not in inputs]
        return (
            make_session(self._original, threads=self._threads, source="the float model", outputs=origins),
            make_session(self._reading.graph, threads=self._threads, source="the quantized model", outputs=sources),
        )

    def _grouped(self, feed: Feed) -> Iterator[_Group]:
        """Measures in groups whose tensors fit into the budget; one that alone does not is a group."""
        origins = dict.fromkeys(m.origin for m in self._variables if m.origin is not None)
        sources = dict.fromkeys(name for m in self._variables for name in m.source.names)
        sizes = self._sizes(self._original, list(origins), feed)
        found = self._sizes(self._reading.graph, list(sources), feed)
        self.shapes |= found
        group: list[Measure] = []
        held: set[tuple[int, str]] = set()
        used = 0
        for measure in self._variables:
            needed = {(1, name) for name in measure.source.names}
            needed |= set() if measure.origin is None else {(0, measure.origin)}
            size = sum(4 * _count((sizes, found)[side][name]) for side, name in needed - held)
            if group and used + size > self._budget:
                yield _group(group)
                group, held, used = [], set(), 0
                size = sum(4 * _count((sizes, found)[side][name]) for side, name in needed)
            group.append(measure)
            held |= needed
            used += size
        if group:
            yield _group(group)

    def _sizes(self, graph: GraphModel, names: Sequence[str], feed: Feed) -> dict[str, tuple[int, ...]]:
        """The shapes of tensors on one sample; none of them leaves the session."""
        inner = [name for name in names if name not in feed]
        known = {name: feed[name].shape for name in names if name in feed}
        if not inner:
            return known
        asked = [graph.unique_name(f"{name}_shape") for name in inner]
        extra = [onnx.helper.make_node("Shape", [n], [a]) for n, a in zip(inner, asked, strict=True)]
        session = make_session(graph, threads=self._threads, outputs=asked, extra=extra)
        shapes = session.run(asked, {i.name: feed[i.name] for i in session.inputs})
        return known | {n: tuple(int(d) for d in shape) for n, shape in zip(inner, shapes, strict=True)}


def _count(shape: Iterable[int]) -> int:
    return int(np.prod(list(shape), dtype=np.int64))


def _group(measures: Sequence[Measure]) -> _Group:
    return _Group(
        tuple(measures),
        tuple(dict.fromkeys(m.origin for m in measures if m.origin is not None)),
        tuple(dict.fromkeys(name for m in measures for name in m.source.names)),
    )


def _run(session: Session, names: Iterable[str], feed: Feed) -> dict[str, Any]:
    """The values of tensors, those of inputs too."""
    inner = [name for name in names if name not in feed]
    found = session.run(inner, {i.name: feed[i.name] for i in session.inputs}) if inner else []
    return dict(feed) | dict(zip(inner, found, strict=True))


def _describe(
    found: dict[Measure, Comparison], measure: Measure, origin: NDArray[Any] | None, dequant: NDArray[Any]
) -> None:
    """Compare two arrays, if they can be."""
    if "float" not in dequant.dtype.name or not dequant.size:
        return
    if origin is not None and ("float" not in origin.dtype.name or origin.size != dequant.size):
        origin = None
    reference = None if origin is None else as_floats(origin)
    found[measure] = compare_values(reference, as_floats(dequant))
