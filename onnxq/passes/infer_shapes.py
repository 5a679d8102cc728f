"""Element types and shapes of the tensors between the nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import onnx

from onnxq.passes._base import Fact, Pass, PassReport

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import Dim, GraphModel

Known = dict[str, tuple[Any, "tuple[Dim, ...] | None"]]
_KEEP = 1 << 12
"""Constants of up to this many bytes take part, since shapes are computed from them."""
_SAME = ("Identity", 1, frozenset[str]())
_FUSED = frozenset({"activation", "activation_params", "activation_alpha", "activation_beta", "activation_gamma"})
_TRANSPOSING = frozenset({"transA", "transB", "transBatchA", "transBatchB"})
_MATMUL = frozenset({"alpha", "activation", *_TRANSPOSING})
_STAND_INS = {
    ("", "SimplifiedLayerNormalization"): _SAME,
    ("com.microsoft", "BiasDropout"): _SAME,
    ("com.microsoft", "BiasGelu"): _SAME,
    ("com.microsoft", "FastGelu"): _SAME,
    ("com.microsoft", "Gelu"): _SAME,
    ("com.microsoft", "QuickGelu"): _SAME,
    ("com.microsoft", "RotaryEmbedding"): _SAME,
    ("com.microsoft", "SkipLayerNormalization"): _SAME,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _SAME,
    ("com.microsoft", "FusedConv"): ("Conv", 3, _FUSED),
    ("com.microsoft", "FusedGemm"): ("Gemm", 3, _FUSED),
    ("com.microsoft", "FusedMatMul"): ("MatMul", 2, _MATMUL),
}
"""Operators of ONNX Runtime: the standard one of the same shapes, how many inputs it reads, attributes it lacks."""


class InferShapes(Pass):
    """Types and shapes are inferred with `onnx.shape_inference` and written to the graph's tensors.

    The model is passed on without its weights, so its size does not matter. Dimensions that depend
    on the input stay symbols or unknown. What the model itself says is kept where inference knows
    no better, for example behind operators that onnx does not know; where they disagree, what is
    inferred wins. A model that onnx cannot infer is left as it is, and a note says so.
    """

    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})
    preserves_function: ClassVar[bool] = True

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Infer, and write what is new."""
        notes: list[str] = []
        inferred = _infer(graph, notes)
        changed = 0
        unknown: list[str] = []
        for name, tensor in graph.tensors().items():
            if graph.is_constant(tensor) or graph.is_input(tensor) or graph.producer(tensor) is None:
                continue
            old = graph.dtype(tensor), graph.shape(tensor)
            dtype, shape = inferred.get(name, (None, None))
            new = dtype if dtype is not None else old[0], _merge(old[1], shape)
            if new != old and graph.is_tensor(tensor):
                graph.set_type(tensor, *new)
                changed += 1
            if new[0] is None and graph.is_tensor(tensor):
                unknown.append(name)
        if unknown:
            shown = ", ".join(map(repr, unknown[:5]))
            notes.append(f"the type of {len(unknown)} tensors is not known: {shown}{' ...' if unknown[5:] else ''}")
        return PassReport(changed=changed, notes=tuple(notes))


def _infer(graph: GraphModel, notes: list[str]) -> Known:
    """What onnx infers: first from the inputs alone, then with what the model says of the rest."""
    proto = graph.skeleton(keep=_KEEP)
    for node in proto.graph.node:
        _stand_in(node)
    said = {info.name: info for info in proto.graph.value_info}
    foreign = {name for node in proto.graph.node if not _has_schema(node, graph.opset) for name in node.output}
    proto.graph.ClearField("value_info")
    proto.graph.value_info.extend(info for name, info in said.items() if name in foreign)
    known = _run(proto, notes)
    missing = [name for name in said.keys() - foreign if name not in known or known[name][1] is None]
    if missing and known:
        proto.graph.value_info.extend(said[name] for name in sorted(missing))
        known.update(
            (name, kind) for name, kind in _run(proto, []).items() if name not in known or known[name][1] is None
        )
    return known


def _stand_in(node: onnx.NodeProto) -> None:
    """Turn an operator that only ONNX Runtime knows into one that gives the same types and shapes."""
    known = _STAND_INS.get((node.domain, node.op_type))
    if known is None or any(attr.name in _TRANSPOSING and attr.i for attr in node.attribute):
        return
    op, reads, dropped = known
    node.op_type, node.domain = op, ""
    del node.input[reads:]
    del node.output[1:]
    kept = [attr for attr in node.attribute if attr.name not in dropped and op != "Identity"]
    node.ClearField("attribute")
    node.attribute.extend(kept)


def _has_schema(node: onnx.NodeProto, opset: int) -> bool:
    return node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, opset)


def _run(proto: onnx.ModelProto, notes: list[str]) -> Known:
    try:
        result = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError) as err:
        notes.append(f"onnx cannot infer the shapes of this model: {' '.join(str(err).split())[:300]}")
        return {}
    known: Known = {}
    for info in (*result.graph.value_info, *result.graph.output):
        if info.type.WhichOneof("value") == "tensor_type":
            known[info.name] = _read(info.type.tensor_type)
    return known


def _read(tensor: onnx.TypeProto.Tensor) -> tuple[Any, tuple[Dim, ...] | None]:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return dtype, None
    return dtype, tuple(_dim(dim) for dim in tensor.shape.dim)


def _dim(dim: Any) -> Dim:  # noqa: ANN401 - a nested protobuf message
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    # symbols that inference makes up say nothing to anybody
    return str(dim.dim_param) if dim.dim_param and not dim.dim_param.startswith("unk__") else None


def _merge(said: tuple[Dim, ...] | None, inferred: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    if inferred is None or said is None or len(said) != len(inferred):
        return said if inferred is None else inferred
    return tuple(_better(old, new) for old, new in zip(said, inferred, strict=True))


def _better(said: Dim, inferred: Dim) -> Dim:
    if isinstance(inferred, int) or said is None:
        return inferred
    return said
