"""Operators whose gradients in onnxruntime-training 1.19.2 were compared with finite differences."""

DERIVED = frozenset(
    {"Conv", "Gemm", "MatMul", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Gelu", "Erf", "Exp", "Log", "Sqrt", "Neg"}
    | {"Abs", "Sin", "Cos", "Reciprocal", "Identity", "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Clip", "Where"}
    | {"Concat", "Split", "Slice", "Gather", "GatherElements", "GatherND", "ScatterND", "ScatterElements", "Reshape"}
    | {"Transpose", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "Pad", "GlobalAveragePool", "AveragePool"}
    | {"MaxPool", "Softmax", "LogSoftmax", "ReduceSum", "ReduceMean", "ReduceL2", "ReduceLogSumExp", "TopK", "Trilu"}
    | {"SoftmaxCrossEntropyLoss", "LayerNormalization", "BatchNormalization"}
)
"""Gradients pass and are right."""

STOPPED = frozenset(
    {"SequenceConstruct", "SequenceAt", "Cast", "Shape", "Size", "ConstantOfShape", "Range", "Equal", "Greater", "Less"}
    | {"GreaterOrEqual", "LessOrEqual", "Not", "And", "Or", "ArgMax", "ArgMin", "NonZero", "Round", "Floor", "Ceil"}
    | {"Sign", "ReduceMax", "OneHot"}
)
"""No gradient passes; where one would have to, the quantizers hold it back in front of these."""
