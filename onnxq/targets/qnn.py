"""Qualcomm's QNN (Hexagon DSP and HTP): every tensor between its operators has codes."""

from types import MappingProxyType

from onnxq.spec import QType
from onnxq.targets._base import Target

_LAYERS = "Conv ConvTranspose Gemm MatMul BatchNormalization InstanceNormalization"
_ARITHMETIC = "Add Sub Mul Div Max Min Concat"
_CURVES = (
    "LeakyRelu PRelu Elu Sigmoid HardSigmoid HardSwish Tanh Softmax Abs Neg Ceil Floor Round Exp Sqrt ArgMax ArgMin"
)
_SUMS = "AveragePool GlobalAveragePool ReduceMean ReduceSum"
_PASSIVE = (
    "Reshape Flatten Squeeze Unsqueeze Transpose Slice Gather GatherElements GatherND Split Pad Identity Expand Tile "
    "DepthToSpace SpaceToDepth Resize MaxPool GlobalMaxPool ReduceMax ReduceMin"
)

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
    compute=frozenset([*_LAYERS.split(), *_ARITHMETIC.split(), *_CURVES.split(), *_SUMS.split()]),
    passive=frozenset(_PASSIVE.split()),
    slower=MappingProxyType({}),
    all_codes=True,
)
