"""The anatomy of a quantized model that is only known from its file: from its operators and their numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxq.errors import OnnxqError
from onnxq.graph import GraphModel, Node, Tensor
from onnxq.opinfo import OPS
from onnxq.plan import Decision, Role
from onnxq.report.anatomy import Anatomy, WeightPlace, name_of
from onnxq.report.debug_reading import Reading, read_quantized
from onnxq.report.numbers import Numbers, numbers_of
from onnxq.report.pairs import Pair, find_pairs
from onnxq.spec import PerAxis, PerBlock, PerTensor, QType, QuantParams, QuantSpec

_CODED = ("MatMulNBits", "GatherBlockQuantized", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")
_WEIGHTED = ("Gather", "LSTM", "GRU", "RNN")
_FOLDED = ("Relu", "Clip", "BatchNormalization")
_MADE = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_WIDTHS = {"float8e4m3fn": QType.FLOAT8E4M3FN, "float8e5m2": QType.FLOAT8E5M2}


def read_anatomy(reference: GraphModel, quantized: GraphModel) -> Anatomy:
    """What two models tell without being run.

    Nodes are matched by their names, or by what their outputs are called. Which method chose the numbers, and why a
    node stayed float, is not in a model.

    Args:
        reference: The float model.
        quantized: What became of it.
    """
    pairs = find_pairs(reference, quantized)
    twins = _twins(reference, quantized)
    reading = read_quantized(quantized)
    parts = {str(n.name).rpartition("_")[0] for n in quantized.nodes() if n.op in _CODED}
    decisions: dict[str, Decision] = {}
    weights: dict[WeightPlace, Numbers] = {}
    for node in reference.nodes():
        twin = twins.get(name_of(node))
        role = "quantized" if name_of(node) in parts else _role(reading, node, twin)
        decisions[name_of(node)] = Decision(name_of(node), node.op, role)
        if twin is not None:
            weights |= {(name_of(node), index): found for index, found in _weights(reference, quantized, node, twin)}
    return Anatomy(reference, decisions, _activations(quantized, pairs), weights)


def _twins(reference: GraphModel, quantized: GraphModel) -> dict[str, Node]:
    """The node of the quantized model that does the work of each float node."""
    working = [node for node in quantized.nodes() if node.op not in _MADE]
    named = {str(node.name): node for node in working if node.name}
    known = {str(node.name) for node in reference.nodes() if node.name}
    by_output = {str(t.name): n for n in working for t in n.outputs if n.name not in known}
    found = {}
    for node in reference.nodes():
        others = (by_output[t.name] for t in node.outputs if t.name in by_output)
        twin = named.get(str(node.name)) or next(others, None)
        if twin is not None:
            found[name_of(node)] = twin
    return found


def _role(reading: Reading, node: Node, twin: Node | None) -> Role:
    quantized = reading.graph
    if twin is None:
        return "absorbed" if node.op in _FOLDED else "float"
    if twin.op in _CODED or twin.op.startswith(("QLinear", "Ascend")):
        return "quantized"
    info = OPS.get(node.op)
    makers = [quantized.producer(t) for t in twin.inputs if t.name]
    weighted = node.op in _WEIGHTED or (info is not None and info.kind == "linear")
    if weighted and any(reading.is_constant(t) and not quantized.is_constant(t) for t in twin.inputs if t.name):
        return "quantized"  # its weight is decoded from codes
    if info is None or not any(maker is not None and maker.op == "DequantizeLinear" for maker in makers):
        return "float"
    if info.kind == "linear":
        return "quantized"
    readers = [use.node.op for t in twin.outputs if t.name for use in quantized.consumers(t)]
    if "QuantizeLinear" not in readers:
        return "float"  # it only happens to read what was quantized for somebody else
    return "shared" if info.kind in ("passive", "join") else "quantized"


def _activations(quantized: GraphModel, pairs: tuple[Pair, ...]) -> dict[str, Numbers]:
    """How the activations of the float model become codes, by their names."""
    tensors = quantized.tensors()
    found = {}
    for pair in pairs:
        maker = quantized.producer(tensors[pair.quantized])
        if maker is not None and maker.op == "DequantizeLinear":
            numbers = _read(quantized, pair.reference, maker)
            if numbers is not None:
                found[pair.reference] = numbers
    for tensor in quantized.inputs:
        uses = [use.node for use in quantized.consumers(tensor) if use.node.op == "QuantizeLinear"]
        if uses:
            numbers = _read(quantized, str(tensor.name), uses[0])
            if numbers is not None:
                found[str(tensor.name)] = numbers
    return found


def _weights(reference: GraphModel, quantized: GraphModel, node: Node, twin: Node) -> Iterator[tuple[int, Numbers]]:
    """How the constants that a node reads become codes; int32 biases are none of them."""
    for index, (tensor, other) in enumerate(zip(node.inputs, twin.inputs, strict=False)):
        maker = quantized.producer(other) if tensor.name and other.name else None
        if not reference.is_constant(tensor) or maker is None or maker.op != "DequantizeLinear":
            continue
        numbers = _read(quantized, str(tensor.name), maker)
        if numbers is not None and not numbers.kind.startswith("int32"):
            yield index, numbers


def _read(graph: GraphModel, tensor: str, node: Node) -> Numbers | None:
    """The numbers of a QuantizeLinear or DequantizeLinear; None where they are computed or of an unknown type."""
    given = [t for t in node.inputs[1:3] if t.name]
    if not given or not all(graph.is_constant(t) for t in given):
        return None
    scale = np.asarray(graph.value(given[0]), np.float32)
    codes = given[1] if len(given) > 1 else node.inputs[0] if node.op == "DequantizeLinear" else node.outputs[0]
    qtype = _type(graph, codes)
    if qtype is None:
        return None
    plain = len(given) > 1 and not qtype.floating
    zero = np.asarray(graph.value(given[1])).astype(np.int32) if plain else np.zeros(scale.shape, np.int32)
    axis = int(node.attrs.get("axis", 1))
    size = int(node.attrs.get("block_size", 0))
    granularity = PerBlock(axis, size) if size else PerAxis(axis) if scale.ndim else PerTensor()
    try:
        params = QuantParams(QuantSpec(qtype, granularity, qtype.signed and not zero.any()), scale, zero)
    except (ValueError, OnnxqError):
        return None
    return numbers_of(tensor, params)


def _type(graph: GraphModel, tensor: Tensor) -> QType | None:
    dtype = graph.dtype(tensor)
    name = "" if dtype is None else dtype.name.replace("_", "")
    return _WIDTHS.get(name) or next((t for t in QType if t.label == name), None)
