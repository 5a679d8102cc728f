"""ONNX Runtime on the CPU: Q/DQ that it fuses into QLinear and MatMulInteger kernels."""

from types import MappingProxyType

from onnxq.spec import QType
from onnxq.targets._base import Target

_NO_KERNEL = "ONNX Runtime has no int8 kernel for {}: it would convert back to float in front of it"

ORT = Target(
    name="ort",
    title="ONNX Runtime (CPU)",
    activation=QType.UINT8,
    activation_symmetric=False,
    activation_types=frozenset(
        {QType.UINT8, QType.INT8, QType.UINT16, QType.INT16, QType.FLOAT8E4M3FN, QType.FLOAT8E5M2}
    ),
    weight=QType.INT8,
    weight_types=frozenset(
        {QType.INT8, QType.UINT8, QType.INT4, QType.UINT4, QType.INT16, QType.FLOAT8E4M3FN, QType.FLOAT8E5M2}
    ),
    weight_narrow=True,
    per_axis=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    compute=frozenset(
        [
            "Conv",
            "Gemm",
            "MatMul",
            "Add",
            "Mul",
            "Concat",
            "AveragePool",
            "GlobalAveragePool",
            "LeakyRelu",
            "Sigmoid",
            "Softmax",
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
        ]
    ),
    # its kernels take floats: codes are decoded in front of a layer, and between Q and DQ few operators run at all
    float8=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    float8_kept=True,
    copies_decoders=True,
    # QLinearSoftmax multiplies by 1 / scale what is float32's largest number / exp(5) / values: inf from 148 codes on
    softmax_room=255.0 / 148.0,
    slower=MappingProxyType(
        {
            op: _NO_KERNEL.format(op)
            for op in [
                "ConvTranspose",
                "Sub",
                "Div",
                "HardSigmoid",
                "HardSwish",
                "Tanh",
                "PRelu",
                "Elu",
                "ReduceMean",
                "ReduceMax",
                "ReduceMin",
                "GlobalMaxPool",
                "GatherElements",
                "GatherND",
                "Dropout",
            ]
        }
    ),
    float_result=frozenset({"Gemm", "MatMul"}),
    safe_pairs=True,
    codes_weights=frozenset({"Conv", "ConvTranspose", "Gemm"}),
    schemes=frozenset({"static", "weight_only", "dynamic"}),
    runs_here=True,
)
