"""Qualcomm's QNN (Hexagon DSP and HTP): every tensor between its operators has codes."""

from types import MappingProxyType

from onnxq.spec import QType
from onnxq.targets._base import Target

QNN = Target(
    name="qnn",
    title="Qualcomm QNN (HTP, DSP)",
    activation=QType.UINT8,
    activation_symmetric=False,
    activation_types=frozenset({QType.UINT8, QType.UINT16}),
    weight=QType.INT8,
    weight_types=frozenset({QType.INT8, QType.INT4, QType.UINT8}),
    weight_narrow=True,
    per_axis=frozenset({"Conv", "ConvTranspose"}),
    compute=frozenset(
        [
            "Conv",
            "ConvTranspose",
            "Gemm",
            "MatMul",
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Concat",
            "AveragePool",
            "GlobalAveragePool",
            "LeakyRelu",
            "Sigmoid",
            "Softmax",
            "HardSigmoid",
            "HardSwish",
            "Tanh",
            "PRelu",
            "Elu",
            "ReduceMean",
        ]
    ),
    passive=frozenset(
        [
            "Reshape",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
            "Transpose",
            "Slice",
            "Gather",
            "MaxPool",
            "Resize",
            "Split",
            "Pad",
            "Identity",
            "Expand",
            "Tile",
            "DepthToSpace",
            "SpaceToDepth",
            "ReduceMax",
            "ReduceMin",
            "GatherElements",
            "GatherND",
            "GlobalMaxPool",
        ]
    ),
    slower=MappingProxyType({}),
    all_codes=True,
)
