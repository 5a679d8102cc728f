"""Huawei Kirin's NPU: a float model whose convolutions and dense layers carry the scales of their inputs."""

from types import MappingProxyType

from onnxq.spec import QType
from onnxq.targets._base import Limits, Target

KIRIN = Target(
    name="kirin",
    title="Huawei Kirin",
    activation=QType.UINT8,
    activation_symmetric=False,
    activation_types=frozenset({QType.UINT8}),
    weight=QType.INT8,
    weight_types=frozenset({QType.INT8}),
    weight_narrow=True,
    per_axis=frozenset({"Conv"}),
    compute=frozenset({"Conv", "Gemm", "MatMul"}),
    passive=frozenset(),
    float_result=frozenset({"Conv", "Gemm", "MatMul"}),
    clamps=frozenset(),
    bias_codes=False,
    alone=True,
    limits=MappingProxyType({"MatMul": Limits(ranks=frozenset({2}))}),
)
