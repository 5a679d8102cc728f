# SPDX-License-Identifier: Apache-2.0
"""pairs_answer: looks at two digits and answers a question about them.

Both pictures go through the same layers, folded into the batch. What the model takes them for is crossed into a
table of all pairs of digits, from which the answers to all questions follow; a second way compares their features.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from builder import Weights
from digits_data import CLASSES, IMAGE_SHAPE, DigitsSplit
from float_training import FloatRecipe, train_float
from net_builder import NetBuilder, Port
from onnx import TensorProto, helper
from pairs_data import GREATER, QUESTIONS, calibration_pairs, held_out_pairs, training_pairs

NAME = "pairs_answer"
OPSET = 17
RECIPE = FloatRecipe(epochs=6, learning_rate=4e-3, batch_size=64)

_STEM, _WIDE, _SQUEEZED = 16, 32, 8
_COMPARED = 12


def _both(graph: NetBuilder) -> str:
    """The two pictures of every sample, one after the other along the batch."""
    sides = [graph.with_axes("Unsqueeze", side, f"{side}/unsqueeze", [1]) for side in ("left", "right")]
    stacked = graph.node("Concat", sides, "both/stack", axis=1)
    return graph.reshape(stacked, "both/fold", [-1, *IMAGE_SHAPE])


def _hard_swish(graph: NetBuilder, x: str, name: str) -> str:
    return graph.node("HardSwish", [x], name)


def _weigh_channels(graph: NetBuilder, x: str, name: str) -> str:
    """Squeeze and excitation: every channel by a share that depends on all of them."""
    y = graph.node("GlobalAveragePool", [x], f"{name}/mean")
    y = graph.conv_nd(y, f"{name}/squeeze", (_STEM, _SQUEEZED), (1, 1))
    slope = graph.weight(f"{name}/slope", lambda: np.full((_SQUEEZED, 1, 1), 0.25))
    y = graph.node("PRelu", [y, slope], f"{name}/prelu")
    y = graph.conv_nd(y, f"{name}/excite", (_SQUEEZED, _STEM), (1, 1))
    y = graph.node("HardSigmoid", [y], f"{name}/share", alpha=1 / 6, beta=0.5)
    return graph.node("Mul", [x, y], f"{name}/mul")


def _squeeze(graph: NetBuilder, x: str, name: str, *, learning: bool) -> str:
    """[N, C, 1, 1] as [N, C]; of each axis exporters ask first whether it has length 1."""
    if learning:
        return graph.with_axes("Squeeze", x, f"{name}/squeeze", [2, 3])
    shape = graph.node("Shape", [x], f"{name}/shape")
    last = graph.node("Gather", [shape, graph.indexes(f"{name}/last", [3])], f"{name}/length", axis=0)
    one = graph.node("Equal", [last, graph.indexes(f"{name}/one", [1])], f"{name}/equal")
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    then = [
        helper.make_node("Constant", [], [f"{name}/axes"], name=f"{name}/then/axes", value=axes),
        helper.make_node("Squeeze", [x, f"{name}/axes"], [f"{name}/then/out"], name=f"{name}/then"),
    ]
    other = [helper.make_node("Flatten", [x], [f"{name}/else/out"], name=f"{name}/else", axis=1)]
    branches = {
        branch: helper.make_graph(nodes, branch, [], [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)])
        for branch, nodes, out in (
            ("then_branch", then, f"{name}/then/out"),
            ("else_branch", other, f"{name}/else/out"),
        )
    }
    return graph.node("If", [one], name, **branches)


def _features(graph: NetBuilder, x: str, *, learning: bool) -> str:
    """[2 N, 1, 8, 8] to [N, 2, features]."""
    pads = graph.indexes("stem/pad/pads", [0, 0, 1, 1, 0, 0, 1, 1])
    x = graph.node("Pad", [x, pads], "stem/pad", mode="constant")
    weight = graph.weight("stem/conv/weight", lambda: graph.normal((_STEM, 1, 3, 3), 0.5))
    x = graph.node("Conv", [x, weight], "stem/conv", kernel_shape=[3, 3])
    x = _hard_swish(graph, graph.batch_norm(x, "stem/bn", _STEM), "stem/hard_swish")
    y = graph.conv_nd(x, "block/depthwise/conv", (_STEM, _STEM), (3, 3), group=_STEM, bias=False)
    y = _hard_swish(graph, graph.batch_norm(y, "block/depthwise/bn", _STEM), "block/depthwise/hard_swish")
    y = _weigh_channels(graph, y, "block/weigh")
    y = graph.conv_nd(y, "block/project/conv", (_STEM, _STEM), (1, 1), bias=False)
    x = graph.add(graph.batch_norm(y, "block/project/bn", _STEM), x, "block/add")
    x = graph.node("MaxPool", [x], "block/pool", kernel_shape=[2, 2], strides=[2, 2])
    for index, (before, after) in enumerate(((_STEM, _WIDE), (_WIDE, _WIDE))):
        x = graph.conv_nd(x, f"wide{index}/conv", (before, after), (3, 3), bias=False)
        x = _hard_swish(graph, graph.batch_norm(x, f"wide{index}/bn", after), f"wide{index}/hard_swish")
    x = graph.node("GlobalMaxPool", [x], "largest")
    x = _squeeze(graph, x, "features/squeeze", learning=learning)
    return graph.reshape(x, "features/unfold", [-1, 2, _WIDE])


def _side(graph: NetBuilder, x: str, name: str) -> tuple[str, str]:
    """What belongs to the left picture and to the right one, of [N, 2, features]."""
    parts = [f"{name}/left", f"{name}/right"]
    if graph.opset >= 13:
        inputs = [x, graph.indexes(f"{name}/sizes", [1, 1])]
        first = graph.node("Split", inputs, name, extra_outputs=[f"{name}/second"], axis=1)
    else:
        first = graph.node("Split", [x], name, extra_outputs=[f"{name}/second"], axis=1, split=[1, 1])
    squeezed = [graph.with_axes("Squeeze", t, p, [1]) for t, p in zip((first, f"{name}/second"), parts, strict=True)]
    return squeezed[0], squeezed[1]


def _by_table(graph: NetBuilder, scores: str) -> str:
    """Answers to all questions from the probabilities of all pairs of digits."""
    probabilities = graph.node("Softmax", [scores], "table/probabilities", axis=-1)
    left, right = _side(graph, probabilities, "table/split")
    crossed = graph.node("Einsum", [left, right], "table/cross", equation="ni,nj->nij")
    flat = graph.node("Flatten", [crossed], "table/flatten", axis=1)
    answers = graph.weight("table/answers", lambda: graph.normal((CLASSES**2, len(QUESTIONS)), 0.1))
    return graph.node("MatMul", [flat, answers], "table/matmul")


def _by_comparison(graph: NetBuilder, features: str) -> str:
    """What the features of both say to the question, [N, 1]."""
    left, right = _side(graph, features, "compare/split")
    apart = graph.node("Sub", [left, right], "compare/sub")
    greater = graph.constant("compare/greater", np.asarray(GREATER, np.int64))
    directed = graph.node("Equal", ["question", greater], "compare/directed")
    distance = graph.node("Abs", [apart], "compare/abs")
    apart = graph.node("Where", [directed, apart, distance], "compare/where")
    most = graph.node("Max", [left, right], "compare/max")
    least = graph.node("Min", [left, right], "compare/min")
    x = graph.node("Concat", [apart, most, least], "compare/concat", axis=1)
    x = graph.dense(x, "compare/dense", (3 * _WIDE, len(QUESTIONS) * _COMPARED))
    x = graph.reshape(x, "compare/by_question", [0, len(QUESTIONS), _COMPARED])
    x = graph.node("GatherND", [x, "question"], "compare/asked", batch_dims=1)
    slope = graph.weight("compare/slope", lambda: np.full(_COMPARED, 0.25))
    x = graph.node("PRelu", [x, slope], "compare/prelu")
    return graph.dense(x, "compare/out", (_COMPARED, 1))


def network(graph: NetBuilder, *, learning: bool) -> dict[str, tuple[str, Port]]:
    """Write the network from the inputs to the outputs."""
    features = _features(graph, _both(graph), learning=learning)
    std = math.sqrt(1 / _WIDE)
    weight = graph.weight("digits/weight", lambda: graph.normal((_WIDE, CLASSES), std))
    bias = graph.weight("digits/bias", lambda: np.zeros(CLASSES))
    scores = graph.add(graph.node("MatMul", [features, weight], "digits/matmul"), bias, "digits/bias_add")
    asked = graph.node("GatherElements", [_by_table(graph, scores), "question"], "table/asked", axis=1)
    logit = graph.add(asked, _by_comparison(graph, features), "answer/add")
    if learning:
        return {"logit": (logit, Port(("N", 1))), "scores": (scores, Port(("N", 2, CLASSES)))}
    answer = graph.node("Sigmoid", [logit], "answer/sigmoid")
    digits = graph.node("ArgMax", [scores], "digits/largest", axis=2, keepdims=0)
    return {"answer": (answer, Port(("N", 1))), "digits": (digits, Port(("N", 2), TensorProto.INT64))}


def _model(weights: Weights | None) -> tuple[NetBuilder, onnx.ModelProto]:
    graph = NetBuilder(OPSET, weights=weights)
    graph.as_exported = weights is not None
    ends = network(graph, learning=weights is None)
    ports = {side: Port(("N", *IMAGE_SHAPE)) for side in ("left", "right")}
    return graph, graph.assemble(NAME, ports | {"question": Port(("N", 1), TensorProto.INT64)}, ends)


def _loss() -> onnx.ModelProto:
    """Cross entropy of the answer, and of the digits of both pictures."""
    nodes = [
        # log(1 + exp(-|x|)) + max(x, 0) - x * label
        helper.make_node("Abs", ["logit"], ["size"]),
        helper.make_node("Neg", ["size"], ["negative"]),
        helper.make_node("Exp", ["negative"], ["power"]),
        helper.make_node("Add", ["power", "one"], ["sum"]),
        helper.make_node("Log", ["sum"], ["soft"]),
        helper.make_node("Relu", ["logit"], ["hard"]),
        helper.make_node("Mul", ["logit", "labels"], ["right"]),
        helper.make_node("Add", ["soft", "hard"], ["whole"]),
        helper.make_node("Sub", ["whole", "right"], ["each"]),
        helper.make_node("ReduceMean", ["each"], ["answers"], keepdims=0),
        helper.make_node("LogSoftmax", ["scores"], ["likelihoods"], axis=-1),
        helper.make_node("Unsqueeze", ["drawn", "last"], ["classes"]),
        helper.make_node("GatherElements", ["likelihoods", "classes"], ["found"], axis=-1),
        helper.make_node("ReduceMean", ["found"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["answers", "mean"], ["loss"]),
    ]
    values = {
        "logit": (TensorProto.FLOAT, ["N", 1]),
        "labels": (TensorProto.FLOAT, ["N", 1]),
        "scores": (TensorProto.FLOAT, ["N", 2, CLASSES]),
        "drawn": (TensorProto.INT64, ["N", 2]),
    }
    inputs = [helper.make_tensor_value_info(name, element, dims) for name, (element, dims) in values.items()]
    loss = helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])
    constants = [
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
    ]
    graph = helper.make_graph(nodes, "loss", inputs, [loss], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def make(split: DigitsSplit, directory: Path) -> list[Path]:
    """Train it and write it and its data."""
    train, test = training_pairs(split), held_out_pairs(split)
    arrays = train.inputs | {"labels": train.answer.astype(np.float32), "drawn": train.digits}
    weights = train_float(*_model(None), FloatRecipe(**{**vars(RECIPE), "loss": _loss()}), arrays)
    data = directory / "data"
    np.savez_compressed(data / "pairs_calib.npz", **calibration_pairs(split).inputs)
    np.savez_compressed(data / "pairs_test.npz", **test.inputs)
    np.save(data / "pairs_test_labels.npy", test.answer.astype(np.uint8))
    path = directory / f"{NAME}.onnx"
    onnx.save(_model(weights)[1], path)
    return [path]
