"""Chooses codes of few bits whose blocks have scales of their own: nearest codes, HQQ, GPTQ, AWQ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight import awq, config_from_dict, gptq, hqq, rtn
from onnxq.algos.weight.mse import MseConfig
from onnxq.algos.weight.rtn import BlockMatrix, BlockShape
from onnxq.errors import CalibrationError, DataError
from onnxq.graph import GraphModel
from onnxq.passes._base import Fact, Pass, PassReport
from onnxq.passes._block_layers import BlockLayer, block_layers, keep, matrix_of, shape_of
from onnxq.passes._block_stream import BlockStream, Group
from onnxq.passes._block_widths import choose_layer_widths
from onnxq.passes._scale_folds import divide, find_sites
from onnxq.passes._weight_only import unusable
from onnxq.plan import Plan
from onnxq.recipe import AWQ, AWQGPTQ, GPTQ, HQQ, RTN, BlockMethod, WeightMSE, WeightOnly
from onnxq.runtime import thread_count

if TYPE_CHECKING:
    from onnxq.context import QuantContext

Matrix = NDArray[np.float32]
_PRODUCTS = frozenset({"MatMul", "Gemm", "Gather"})


@dataclass(frozen=True)
class ChooseBlocks(Pass):
    """Writes ``ctx.blocks``: codes with scales of blocks for the 2-D weights of MatMul, Gemm and Gather.

    Methods that look at activations run the model once, piece by piece, over the first samples of ``ctx.reader``: what
    comes behind a layer is computed with its codes, so that later layers make up for what earlier ones lost. Of the
    model only the weights of one piece are in memory, and X·Xᵀ of the inputs of one group of layers.

    Given:
        a plan of weights.
    Result:
        `ctx.blocks`, and the codes as constants that nobody reads yet. With ``awq`` constants in front of layers are
        divided by factors. Weights that have no such blocks are left to others.

    Sources: see `onnxq.algos.weight.gptq`, `hqq` and `awq`.

    Attributes:
        scheme: Method, storage, block size, and the average width where there is one.
    """

    scheme: WeightOnly

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.PLAN})
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.BLOCKS})

    def check(self, graph: GraphModel, ctx: QuantContext) -> None:
        """Refuse a method that looks at activations without data.

        Raises:
            DataError: If there are none.
        """
        method = self.scheme.method
        if isinstance(method, (GPTQ, AWQ)) and ctx.reader is None and (ctx.plan or Plan()).weights:
            raise DataError(
                f"scheme.method {method.name} looks at the inputs of layers: give calibration data, or use hqq or rtn"
            )

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Choose.

        Raises:
            CalibrationError: If activations hold NaN or infinity.
            GraphError: If a weight does.
        """
        layers, refused = block_layers(graph, (ctx.plan or Plan()).weights, self.scheme.storage)
        notes = [
            f"{node}: codes of whole channels: {reason}"
            for node, reason in refused.items()
            if graph.node(node).op in _PRODUCTS
        ]
        ctx.blocks = {}
        if layers:
            chooser = _Chooser(graph, ctx, self.scheme, layers)
            chooser.run()
            notes += chooser.notes
        return PassReport(changed=len(ctx.blocks), notes=tuple(notes))


class _Chooser:
    def __init__(self, graph: GraphModel, ctx: QuantContext, scheme: WeightOnly, layers: Sequence[BlockLayer]) -> None:
        self.notes: list[str] = []
        self._graph = graph
        self._ctx = ctx
        self._scheme = scheme
        self._method: BlockMethod = scheme.method or HQQ()
        self._layers = layers
        self._workers = thread_count(ctx.threads)
        self._widths: dict[tuple[str, bool], int] = {}
        self._folded = 0
        self._unfolded: dict[str, str] = {}

    def run(self) -> None:
        """Choose the widths, then the codes: first of what no activation is known for."""
        streamed = isinstance(self._method, (GPTQ, AWQ))
        if self._scheme.average_bits is not None:
            self._widths, note = choose_layer_widths(self._graph, self._ctx, self._layers, self._scheme)
            self.notes.append(note)
        waiting = [layer for layer in self._layers if not (streamed and layer.source)]
        for done, layer in enumerate(waiting, 1):
            self._keep(layer, lambda matrix, layer=layer: self._without_inputs(layer, matrix))  # type: ignore[misc]
            if self._ctx.progress is not None:
                self._ctx.progress("choosing codes", done, len(waiting))
        if streamed and any(layer.source for layer in self._layers):
            stream = BlockStream(self._graph, self._layers, self._ctx)
            self._ctx.samples = max(self._ctx.samples, stream.samples)
            stream.run(self._visit, "choosing codes")
            self.notes.append(f"codes chosen over {stream.samples} samples")
        self._tell_folds()

    def _tell_folds(self) -> None:
        if isinstance(self._method, (AWQ, AWQGPTQ)):
            total = self._folded + len(self._unfolded)
            self.notes.append(f"awq: inputs of {self._folded} of {total} groups of layers are scaled")
            self.notes += [f"awq: {name} is not scaled: {reason}" for name, reason in self._unfolded.items()]

    def _keep(self, layer: BlockLayer, work: Callable[[Matrix], BlockMatrix]) -> None:
        """Choose the codes of a weight, unless another reader of it has had its turn."""
        if layer.place in self._ctx.blocks:
            return
        try:
            found = work(matrix_of(self._graph, layer))
        except CalibrationError as err:
            raise unusable(layer.plan, err) from err
        size = found.shape.size
        if self._scheme.storage == "blocks" and size > _LARGEST:
            found = found.in_blocks_of(_LARGEST)
        stored = keep(self._graph, layer, found)
        self._ctx.blocks |= {other.place: stored for other in self._layers if other.key == layer.key}

    def _shape(self, layer: BlockLayer) -> BlockShape:
        bits = self._widths.get(layer.key, layer.plan.spec.bits)
        return shape_of(layer, self._scheme.block_size, bits, self._shares(layer), self._scheme.storage)

    def _shares(self, layer: BlockLayer) -> tuple[float, ...]:
        """Which parts of a block's range are tried: what the recipe says, else what the method wants."""
        wanted = layer.plan.method
        if isinstance(wanted, WeightMSE):
            config = config_from_dict(wanted.name, wanted.parameters())
            return tuple(config.shares().tolist()) if isinstance(config, MseConfig) else rtn.SEARCHED
        plain = isinstance(self._method, (RTN, HQQ)) or self._says_absmax(layer.plan.node)
        return rtn.PLAIN if plain else rtn.SEARCHED

    def _says_absmax(self, node: str) -> bool:
        """Whether the recipe names the method that is also the default."""
        return self._ctx.recipe.resolve(node, str(self._graph.node(node).op)).weights.method is not None

    def _without_inputs(self, layer: BlockLayer, matrix: Matrix) -> BlockMatrix:
        shape = self._shape(layer)
        if isinstance(self._method, HQQ):
            config = hqq.HqqConfig(power=self._method.power, iterations=self._method.iterations)
            return rtn.in_pieces(matrix, lambda rows: hqq.half_quadratic(rows, shape, config, workers=self._workers))
        return rtn.in_pieces(matrix, lambda rows: rtn.round_to_nearest(rows, shape, workers=self._workers))

    # ---- with inputs

    def _visit(self, group: Group) -> NDArray[np.float32] | None:
        factors = self._factors(group) if isinstance(self._method, (AWQ, AWQGPTQ)) else None
        spans, squares = group.spans, group.squares
        if factors is not None:
            squares = tuple(awq.scaled_hessian(h, factors[s]) for h, s in zip(squares, spans, strict=True))
        for layer in group.layers:
            shape = self._shape(layer)

            def work(matrix: Matrix, shape: BlockShape = shape) -> BlockMatrix:
                scaled = matrix if factors is None else matrix * factors
                parts = [self._rounded(scaled[:, s], h, shape) for h, s in zip(squares, spans, strict=True)]
                return parts[0] if len(parts) == 1 else rtn.beside(parts)

            self._keep(layer, work)
        return factors

    def _rounded(self, matrix: Matrix, square: NDArray[np.float64], shape: BlockShape) -> BlockMatrix:
        method = self._method
        if isinstance(method, GPTQ):
            config = gptq.GptqConfig(method.damping, method.act_order, method.block_size)
            return gptq.compensate(matrix, square, shape, config, workers=self._workers)
        importance = gptq.importance_of(np.diag(square))
        return rtn.in_pieces(matrix, lambda rows: rtn.round_to_nearest(rows, shape, importance, workers=self._workers))

    def _factors(self, group: Group) -> NDArray[np.float32] | None:
        """What the group's activation is to be divided by; None where there is no place for it or no gain."""
        method, first = self._method, group.layers[0]
        graph = self._graph
        if any(layer.place in self._ctx.blocks or not _owns(graph, layer) for layer in group.layers):
            self._unfolded[group.source] = "a weight has other readers"
            return None
        sites = find_sites(graph, graph.tensor(group.source), len(group.layers), first.inputs)
        if isinstance(sites, str):
            self._unfolded[group.source] = sites
            return None
        matrices = [matrix_of(graph, layer) for layer in group.layers]
        shapes = [self._shape(layer) for layer in group.layers]
        config = awq.AwqConfig(method.grid if isinstance(method, (AWQ, AWQGPTQ)) else 1)
        found = awq.search_factors(matrices, group.squares, shapes, config, workers=self._workers)
        if not found.exponent:
            self._unfolded[group.source] = "it gains nothing"
            return None
        divide(graph, sites, found.values, self._ctx.blocks)
        self._folded += 1
        return found.values


_LARGEST = 256
"""The largest block of MatMulNBits and GatherBlockQuantized."""


def _owns(graph: GraphModel, layer: BlockLayer) -> bool:
    return graph.is_private(graph.node(layer.plan.node).inputs[layer.plan.index])
