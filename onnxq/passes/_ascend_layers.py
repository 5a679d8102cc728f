"""Layers as Ascend computes them: which inputs get codes, which constants become integers, where floats return.

Both insertions, that for the hardware and that in standard operators, are written from this one reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.ascend_words import bias_codes, dequant_scale
from onnxq.errors import GraphError, RecordError, nearest
from onnxq.factors import LayerFactors
from onnxq.graph import GraphModel, LazyArray, Node, Tensor
from onnxq.passes._ascend_weights import WeightCoder
from onnxq.passes._bias import bias_place
from onnxq.passes._limits import weight_of
from onnxq.passes._linear import kind, optional_input, read_linear


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """An input that gets codes.

    Attributes:
        node: The node that reads it: the layer, or the Pad in front of an AveragePool.
        index: Which of its inputs.
        name: What the quantization there is called.
        factors: Scale, zero point and width.
    """

    node: Node
    index: int
    name: str
    factors: LayerFactors

    @property
    def key(self) -> tuple[int, bytes, int, int]:
        """Equal for entries that one quantization serves: same tensor, same numbers."""
        f = self.factors
        return id(self.node.inputs[self.index]), np.float32(f.scale_d).tobytes(), f.offset_d, f.act_bits


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """A constant that becomes integers for one of its readers.

    Attributes:
        node: The reader.
        index: Which of its inputs.
        key: Edits of one tensor with equal keys give the same integers.
        make: Makes them of the floats.
        shape: Their shape.
        dtype: The type they have on the hardware.
    """

    node: Node
    index: int
    key: object
    make: Callable[[NDArray[np.float32]], NDArray[np.integer]]
    shape: tuple[int, ...]
    dtype: type[np.integer]


@dataclass(frozen=True, slots=True, eq=False)
class AscendLayer:
    """One quantized layer.

    Attributes:
        name: Name of its node.
        node: The node that computes with codes.
        entries: Its inputs that get codes.
        last: The node whose result is dequantized: `node`, or the Add of its bias.
        scale: What the result is multiplied with, float32 of shape (1,) or (channels,); None where floats
            return in front of the node already.
        edits: Its weight and its bias, as far as it has them.
        wts_bits: Width of its weight.
    """

    name: str
    node: Node
    entries: tuple[Entry, ...]
    last: Node
    scale: NDArray[np.float32] | None = None
    edits: tuple[Edit, ...] = ()
    wts_bits: int = 8

    @property
    def pad(self) -> Node | None:
        """The Pad between the codes and an AveragePool, if there is one."""
        first = self.entries[0].node
        return None if first is self.node else first


def find_layers(graph: GraphModel, factors: Mapping[str, LayerFactors], *, s19: bool) -> tuple[AscendLayer, ...]:
    """Read the layers of a record, in topological order.

    Args:
        graph: The float graph.
        factors: A record.
        s19: Cut products of scales to what the hardware multiplies with; see `dequant_scale`.

    Raises:
        RecordError: If the record does not fit the graph, or a bias does not fit into int32.
    """
    by_node: dict[str, dict[int | None, LayerFactors]] = {}
    for key, values in factors.items():
        node, index = locate(graph, key)
        by_node.setdefault(node.name, {})[index] = values
    reader = _Reader(graph, frozenset(by_node), s19)
    return tuple(reader.read(node, by_node[node.name]) for node in graph.nodes() if node.name in by_node)


def locate(graph: GraphModel, key: str) -> tuple[Node, int | None]:
    """The node and the input that a key of a record stands for; no input for a layer with a weight.

    Raises:
        RecordError: If there is none; the message names similar ones.
    """
    if graph.has_node(key):
        return graph.node(key), None
    name, colon, index = key.rpartition(":")
    if colon and index.isdecimal() and graph.has_node(name):
        node = graph.node(name)
        if optional_input(node, int(index)) is None:
            raise RecordError(f"layer {key!r}: {node.op} {name!r} has no input {index}")
        return node, int(index)
    known = [n.name for n in graph.nodes()]
    raise RecordError(f"layer {key!r}: the model has no such node{nearest(name if colon else key, known)}")


@dataclass(frozen=True, slots=True)
class _Reader:
    graph: GraphModel
    quantized: frozenset[str]
    s19: bool

    def read(self, node: Node, found: Mapping[int | None, LayerFactors]) -> AscendLayer:
        try:
            if None in found:
                return self._pool(node, found[None]) if node.op == "AveragePool" else self._layer(node, found[None])
            return self._without_weight(node, found)
        except (RecordError, GraphError) as err:
            raise RecordError(f"layer {node.name!r} ({node.op}): {err}") from err

    def _layer(self, node: Node, factors: LayerFactors) -> AscendLayer:
        linear = read_linear(self.graph, node)
        if isinstance(linear, str):
            raise RecordError(f"{linear}; take it out of the record")
        channels = linear.layout.out_channels
        if factors.scale_w.size not in (1, channels):
            raise RecordError(f"has {factors.scale_w.size} scale_w; must be 1 or {channels}, one for each output")
        scale = dequant_scale(factors.scale_d, factors.scale_w, s19=self.s19)
        coder = WeightCoder(
            linear.layout, factors.scale_w, factors.wts_bits, transposed=_is_transposed(node), cluster=factors.cluster
        )
        weight = Edit(node, 1, coder.key, coder, coder.shape, np.int8)
        bias, last = self._bias(node, scale)
        edits = (weight,) if bias is None else (weight, bias)
        return AscendLayer(
            node.name, node, (Entry(node, 0, f"{node.name}.quant", factors),), last, scale, edits, factors.wts_bits
        )

    def _bias(self, node: Node, scale: NDArray[np.float32]) -> tuple[Edit | None, Node]:
        """The bias as integers, and the node that adds it."""
        place = bias_place(self.graph, node)
        if place is None:
            return None, node
        reader, index = place
        added = reader is not node
        if added and any(name == reader.name for name in self.quantized):
            return None, node  # that Add has codes of its own
        try:
            return self._bias_edit(reader, index, scale), reader
        except RecordError:
            if added:  # an Add can stay behind the dequantization
                return None, node
            raise

    def _bias_edit(self, reader: Node, index: int, scale: NDArray[np.float32]) -> Edit:
        values = self.graph.value(reader.inputs[index])
        if values.size == 1:
            values = np.broadcast_to(values.reshape(-1), scale.shape)
        codes = bias_codes(values.reshape(-1), scale).reshape(values.shape)
        return Edit(reader, index, codes.tobytes(), lambda _: codes, codes.shape, np.int32)

    def _pool(self, node: Node, factors: LayerFactors) -> AscendLayer:
        pad = self._pad_of(node)
        entry = Entry(node if pad is None else pad, 0, f"{node.name}.quant", factors)
        if factors.scale_w.size != 1:
            raise RecordError(f"has {factors.scale_w.size} scale_w; an AveragePool has one, 1.0")
        scale = dequant_scale(factors.scale_d, factors.scale_w, s19=self.s19)
        return AscendLayer(node.name, node, (entry,), node, scale)

    def _pad_of(self, node: Node) -> Node | None:
        """The Pad whose zeros an AveragePool averages over too: codes go through it."""
        graph = self.graph
        pad = graph.producer(node.inputs[0])
        if pad is None or kind(pad) != "Pad" or not graph.is_private(node.inputs[0]):
            return None
        if pad.attrs.get("mode", "constant") not in ("constant", b"constant") or pad.attrs.get("value", 0.0) != 0.0:
            return None
        fill = optional_input(pad, 2)
        if graph.is_constant(pad.inputs[0]) or not graph.is_float32(pad.inputs[0]):
            return None
        return pad if fill is None or (graph.is_constant(fill) and not np.any(graph.value(fill))) else None

    def _without_weight(self, node: Node, found: Mapping[int | None, LayerFactors]) -> AscendLayer:
        indexes = sorted(index for index in found if index is not None)
        entries = tuple(
            Entry(node, i, f"{node.name}.quant{i or ''}", found[i])
            for i in indexes
        )  # fmt: skip
        if node.op != "MatMul":
            return AscendLayer(node.name, node, entries, node)
        if indexes != [0, 1] or weight_of(self.graph, node) is not None:
            raise RecordError("a MatMul has an entry for each of its two inputs where neither is a constant, else one")
        scale = dequant_scale(found[0].scale_d, np.asarray([found[1].scale_d], np.float32), s19=self.s19)
        return AscendLayer(node.name, node, entries, node, scale)


def _is_transposed(node: Node) -> bool:
    return node.op == "Gemm" and bool(node.attrs.get("transB", 0))


def edit_constants(graph: GraphModel, layers: Iterable[AscendLayer], *, as_floats: bool) -> None:
    """Let weights and biases be integers for the layers, and Gemms read theirs untransposed.

    A constant that only layers read keeps its name for those that read it in the same way. For others there
    is a new one, and for whoever reads floats the old one stays.

    Args:
        graph: The graph.
        layers: The layers.
        as_floats: Store the integers as float32.
    """
    by_tensor: dict[int, dict[object, list[Edit]]] = {}
    tensors: dict[int, Tensor] = {}
    for edit in (e for layer in layers for e in layer.edits):
        tensor = edit.node.inputs[edit.index]
        tensors[id(tensor)] = tensor
        by_tensor.setdefault(id(tensor), {}).setdefault(edit.key, []).append(edit)
    for number, ways in by_tensor.items():
        _edit_constant(graph, tensors[number], list(ways.values()), as_floats=as_floats)
    for layer in layers:
        layer.node.attrs.pop("transB", None) if _is_transposed(layer.node) else None


def _edit_constant(graph: GraphModel, tensor: Tensor, ways: list[list[Edit]], *, as_floats: bool) -> None:
    readers = sum(len(way) for way in ways)
    seen = graph.is_output(tensor) or graph.read_by_subgraph(tensor) or len(graph.consumers(tensor)) > readers
    for way in ways[0 if seen else 1 :]:
        constant = graph.add_constant(f"{tensor.name}_quantized", _numbers(graph, tensor, way[0], as_floats=as_floats))
        for edit in way:
            graph.set_input(edit.node, edit.index, constant)
    if not seen:
        graph.rewrite_constant(tensor, _numbers(graph, tensor, ways[0][0], as_floats=as_floats))


def _numbers(graph: GraphModel, tensor: Tensor, edit: Edit, *, as_floats: bool) -> LazyArray:
    dtype: type[np.generic] = np.float32 if as_floats else edit.dtype
    return graph.derived(tensor, lambda v: edit.make(v).astype(dtype, copy=False), shape=edit.shape, dtype=dtype)
