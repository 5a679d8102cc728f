"""Huawei Ascend: AscendQuant and AscendDequant operators around int8 layers."""

from types import MappingProxyType

from onnxq.spec import QType
from onnxq.targets._base import Target

ASCEND = Target(
    name="ascend",
    title="Huawei Ascend",
    activation=QType.INT8,
    activation_symmetric=False,
    activation_types=frozenset({QType.INT8, QType.INT16}),
    weight=QType.INT8,
    weight_types=frozenset({QType.INT8}),
    weight_narrow=False,
    full_range=True,
    per_axis=frozenset({"Conv", "ConvTranspose"}),
    compute=frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool"]),
    passive=frozenset(),
    slower=MappingProxyType({}),
    float_result=frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool"]),
    clamps=frozenset(),
    insertion="ascend",
)
