"""What AMCT's flavours call layers and their types, in terms of ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from onnxq.dialects.amct.layers import Layer

QUANTIZABLE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool"})
"""Operators AMCT quantizes as layers."""
TENSOR_QUANTIZABLE = frozenset({"MaxPool", "Add"})
"""Operators of which AMCT quantizes inputs only, where `tensor_quantize` says so."""


@dataclass(frozen=True, slots=True)
class LayerType:
    """Which layers a type name stands for.

    Attributes:
        op_types: ONNX operator types.
        rank: Rank of their weight, or of their input where they have none; None for any.
        depthwise: Only convolutions with one input channel per group.
    """

    op_types: frozenset[str]
    rank: int | None = None
    depthwise: bool = False

    def matches(self, layer: Layer) -> bool:
        """Whether `layer` is of this type; a rank that is not known matches."""
        if layer.op_type not in self.op_types or (self.depthwise and not layer.depthwise):
            return False
        if self.rank is None:
            return True
        found = layer.input_rank if layer.weight_rank is None else layer.weight_rank
        return found in (None, self.rank)


def _table() -> dict[str, LayerType]:
    onnx = [*QUANTIZABLE, *TENSOR_QUANTIZABLE, "LSTM", "GRU", "RNN"]
    table = {name: LayerType(frozenset({name})) for name in onnx}
    ranked = {
        "Conv": ("Conv1d", "Conv2d", "Conv3d"),
        "ConvTranspose": ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
        "AveragePool": ("AvgPool1d", "AvgPool2d", "AvgPool3d"),
        "MaxPool": ("MaxPool1d", "MaxPool2d", "MaxPool3d"),
    }
    for op, names in ranked.items():
        table |= {name: LayerType(frozenset({op}), rank) for rank, name in enumerate(names, start=3)}
    # The exporters write a Linear as Gemm, or as MatMul and Add where its input has more than two dimensions.
    table["Linear"] = LayerType(frozenset({"Gemm", "MatMul"}), 2)
    table["Conv2D"] = LayerType(frozenset({"Conv"}), 4)
    table["Conv3D"] = LayerType(frozenset({"Conv"}), 5)
    table["DepthwiseConv2D"] = LayerType(frozenset({"Conv"}), 4, depthwise=True)
    table["Conv2DTranspose"] = LayerType(frozenset({"ConvTranspose"}), 4)
    table["Conv3DTranspose"] = LayerType(frozenset({"ConvTranspose"}), 5)
    table |= {name: LayerType(frozenset({"Gemm"})) for name in ("MatMulV2", "FullyConnection")}
    table |= {name: LayerType(frozenset({"MatMul"})) for name in ("BatchMatMul", "BatchMatMulV2")}
    table |= {name: LayerType(frozenset({"AveragePool"})) for name in ("AvgPool", "AvgPoolV2")}
    table["MaxPoolV3"] = LayerType(frozenset({"MaxPool"}))
    return table


LAYER_TYPES: Mapping[str, LayerType] = MappingProxyType(_table())
"""By name: ONNX operator types, torch's layer types, Ascend's operator types."""


def module_path(node_name: str) -> str:
    """The torch module a node was exported from: ``layer1.0.conv1`` for ``/layer1/layer1.0/conv1/Conv``.

    Args:
        node_name: The name of a node.

    Returns:
        The path; empty where the name is not of the form torch's exporter writes.
    """
    parts = node_name.split("/")
    if len(parts) < 3 or parts[0] or not all(parts[1:]):
        return ""
    path: list[str] = []
    for scope in parts[1:-1]:
        # What a Sequential or ModuleList holds repeats the name of its parent: layer1, layer1.0.
        if path and scope.startswith(f"{path[-1]}."):
            path.pop()
        path.append(scope)
    return ".".join(path)
