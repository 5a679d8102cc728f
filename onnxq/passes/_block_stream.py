"""Running a model piece by piece, with X·Xᵀ of the inputs of one group of layers at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calib.chunks import first_batches
from onnxq.calib.engine import batch_for
from onnxq.calib.feeds import Feed, batching, sample_count
from onnxq.calib.readers import Reader
from onnxq.calib.segments import SegmentRunner
from onnxq.errors import CalibrationError
from onnxq.graph import GraphModel
from onnxq.passes._block_layers import BlockLayer, recall
from onnxq.passes._inputs import inputs_of
from onnxq.runtime import thread_count

if TYPE_CHECKING:
    from onnxq.context import QuantContext

_COPIES = 6
"""Activations of the size of a layer's input that are alive at a time."""
_FACTORS = 6
"""Matrices of the size of X·Xᵀ that an algorithm needs, all in float64."""
_SAMPLES = 128
"""How many samples are run where the recipe leaves it open."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Layers that read the same activation, and what is known of it.

    Attributes:
        source: Its name.
        layers: The layers.
        squares: ``X X'`` of its last axis, float64, over the positions of all samples: one matrix, or one for each span
            of channels where one is too much for the memory budget.
    """

    source: str
    layers: tuple[BlockLayer, ...]
    squares: tuple[NDArray[np.float64], ...]

    @property
    def spans(self) -> list[slice]:
        """The channels of each of the squares."""
        ends = np.cumsum([len(s) for s in self.squares])
        return [slice(int(end) - len(s), int(end)) for end, s in zip(ends, self.squares, strict=True)]


Visit = Callable[[Group], NDArray[np.float32] | None]
"""Is given each group when its inputs are there; what it returns, if anything, the activation is divided by."""


class BlockStream:
    """One run of a model over its first samples.

    What follows a layer is computed with its codes where it has some. Memory is needed for the activations that are
    alive, the weights of one piece, and the squares of one group.

    Args:
        graph: The model; the constants that its nodes read now are those that are run.
        layers: Layers that have a source; those with codes are run with them.
        ctx: Reader, threads, budget, and the codes.
    """

    def __init__(self, graph: GraphModel, layers: Sequence[BlockLayer], ctx: QuantContext) -> None:
        if ctx.reader is None:
            raise CalibrationError("no data to run the model on")
        self._graph = graph
        self._ctx = ctx
        self._all = {(layer.plan.node, layer.plan.index): layer for layer in layers}
        self._groups: dict[str, list[BlockLayer]] = {}
        for layer in layers:
            if layer.source:
                self._groups.setdefault(layer.source, []).append(layer)
        self._constants = {t.name: t for t in graph.constants()}
        self._feeds = self._first_feeds(ctx.reader)
        self.samples = sum(sample_count(feed, batching(inputs_of(graph)).carried) or 1 for feed in self._feeds)

    def run(self, visit: Visit, title: str) -> None:
        """Visit every group in the order of the graph.

        Args:
            visit: What is done with it.
            title: What is being done, for the progress.

        Raises:
            CalibrationError: If an activation holds NaN or infinity.
        """
        total, done = len(self._groups), 0
        given = [t.name for t in self._graph.inputs if t.name in self._groups]
        for name in given:
            self._visit(name, [np.asarray(feed[name]) for feed in self._feeds], visit)
            done += 1
            self._tell(title, done, total)
        stops = [name for name in self._groups if name not in given]
        skeleton, coded = self._skeleton()
        weight = self._weight_of(coded)
        with SegmentRunner(skeleton, weight, self._feeds, stops, thread_count(self._ctx.threads)) as runner:
            for _ in stops:
                name, values = runner.advance()
                factors = self._visit(name, values, visit)
                if factors is not None:
                    for value in values:
                        value /= factors
                done += 1
                self._tell(title, done, total)

    def _tell(self, title: str, done: int, total: int) -> None:
        if self._ctx.progress is not None:
            self._ctx.progress(title, done, total)

    def _visit(self, name: str, values: Sequence[NDArray[np.float32]], visit: Visit) -> NDArray[np.float32] | None:
        layers = tuple(self._groups[name])
        return visit(Group(name, layers, self._squares(name, values, layers[0])))

    def _squares(
        self, name: str, values: Sequence[NDArray[np.float32]], layer: BlockLayer
    ) -> tuple[NDArray[np.float64], ...]:
        """In a fixed order of float32 products that are added up in float64."""
        budget = self._ctx.recipe.calibration.memory_budget_mb * 2**20
        most = max(256, math.isqrt(budget // (8 * _FACTORS)) // 256 * 256)
        spans = [slice(start, min(start + most, layer.inputs)) for start in range(0, layer.inputs, most)]
        squares = [np.zeros((s.stop - s.start,) * 2) for s in spans]
        rows = 0
        for value in values:
            x = np.asarray(value, np.float32).reshape(-1, layer.inputs)
            rows += len(x)
            for span, square in zip(spans, squares, strict=True):
                part = np.ascontiguousarray(x[:, span])
                square += part.T @ part
        for square in squares:
            square /= max(rows, 1)
            if not np.isfinite(square).all():
                raise CalibrationError(f"activation {name!r} holds NaN or infinity; check the calibration data")
        return tuple(squares)

    def _first_feeds(self, reader: Reader) -> list[Feed]:
        inputs = inputs_of(self._graph)
        (first,) = first_batches(reader, 1, 1, inputs)[:1]
        each = max((self._bytes(name, first) for name in self._groups), default=0)
        options = self._ctx.recipe.calibration
        most = max(1, options.memory_budget_mb * 2**20 // max(_COPIES * each, 1))
        return first_batches(reader, min(options.samples or _SAMPLES, most), batch_for(each), inputs)

    def _bytes(self, name: str, feed: Feed) -> int:
        """Bytes of an activation of one sample, judged by its shape and by what was fed."""
        sizes: dict[str, int] = {}
        for tensor in self._graph.inputs:
            pairs = zip(self._graph.shape(tensor) or (), feed[tensor.name].shape, strict=False)
            sizes |= {dim: size for dim, size in pairs if isinstance(dim, str)}
        shape = self._graph.shape(self._graph.tensor(name)) or ()
        known = [dim if isinstance(dim, int) else sizes.get(dim or "") for dim in shape]
        free = max((array.size for array in feed.values()), default=1) if None in known else 1
        return 4 * free * math.prod(dim for dim in known if dim is not None)

    def _skeleton(self) -> tuple[onnx.ModelProto, dict[str, BlockLayer]]:
        """The model in which every layer reads its weight under a name of its own, and the layers by these names."""
        skeleton = self._graph.skeleton()
        nodes = {n.name: n for n in skeleton.graph.node}
        coded: dict[str, BlockLayer] = {}
        for layer in self._all.values():
            name = f"{layer.plan.node}/{layer.plan.index}/{layer.plan.tensor}/codes"
            nodes[layer.plan.node].input[layer.plan.index] = name
            skeleton.graph.initializer.add(name=name)
            coded[name] = layer
        return skeleton, coded

    def _weight_of(self, coded: Mapping[str, BlockLayer]) -> Callable[[str], onnx.TensorProto]:
        def weight(name: str) -> onnx.TensorProto:
            layer = coded.get(name)
            if layer is None:
                array = self._graph.value(self._constants[name])
            elif layer.place in self._ctx.blocks:
                matrix = recall(self._graph, self._ctx.blocks[layer.place]).decode()
                array = matrix if layer.by_rows else matrix.T
            else:
                array = self._graph.value(self._constants[layer.plan.tensor])
            return onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)

        return weight
