"""The operators of a model for Ascend, read: their numbers, and what the model around them must be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.errors import GraphError
from onnxq.graph import GraphModel, Node, OpaqueAttribute
from onnxq.passes._linear import describe, optional_input
from onnxq.spec import code_bounds

ASCEND_OPS = ("AscendQuant", "AscendDequant", "AscendAntiQuant", "AscendWeightQuant")
_MOVING = (
    "Identity Reshape Flatten Squeeze Unsqueeze Transpose Slice Split Gather Expand Tile DepthToSpace SpaceToDepth "
    "MaxPool GlobalMaxPool"
)
PASSIVE = frozenset(_MOVING.split())
"""Operators that move or pick values and read data at input 0 only: codes pass through them."""

_PRIVATE = "onnxq.ascend"
_ONLY_RUNTIME = (
    "SimplifiedLayerNormalization Affine Crop DynamicSlice GivenTensorFill ImageScaler ParametricSoftplus Scale "
    "ScaledTanh"
)
_RUNTIME_OPS = frozenset(_ONLY_RUNTIME.split())
"""Operators that onnx does not know in the default domain, but ONNX Runtime does."""
_BITS = {"INT4": 4, "INT8": 8, "INT16": 16, "29": 4, "2": 8, "6": 16}
"""Widths by name, and by the number GE has for the type."""


@dataclass(frozen=True, slots=True)
class QuantNumbers:
    """What an AscendQuant does: ``clip(round(x * factor) + offset)``, the product twice where `root`.

    Attributes:
        factor: As it is stored: 1 / scale, or the root of that.
        root: Whether it is the root.
        offset: The zero point.
        bits: Width of the codes, which are signed.
        rounding: The operator that rounds: Round (half to even), Floor, Ceil, or "" for towards zero.
    """

    factor: np.float32
    root: bool
    offset: int
    bits: int
    rounding: str

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return code_bounds(self.bits, signed=True)

    @property
    def scale(self) -> np.float32:
        """What one step of the codes stands for."""
        factor = np.float64(self.factor)
        return np.float32(1.0 / (factor * factor if self.root else factor))


@dataclass(frozen=True, slots=True)
class AntiQuantNumbers:
    """What an AscendAntiQuant does: ``(code - offset) * scale``, the product twice where `root`.

    Attributes:
        scale: As it is stored.
        root: Whether it is the root.
        offset: The zero point.
        half: Whether the result is float16.
    """

    scale: np.float32
    root: bool
    offset: int
    half: bool


@dataclass(frozen=True, slots=True, eq=False)
class DequantNumbers:
    """What an AscendDequant does: ``sum * scale``, the product twice where `root`.

    Attributes:
        scale: float32, shape (1,) or (channels,).
        root: Whether it is the root.
        relu: Whether a Relu follows.
        half: Whether the result is float16.
    """

    scale: NDArray[np.float32]
    root: bool
    relu: bool
    half: bool


def read_quant(node: Node) -> QuantNumbers:
    """The numbers of an AscendQuant.

    Raises:
        GraphError: If one is missing or not allowed.
    """
    factor = _positive(node, "scale")
    bits = code_bits(node)
    offset = _offset(node)
    low, high = code_bounds(bits, signed=True)
    if not low <= offset <= high:
        raise GraphError(f"{describe(node)}: offset is {offset}; {bits} bits hold {low} to {high}")
    modes = {"round": "Round", "floor": "Floor", "ceil": "Ceil", "trunc": "", "truncate": ""}
    mode = str(node.attrs.get("round_mode", "Round"))
    if mode.lower() not in modes:
        raise GraphError(f"{describe(node)}: round_mode is {mode!r}; known are Round, Floor, Ceil and Trunc")
    return QuantNumbers(factor, _flag(node, "sqrt_mode"), offset, bits, modes[mode.lower()])


def read_anti_quant(node: Node) -> AntiQuantNumbers:
    """The numbers of an AscendAntiQuant.

    Raises:
        GraphError: If one is missing or not allowed.
    """
    return AntiQuantNumbers(_positive(node, "scale"), _flag(node, "sqrt_mode"), _offset(node), _half(node))


def read_dequant(graph: GraphModel, node: Node) -> DequantNumbers:
    """The numbers of an AscendDequant; bits 0 to 31 of each 64-bit word are a float32.

    Raises:
        GraphError: If the words are not constant, not 64 bits wide, or ask for what is not known.
    """
    words = optional_input(node, 1)
    if words is None or not graph.is_constant(words):
        raise GraphError(f"{describe(node)}: its scales (input 1) must be a constant of uint64 words")
    values = np.asarray(graph.value(words)).reshape(-1)
    if values.dtype.kind not in "iu" or values.dtype.itemsize != 8 or not values.size:
        raise GraphError(f"{describe(node)}: its scales {words.name!r} are {values.dtype}; they must be uint64 words")
    values = values.view(np.uint64)
    if (values >> np.uint64(32)).any():
        raise GraphError(
            f"{describe(node)}: a word of {words.name!r} has more than a float32 in it (0x{int(values.max()):016x}: "
            "a shift or an offset of the weight), which is not handled; bits 32 to 63 must be zero"
        )
    scale = values.astype(np.uint32).view(np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise GraphError(f"{describe(node)}: the scales in {words.name!r} must be finite and > 0")
    return DequantNumbers(scale, _flag(node, "sqrt_mode"), _flag(node, "relu_flag"), _half(node))


def _positive(node: Node, name: str) -> np.float32:
    value = node.attrs.get(name)
    if not isinstance(value, float | int) or not (np.isfinite(np.float32(value)) and np.float32(value) > 0):
        raise GraphError(f"{describe(node)}: its attribute {name!r} is {value!r}; it must be a number > 0")
    return np.float32(value)


def _offset(node: Node) -> int:
    value = float(node.attrs.get("offset", 0.0))
    if not value.is_integer():
        raise GraphError(f"{describe(node)}: offset is {value}; it must be a whole number")
    return int(value)


def code_bits(node: Node) -> int:
    """The width of what an operator writes.

    Raises:
        GraphError: If it is not known.
    """
    name = str(node.attrs.get("dst_type", "INT8"))
    if name not in _BITS:
        raise GraphError(f"{describe(node)}: dst_type is {name!r}; known are INT4, INT8 and INT16")
    return _BITS[name]


def _flag(node: Node, name: str) -> bool:
    return bool(node.attrs.get(name, 0))


def _half(node: Node) -> bool:
    value = node.attrs.get("dtype", 0)
    if value not in (0, 1):
        raise GraphError(f"{describe(node)}: dtype is {value!r}; known are 0 (float32) and 1 (float16)")
    return bool(value)


def raise_opset(graph: GraphModel, version: int) -> None:
    """Bring the standard operators to at least `version`; Ascend's stay as they are.

    Raises:
        GraphError: If the model cannot be converted.
    """
    if graph.opset >= version:
        return
    foreign = [n for n in graph.nodes() if _is_foreign(n)]
    for node in foreign:
        node.domain = _PRIVATE  # out of the converter's sight
    try:
        graph.upgrade_opset(version)
    finally:
        for node in graph.nodes():
            if node.domain == _PRIVATE:
                node.domain = None


def infer_sizes(graph: GraphModel) -> None:
    """Write the shapes that follow from those of the inputs where none is known, as if codes were floats."""
    proto = graph.skeleton(keep=1 << 12)
    for node in proto.graph.node:
        if node.op_type in ASCEND_OPS:
            node.op_type, node.domain = "Identity", ""
            del node.input[1:]
            node.ClearField("attribute")
    proto.graph.ClearField("value_info")
    for info in proto.graph.output:
        info.ClearField("type")
    try:
        result = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError):
        return  # nothing depends on it but what says so itself
    tensors = graph.tensors()
    for info in (*result.graph.value_info, *result.graph.output):
        tensor = tensors.get(info.name)
        if tensor is None or graph.is_constant(tensor) or graph.shape(tensor) is not None:
            continue
        kind_of = info.type.tensor_type
        if kind_of.HasField("shape") and kind_of.elem_type:
            dtype = graph.dtype(tensor) or onnx.helper.tensor_dtype_to_np_dtype(kind_of.elem_type)
            dims = [d.dim_value if d.HasField("dim_value") else None for d in kind_of.shape.dim]
            graph.set_type(tensor, dtype, dims)


def _is_foreign(node: Node) -> bool:
    return node.domain in (None, "", "ai.onnx") and not onnx.defs.has(node.op)


def refuse_unknown(graph: GraphModel) -> None:
    """Refuse operators that neither onnx nor onnxq knows, by name.

    Raises:
        GraphError: If there is one, or an Ascend operator in a body.
    """
    known = {*ASCEND_OPS, *_RUNTIME_OPS}
    for node in graph.nodes():
        if node.op not in known and (_is_foreign(node) or node.op.startswith("Ascend")):
            raise GraphError(
                f"{describe(node)} is an operator that is not supported; of Ascend's those are: {', '.join(ASCEND_OPS)}"
            )
        for value in node.attrs.values():
            if isinstance(value, OpaqueAttribute):
                _refuse_inside(node, value.proto)


def _refuse_inside(node: Node, attribute: onnx.AttributeProto) -> None:
    bodies = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    for body in bodies:
        for inner in body.node:
            if inner.op_type.startswith("Ascend"):
                raise GraphError(
                    f"{describe(node)}: {inner.op_type} {inner.name!r} is in its body; only the main graph is handled"
                )
            for deeper in inner.attribute:
                _refuse_inside(node, deeper)


def has_half(graph: GraphModel) -> bool:
    """Whether any tensor may be float16."""
    if any(graph.dtype(t) == np.float16 for t in graph.tensors().values()):
        return True
    half = (onnx.TensorProto.FLOAT16, np.float16)
    return any(n.attrs.get("to") in half for n in graph.nodes("Cast")) or any(
        n.attrs.get("dtype", 0) == 1 for n in graph.nodes("AscendDequant", "AscendAntiQuant")
    )
