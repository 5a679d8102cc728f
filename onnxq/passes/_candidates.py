"""Which nodes could be quantized, and why the others cannot: one node at a time, without its neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxq.graph import GraphModel, Node, Tensor
from onnxq.opinfo import OPS, OpInfo
from onnxq.passes._limits import why_beyond, why_not_wide
from onnxq.passes._linear import describe, kind, optional_input, why_not_constant
from onnxq.passes._specs import activation_spec, computes_float8
from onnxq.recipe import Settings
from onnxq.targets import Target

_WITH_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})
FORCE = "a rule with quantize: true quantizes it all the same"


SIGNED = (
    "its right factor is an activation of int8 codes, and processors without VNNI saturate sums of two such products; "
    "give it uint8 activations by a rule"
)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A node that could be quantized.

    Attributes:
        node: The node.
        info: Facts about its operator.
        settings: What the recipe says of it.
        data: Indexes of its inputs that hold data and are not constant.
        constants: Indexes of its inputs that hold data and are constant.
        weight: Index of its weight; -1 where it has none.
        results: Its outputs that hold data.
        bounds: Limits of a Clip or Relu.
    """

    node: Node
    info: OpInfo
    settings: Settings
    data: tuple[int, ...]
    constants: tuple[int, ...] = ()
    weight: int = -1
    results: tuple[Tensor, ...] = ()
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def kind(self) -> str:
        """How it treats scales; see `onnxq.opinfo.Kind`."""
        return self.info.kind


def examine(
    graph: GraphModel, node: Node, settings: Settings, target: Target, patterns: dict[str, str]
) -> Candidate | str:
    """A node as a candidate, or the reason why it stays float."""
    op = kind(node)
    info = OPS.get(op)
    if settings.skip:
        return settings.reason
    if op in _WITH_BODIES:
        return f"the bodies of {node.op} nodes are left float"
    if info is None:
        return f"{target.title} does not compute {op} with codes"
    reason = _refused(op, info, settings, target) or (None if settings.force else patterns.get(node.name))
    if reason is not None:
        return reason
    found = _with_tensors(graph, node, info, settings)
    return found if isinstance(found, str) else _within_limits(graph, found, target)


def _within_limits(graph: GraphModel, candidate: Candidate, target: Target) -> Candidate | str:
    node = candidate.node
    bits = activation_spec(candidate.settings.activations, target).bits
    reason = why_beyond(graph, node, target) or why_not_wide(graph, node, bits, target)
    if reason is None and _saturates(candidate, target):
        reason = SIGNED
    if reason is None and target.alone and not candidate.data:
        reason = "its input is a constant"
    if reason is None and target.alone and candidate.kind == "arithmetic":
        return _with_one_input(candidate)
    return reason or candidate


def _saturates(candidate: Candidate, target: Target) -> bool:
    """Whether processors that add two products in 16 bits saturate: scales leave room for constants only."""
    if candidate.node.op != "MatMul" or 1 not in candidate.data or not target.safe_pairs:
        return False
    spec = activation_spec(candidate.settings.activations, target)
    return spec.bits == 8 and spec.qtype.signed and not spec.qtype.floating


def _with_one_input(candidate: Candidate) -> Candidate | str:
    """Codes of one input are enough: the backend fuses the node into what makes the other."""
    wanted = candidate.settings.inputs
    data = tuple(i for i in candidate.data if i in wanted or not wanted)
    if not data:
        return f"the recipe wants codes of its inputs {', '.join(map(str, wanted))}, none of which is an activation"
    return Candidate(candidate.node, candidate.info, candidate.settings, data[:1], results=candidate.results)


def _refused(op: str, info: OpInfo, settings: Settings, target: Target) -> str | None:
    if computes_float8(settings.activations, target):
        return (
            None if op in target.float8 else f"{target.title} computes {op} with floats where layers have float8 codes"
        )
    if op in target.compute or op in target.passive or op in target.clamps:
        return None
    if settings.force and (op in target.slower or not target.alone):
        return None
    if op in target.slower:
        return f"{target.slower[op]}; {FORCE}"
    if info.kind == "clamp":
        return f"{target.title} fuses {op} into the layer in front of it"
    return f"{target.title} does not compute {op} with codes"


def _with_tensors(graph: GraphModel, node: Node, info: OpInfo, settings: Settings) -> Candidate | str:
    indexes = tuple(range(len(node.inputs))) if info.inputs is None else info.inputs
    indexes = tuple(i for i in indexes if i < len(node.inputs) and node.inputs[i].name)
    for index in indexes:
        tensor = node.inputs[index]
        if not graph.is_float32(tensor):
            return _why_not_float32(graph, tensor)
    results = tuple(t for t in (node.outputs if info.outputs is None else node.outputs[: info.outputs]) if t.name)
    if not results and info.outputs != 0:
        return "nothing reads its output"
    data = tuple(i for i in indexes if not graph.is_constant(node.inputs[i]))
    constants = tuple(i for i in indexes if i not in data)
    candidate = Candidate(node, info, settings, data, constants, results=results)
    match info.kind:
        case "linear":
            return _linear(graph, candidate)
        case "clamp":
            return _clamp(graph, candidate)
        case "passive":
            return _passive(graph, candidate)
    return candidate if data else "all its inputs are constant"


def _why_not_float32(graph: GraphModel, tensor: Tensor) -> str:
    found = graph.dtype(tensor)
    if found is None:
        return f"the element type of {tensor.name!r} is not known; run shape inference on the model"
    hint = "; convert the model to float32 first" if found.name in ("float16", "bfloat16", "float64") else ""
    return f"its data {tensor.name!r} are {found.name}, not float32{hint}"


def _linear(graph: GraphModel, candidate: Candidate) -> Candidate | str:
    node = candidate.node
    if node.op == "MatMul":
        return _matmul(graph, candidate)
    reason = why_not_constant(graph, node.inputs[1], "weight")
    if reason is not None:
        return reason
    bias = optional_input(node, 2)
    if bias is not None:
        reason = why_not_constant(graph, bias, "bias") or _bias_shape(graph, node, bias)
    if reason is None and not candidate.data:
        reason = "its input is a constant"
    if reason is None:
        reason = _bad_weight(graph, node.inputs[1])
    return reason or Candidate(node, candidate.info, candidate.settings, (0,), weight=1, results=candidate.results)


def _bias_shape(graph: GraphModel, node: Node, bias: Tensor) -> str | None:
    shape = graph.shape(bias) or ()
    if len(shape) <= 1 or (node.op == "Gemm" and len(shape) == 2 and shape[0] == 1):
        return None
    return f"its bias {bias.name!r} of shape {shape} is not one number per output"


def _matmul(graph: GraphModel, candidate: Candidate) -> Candidate | str:
    node = candidate.node
    if not candidate.data:
        return "both its inputs are constant"
    for index in candidate.constants:
        reason = _bad_weight(graph, node.inputs[index])
        if reason is not None:
            return reason
    weight = candidate.constants[0] if candidate.constants else -1
    return Candidate(node, candidate.info, candidate.settings, candidate.data, weight=weight, results=candidate.results)


def _bad_weight(graph: GraphModel, tensor: Tensor) -> str | None:
    if 0 in (graph.shape(tensor) or ()):
        return f"its weight {tensor.name!r} is empty"
    return None


def _clamp(graph: GraphModel, candidate: Candidate) -> Candidate | str:
    node = candidate.node
    if not candidate.data:
        return "its input is a constant"
    low, high = (0.0, math.inf) if node.op == "Relu" else (-math.inf, math.inf)
    for index in (1, 2):
        bound = optional_input(node, index)
        if bound is None:
            continue
        if not graph.is_constant(bound):
            return f"its bound {bound.name!r} is not a constant"
        value = float(np.asarray(graph.value(bound)).reshape(-1)[0])
        low, high = (value, high) if index == 1 else (low, value)
    if not low <= 0 <= high or low == high:
        return f"it cuts at [{low:g}, {high:g}], and saturation always keeps zero"
    return Candidate(node, candidate.info, candidate.settings, (0,), results=candidate.results, bounds=(low, high))


def _passive(graph: GraphModel, candidate: Candidate) -> Candidate | str:
    node = candidate.node
    if not candidate.data:
        return _lookup(graph, candidate) if node.op == "Gather" else "its data are constant"
    if node.op == "Resize" and node.attrs.get("mode", "nearest") not in ("nearest", b"nearest", "linear", b"linear"):
        return f"a Resize of mode {node.attrs['mode']} gives values outside the range of its input"
    if node.op == "Resize" and node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "a Resize with tf_crop_and_resize puts an extrapolation value into its output"
    if node.op == "Pad":
        fill = optional_input(node, 2)
        mode = node.attrs.get("mode", "constant")
        if mode == "constant" and fill is not None and (not graph.is_constant(fill) or np.any(graph.value(fill) != 0)):
            return "it pads with something else than zero"
    if node.op in ("MaxPool", "Dropout") and any(t.name and _is_read(graph, t) for t in node.outputs[1:]):
        return f"its second output is read, which {node.op} on codes does not give"
    return candidate


def _is_read(graph: GraphModel, tensor: Tensor) -> bool:
    return bool(graph.consumers(tensor)) or graph.is_output(tensor) or graph.read_by_subgraph(tensor)


def _lookup(graph: GraphModel, candidate: Candidate) -> Candidate | str:
    node = candidate.node
    if graph.rank(node.inputs[0]) != 2:
        return f"its table {node.inputs[0].name!r} is not a matrix"
    reason = _bad_weight(graph, node.inputs[0])
    return reason or Candidate(
        node, OpInfo("lookup", (), weight=0), candidate.settings, (), weight=0, results=candidate.results
    )


def why_no_codes(graph: GraphModel, candidate: Candidate, floats: list[Tensor]) -> str:
    """Why a node that could compute with codes does not: some of its inputs come as floats."""
    tensor = floats[0]
    maker = graph.producer(tensor)
    origin = f"from {describe(maker)}, which gives floats" if maker is not None else "from a graph input"
    return f"its input {tensor.name!r} comes {origin}: converting only for {candidate.node.op} costs more than it saves"
