"""Huawei Ascend: AscendQuant and AscendDequant operators around int8 layers."""

from types import MappingProxyType

from onnxq.spec import QType
from onnxq.targets._base import Limits, Target

_ASKED = "{} gets codes on Ascend only where that is asked for (AMCT: tensor_quantize)"

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
    slower=MappingProxyType({op: _ASKED.format(op) for op in ("MaxPool", "Add")}),
    float_result=frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool"]),
    clamps=frozenset(),
    alone=True,
    limits=MappingProxyType(
        {
            "Conv": Limits(
                ranks=frozenset({3, 4, 5}), plain=MappingProxyType({5: (0,)}), symmetric=frozenset({5}), wide="always"
            ),
            "ConvTranspose": Limits(ranks=frozenset({4}), plain=MappingProxyType({4: (0, 1)}), wide="always"),
            "Gemm": Limits(
                ranks=frozenset({2}),
                attributes=MappingProxyType({"transA": 0.0, "alpha": 1.0, "beta": 1.0}),
                wide="with_bias",
            ),
            "MatMul": Limits(ranks=frozenset({2}), wide="with_bias", variables=True),
            "AveragePool": Limits(ranks=frozenset({4})),
        }
    ),
    opset=8,
    newest_opset=22,
    insertion="ascend",
)
