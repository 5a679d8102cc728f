"""NVIDIA TensorRT: explicit Q/DQ, symmetric int8, biases left float."""

from types import MappingProxyType

from onnxq.spec import QType
from onnxq.targets._base import Target

TENSORRT = Target(
    name="tensorrt",
    title="NVIDIA TensorRT",
    activation=QType.INT8,
    activation_symmetric=True,
    activation_types=frozenset({QType.INT8, QType.FLOAT8E4M3FN}),
    weight=QType.INT8,
    weight_types=frozenset({QType.INT8, QType.INT4, QType.FLOAT8E4M3FN}),
    weight_narrow=True,
    per_axis=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    compute=frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool", "Concat"]),
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
            "Identity",
            "Expand",
            "Tile",
            "DepthToSpace",
            "SpaceToDepth",
        ]
    ),
    float8=frozenset({"Conv", "Gemm", "MatMul"}),
    slower=MappingProxyType(
        {
            op: f"TensorRT runs {op} in fp16 or float faster than with codes around it"
            for op in [
                "Mul",
                "Sub",
                "Div",
                "Sigmoid",
                "Softmax",
                "LeakyRelu",
                "HardSigmoid",
                "HardSwish",
                "Tanh",
                "PRelu",
                "Elu",
                "ReduceMean",
                "Pad",
            ]
        }
    ),
    # TensorRT fuses what follows a layer up to the next QuantizeLinear: no layer needs one behind it
    float_result=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool"}),
    clamps=frozenset(),
    bias_codes=False,
    both_addends=False,
)
