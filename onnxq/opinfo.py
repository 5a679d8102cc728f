"""One table of facts per operator: which inputs are data, which is a weight, which axis its channels are on.

What a backend does with an operator is not said here but in `onnxq.targets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Kind = Literal["linear", "arithmetic", "unary", "join", "passive", "clamp", "lookup"]
"""How an operator treats the scale of its data.

* ``linear``: a sum of products; its weight has scales of its own.
* ``arithmetic``: element by element on several inputs (Add, Mul).
* ``unary``: an output with a range of its own (Sigmoid, AveragePool), or none (ArgMax).
* ``join``: several inputs become one (Concat).
* ``passive``: moves or picks values: input and output can share one scale (Reshape, MaxPool).
* ``clamp``: cuts values off (Relu, Clip): saturation of codes can do it.
* ``lookup``: picks rows of a constant table (Gather of an embedding).
"""


@dataclass(frozen=True, slots=True)
class OpInfo:
    """Facts about one operator.

    Attributes:
        kind: See `Kind`.
        inputs: Indexes of the inputs that hold data; None for all.
        weight: Index of the input that is a weight where it is constant.
        bias: Index of the bias.
        outputs: How many outputs hold data; None for all, 0 where the result is an index.
    """

    kind: Kind
    inputs: tuple[int, ...] | None = (0,)
    weight: int | None = None
    bias: int | None = None
    outputs: int | None = 1


def _table() -> dict[str, OpInfo]:
    table = {
        "Conv": OpInfo("linear", (0,), weight=1, bias=2),
        "ConvTranspose": OpInfo("linear", (0,), weight=1, bias=2),
        "Gemm": OpInfo("linear", (0,), weight=1, bias=2),
        "MatMul": OpInfo("linear", (0, 1), weight=1),
        "Concat": OpInfo("join", None),
        "Gather": OpInfo("passive"),
        "Split": OpInfo("passive", outputs=None),
        "Relu": OpInfo("clamp"),
        "Clip": OpInfo("clamp"),
    }
    table |= {op: OpInfo("arithmetic", (0, 1)) for op in ("Add", "Mul", "Sub", "Div")}
    table |= {op: OpInfo("arithmetic", None) for op in ("Max", "Min")}
    unary = (
        "AveragePool GlobalAveragePool Sigmoid Softmax LeakyRelu HardSigmoid HardSwish Tanh Elu ReduceMean ReduceSum "
        "Abs Ceil Floor Round Exp Sqrt Neg BatchNormalization InstanceNormalization"
    )
    table |= {op: OpInfo("unary") for op in unary.split()}
    table["PRelu"] = OpInfo("unary", (0, 1))
    table |= {op: OpInfo("unary", outputs=0) for op in ("ArgMax", "ArgMin")}
    passive = (
        "Reshape Flatten Squeeze Unsqueeze Transpose Slice MaxPool Resize Pad Identity Expand Tile "
        "DepthToSpace SpaceToDepth GatherElements GatherND ReduceMax ReduceMin Dropout GlobalMaxPool"
    )
    table |= {op: OpInfo("passive") for op in passive.split()}
    return table


OPS: Mapping[str, OpInfo] = MappingProxyType(_table())
"""Facts by operator type, default domain."""


def weight_axis(op_type: str, rank: int, *, transposed: bool = False, groups: int = 1) -> int | None:
    """The axis of a weight that counts the outputs, where each output can have a scale of its own.

    Args:
        op_type: Conv, ConvTranspose, Gemm, MatMul or Gather.
        rank: Rank of the weight.
        transposed: transB of a Gemm.
        groups: group of a ConvTranspose, whose axis 1 counts the outputs of one group only.

    Returns:
        The axis, counted from 0, or None where one scale must do for all outputs.
    """
    if op_type == "Conv":
        return 0
    if op_type == "ConvTranspose":
        return 1 if groups == 1 else None
    if op_type == "Gemm":
        return 0 if transposed else 1
    if op_type == "MatMul":
        return 1 if rank == 2 else None
    return None
