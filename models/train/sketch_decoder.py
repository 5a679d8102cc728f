# SPDX-License-Identifier: Apache-2.0
"""sketch_decoder: a decoder transformer that draws a digit token by token, after the class it is given.

It is built like today's language models: RMS normalization, rotary positions, query heads that share keys and
values, and a gated feed-forward layer. `sketch_decoder` reads whole sequences; `sketch_decoder_with_past` has the
same weights and goes on from keys and values it has given before.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from builder import Weights
from digits_data import DigitsSplit
from float_training import FloatRecipe, train_float
from net_builder import NetBuilder, Port
from onnx import TensorProto, helper
from sketch_data import LENGTH, VOCABULARY, Sketches, calibration_sketches, sketches, training_sketches

NAME = "sketch_decoder"
OPSET = 17
PAST_OPSET = 21
RECIPE = FloatRecipe(epochs=12, learning_rate=4e-3, batch_size=64)

LAYERS = 2
PAST = 8
_WIDTH = 48
_HEADS = 4
_SHARED_HEADS = 2
_HEAD_WIDTH = _WIDTH // _HEADS
_GATED = 96
_EPSILON = 1e-6
_ROTARY_BASE = 100.0
_PAST_CALIBRATION = 48
_PAST_TEST = 120


def _rms_norm(graph: NetBuilder, x: str, name: str) -> str:
    squared = graph.node("Pow", [x, graph.scalar(f"{name}/exponent", 2.0)], f"{name}/pow")
    mean = graph.reduce_mean(squared, f"{name}/mean", -1, keepdims=True)
    stable = graph.node("Add", [mean, graph.scalar(f"{name}/epsilon", _EPSILON)], f"{name}/add_epsilon")
    root = graph.node("Sqrt", [stable], f"{name}/sqrt")
    inverse = graph.node("Div", [graph.scalar(f"{name}/one", 1.0), root], f"{name}/div")
    scaled = graph.node("Mul", [x, inverse], f"{name}/mul")
    gamma = graph.weight(f"{name}/gamma", lambda: np.ones(_WIDTH))
    return graph.node("Mul", [gamma, scaled], f"{name}/mul_gamma")


def _project(graph: NetBuilder, x: str, name: str, features: tuple[int, int]) -> str:
    std = math.sqrt(1.0 / features[0])
    return graph.node("MatMul", [x, graph.weight(f"{name}/weight", lambda: graph.normal(features, std))], name)


class _Positions:
    """What depends on positions only: the angles of the queries, and which keys they see."""

    def __init__(self, graph: NetBuilder, tokens: str, given: str | None, past: str | None) -> None:
        zero, one = (graph.constant(f"positions/{n}", np.asarray(v, np.int64)) for n, v in (("zero", 0), ("one", 1)))
        shape = graph.node("Shape", [tokens], "positions/shape")
        length = graph.node("Gather", [shape, one], "positions/length", axis=0)
        if past is not None:
            two = graph.constant("positions/two", np.asarray(2, np.int64))
            before = graph.node("Gather", [graph.node("Shape", [past], "positions/past_shape"), two], "positions/past")
            length = graph.node("Add", [length, before], "positions/total")
        keys = graph.node("Range", [zero, length, one], "positions/keys")
        if given is None:
            given = graph.with_axes("Unsqueeze", keys, "positions/ids", [0])
        self.cosine, self.sine = (self._table(graph, given, part) for part in ("cosine", "sine"))
        queries = graph.with_axes("Unsqueeze", given, "positions/queries", [1, 3])
        later = graph.node("Greater", [keys, queries], "positions/later")
        lowest = graph.scalar("positions/lowest", float(np.finfo(np.float32).min))
        self.bias = graph.node("Where", [later, lowest, graph.scalar("positions/nothing", 0.0)], "positions/bias")

    @staticmethod
    def _table(graph: NetBuilder, ids: str, part: str) -> str:
        rates = _ROTARY_BASE ** (-np.arange(0, _HEAD_WIDTH, 2) / _HEAD_WIDTH)
        angles = np.tile(np.outer(np.arange(LENGTH), rates), (1, 2))
        values = np.cos(angles) if part == "cosine" else np.sin(angles)
        table = graph.constant(f"positions/{part}/table", values.astype(np.float32))
        rows = graph.node("Gather", [table, ids], f"positions/{part}", axis=0)
        return graph.with_axes("Unsqueeze", rows, f"positions/{part}/heads", [1])


def _heads(graph: NetBuilder, x: str, name: str, count: int) -> str:
    split = graph.reshape(x, f"{name}/split_heads", [0, -1, count, _HEAD_WIDTH])
    return graph.transpose(split, f"{name}/to_heads", (0, 2, 1, 3))


def _rotate(graph: NetBuilder, x: str, name: str, positions: _Positions) -> str:
    half = _HEAD_WIDTH // 2
    low = graph.slice(x, f"{name}/low", 3, 0, half)
    high = graph.slice(x, f"{name}/high", 3, half, _HEAD_WIDTH)
    turned = graph.node("Concat", [graph.node("Neg", [high], f"{name}/neg"), low], f"{name}/turned", axis=-1)
    along = graph.node("Mul", [x, positions.cosine], f"{name}/along")
    across = graph.node("Mul", [turned, positions.sine], f"{name}/across")
    return graph.node("Add", [along, across], f"{name}/rotated")


def _shared(graph: NetBuilder, x: str, name: str) -> str:
    """Keys or values of [N, shared heads, time, width], once for every head that reads them."""
    times = _HEADS // _SHARED_HEADS
    apart = graph.with_axes("Unsqueeze", x, f"{name}/apart", [2])
    counts = graph.indexes(f"{name}/counts", [1, 1, times, 1, 1])
    repeated = graph.node("Expand", [apart, counts], f"{name}/expand")
    return graph.reshape(repeated, f"{name}/repeat", [0, _HEADS, -1, _HEAD_WIDTH])


def _attention(
    graph: NetBuilder, x: str, layer: int, positions: _Positions, past: tuple[str, str] | None
) -> tuple[str, tuple[str, str]]:
    """Attention, and the keys and values of all tokens so far."""
    name, shared = f"layer{layer}/attention", _SHARED_HEADS * _HEAD_WIDTH
    query = _heads(graph, _project(graph, x, f"{name}/query", (_WIDTH, _WIDTH)), f"{name}/query", _HEADS)
    query = _rotate(graph, query, f"{name}/query", positions)
    present = []
    for index, part in enumerate(("key", "value")):
        y = _heads(graph, _project(graph, x, f"{name}/{part}", (_WIDTH, shared)), f"{name}/{part}", _SHARED_HEADS)
        if part == "key":
            y = _rotate(graph, y, f"{name}/{part}", positions)
        if past is not None:
            y = graph.node("Concat", [past[index], y], f"{name}/{part}/present", axis=2)
        present.append(y)
    key, value = (_shared(graph, y, f"{name}/{part}/shared") for y, part in zip(present, ("key", "value"), strict=True))
    turned = graph.transpose(key, f"{name}/key/transpose", (0, 1, 3, 2))
    scores = graph.node("MatMul", [query, turned], f"{name}/scores")
    scaled = graph.node("Div", [scores, graph.scalar(f"{name}/sqrt_width", math.sqrt(_HEAD_WIDTH))], f"{name}/scale")
    masked = graph.node("Add", [scaled, positions.bias], f"{name}/mask")
    weights = graph.node("Softmax", [masked], f"{name}/softmax", axis=-1)
    context = graph.node("MatMul", [weights, value], f"{name}/context")
    merged = graph.reshape(
        graph.transpose(context, f"{name}/from_heads", (0, 2, 1, 3)), f"{name}/merge_heads", [0, -1, _WIDTH]
    )
    return _project(graph, merged, f"{name}/project", (_WIDTH, _WIDTH)), (present[0], present[1])


def _feed_forward(graph: NetBuilder, x: str, name: str) -> str:
    gate = _project(graph, x, f"{name}/gate", (_WIDTH, _GATED))
    opened = graph.node("Mul", [gate, graph.node("Sigmoid", [gate], f"{name}/sigmoid")], f"{name}/silu")
    up = _project(graph, x, f"{name}/up", (_WIDTH, _GATED))
    return _project(graph, graph.node("Mul", [opened, up], f"{name}/gated"), f"{name}/down", (_GATED, _WIDTH))


def decoder(opset: int, weights: Weights | None, *, with_past: bool) -> tuple[NetBuilder, onnx.ModelProto]:
    """The model, and what it was built with."""
    graph = NetBuilder(opset, weights=weights)
    pasts = [(f"past_key_values.{i}.key", f"past_key_values.{i}.value") for i in range(LAYERS)] if with_past else []
    ports = {"input_ids": Port(("N", "tokens"), TensorProto.INT64)}
    if with_past:
        ports["position_ids"] = Port(("N", "tokens"), TensorProto.INT64)
    ports |= {name: Port(("N", _SHARED_HEADS, "past", _HEAD_WIDTH)) for pair in pasts for name in pair}
    ids = "position_ids" if with_past else None
    positions = _Positions(graph, "input_ids", ids, pasts[0][0] if pasts else None)
    table = graph.weight("embedding/table", lambda: graph.normal((VOCABULARY, _WIDTH), 0.5))
    x = graph.node("Gather", [table, "input_ids"], "embedding", axis=0)
    total = "past + tokens" if with_past else "tokens"
    ends: dict[str, tuple[str, Port]] = {}
    for layer in range(LAYERS):
        y = _rms_norm(graph, x, f"layer{layer}/attention_norm")
        y, present = _attention(graph, y, layer, positions, pasts[layer] if pasts else None)
        for part, tensor in zip(("key", "value"), present, strict=True):
            ends[f"present.{layer}.{part}"] = (tensor, Port(("N", _SHARED_HEADS, total, _HEAD_WIDTH)))
        x = graph.add(x, y, f"layer{layer}/attention_residual")
        y = _feed_forward(graph, _rms_norm(graph, x, f"layer{layer}/feed_norm"), f"layer{layer}/feed")
        x = graph.add(x, y, f"layer{layer}/feed_residual")
    logits = _project(graph, _rms_norm(graph, x, "final_norm"), "head", (_WIDTH, VOCABULARY))
    first = {"logits": (logits, Port(("N", "tokens", VOCABULARY)))}
    return graph, graph.assemble(NAME, ports, first | ends)


def _loss() -> onnx.ModelProto:
    """Cross entropy of every token with the one that follows."""
    nodes = [
        helper.make_node("LogSoftmax", ["logits"], ["likelihoods"], axis=-1),
        helper.make_node("Unsqueeze", ["labels", "last"], ["classes"]),
        helper.make_node("GatherElements", ["likelihoods", "classes"], ["right"], axis=-1),
        helper.make_node("ReduceMean", ["right"], ["mean"], keepdims=0),
        helper.make_node("Neg", ["mean"], ["loss"]),
    ]
    last = [helper.make_tensor("last", TensorProto.INT64, [1], [-1])]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "tokens", VOCABULARY])
    labels = helper.make_tensor_value_info("labels", TensorProto.INT64, ["N", "tokens"])
    loss = helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "loss", [logits, labels], [loss], last)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _write_data(split: DigitsSplit, prefill: onnx.ModelProto, directory: Path) -> None:
    data = directory / "data"
    parts = {
        "calib": (calibration_sketches(split), _PAST_CALIBRATION),
        "test": (sketches(split.test_images, split.test_labels), _PAST_TEST),
    }
    for part, (found, count) in parts.items():
        np.savez_compressed(data / f"sketch_{part}.npz", input_ids=found.tokens)
        np.savez_compressed(data / f"sketch_with_past_{part}.npz", **_with_past(prefill, found, count))
    labels = parts["test"][0].following.astype(np.uint8)
    np.save(data / "sketch_test_labels.npy", labels)
    np.save(data / "sketch_with_past_test_labels.npy", labels[:_PAST_TEST, PAST:])


def _with_past(prefill: onnx.ModelProto, found: Sketches, count: int) -> dict[str, np.ndarray]:
    """The rest of sequences, and what the model has given for their beginnings."""
    session = ort.InferenceSession(prefill.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()][1:]
    tokens = found.tokens[:count]
    arrays = {"input_ids": tokens[:, PAST:], "position_ids": np.tile(np.arange(PAST, LENGTH), (count, 1))}
    for name, value in zip(names, session.run(names, {"input_ids": tokens[:, :PAST]}), strict=True):
        # Half of the digits are enough here, and compress better.
        rounded = (np.asarray(value).view(np.uint32) & 0xFFFF8000).view(np.float32)
        arrays[name.replace("present", "past_key_values")] = rounded
    return arrays


def make(split: DigitsSplit, directory: Path) -> list[Path]:
    """Train it and write both forms and the data."""
    arrays = training_sketches(split)
    weights = train_float(
        *decoder(OPSET, None, with_past=False),
        FloatRecipe(**{**vars(RECIPE), "loss": _loss()}),
        {"input_ids": arrays.tokens, "labels": arrays.following},
    )
    paths = [directory / f"{NAME}.onnx", directory / f"{NAME}_with_past.onnx"]
    prefill = decoder(OPSET, weights, with_past=False)[1]
    onnx.save(prefill, paths[0])
    onnx.save(decoder(PAST_OPSET, weights, with_past=True)[1], paths[1])
    _write_data(split, prefill, directory)
    return paths
