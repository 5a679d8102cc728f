"""A transformer encoder that is made up: the sizes of a published one, random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET = 17
_MASKED_OPSET = 12
_FIRST_NORM = 17


@dataclass(frozen=True)
class Size:
    """Sizes of an encoder.

    Attributes:
        layers: How many blocks of attention and feed-forward.
        hidden: Numbers per token.
        intermediate: Numbers per token inside the feed-forward.
        heads: Heads of the attention.
        words: Rows of the embedding.
        tokens: Longest sequence.
    """

    layers: int = 4
    hidden: int = 312
    intermediate: int = 1200
    heads: int = 12
    words: int = 1024
    tokens: int = 128


TINYBERT = Size()
"""The blocks of TinyBERT with 4 layers; few words, so that as in a 20 MB encoder most weights are in the blocks."""


class _Writer:
    def __init__(self, seed: int, opset: int = _OPSET) -> None:
        self._opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def shape(self, *dims: int) -> str:
        return self.constant(np.array(dims, np.int64))

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        """Weights as training leaves them: channels differ in magnitude by a factor of two or so."""
        channels = np.exp(self._rng.normal(scale=0.3, size=shape[-1:]))
        return self.constant((self._rng.normal(scale=scale, size=shape) * channels).astype(np.float32))

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        product = self.node("MatMul", x, self.normal(inputs, outputs, scale=inputs**-0.5))
        return self.node("Add", product, self.normal(outputs, scale=0.02))

    def norm(self, x: str, size: int) -> str:
        gamma = np.exp(self._rng.normal(scale=0.2, size=size)).astype(np.float32)
        scale, bias = self.constant(gamma), self.normal(size, scale=0.02)
        if self._opset >= _FIRST_NORM:
            return self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-12)
        centred = self.node("Sub", x, self.node("ReduceMean", x, axes=[-1]))
        variance = self.node("ReduceMean", self.node("Pow", centred, self.number(2.0)), axes=[-1])
        spread = self.node("Sqrt", self.node("Add", variance, self.number(1e-12)))
        return self.node("Add", self.node("Mul", self.node("Div", centred, spread), scale), bias)

    def mask(self, name: str) -> str:
        """What is added to scores: 0 where the input `name`, (N, T), is 1, and -10000 where it is 0."""
        for axis in (1, 2):
            name = self.node("Unsqueeze", name, axes=[axis])
        floats = self.node("Cast", name, to=TensorProto.FLOAT)
        return self.node("Mul", self.node("Sub", self.number(1.0), floats), self.number(-10000.0))

    def gelu(self, x: str) -> str:
        curve = self.node("Erf", self.node("Div", x, self.number(2**0.5)))
        return self.node("Mul", self.node("Mul", x, self.node("Add", curve, self.number(1.0))), self.number(0.5))

    def attention(self, x: str, size: Size, mask: str | None) -> str:
        head = size.hidden // size.heads
        query, key, value = (
            self.node("Reshape", self.linear(x, size.hidden, size.hidden), self.shape(0, 0, size.heads, head))
            for _ in range(3)
        )
        scores = self.node(
            "MatMul", self.node("Transpose", query, perm=[0, 2, 1, 3]), self.node("Transpose", key, perm=[0, 2, 3, 1])
        )
        scaled = self.node("Div", scores, self.number(head**0.5))
        weights = self.node("Softmax", scaled if mask is None else self.node("Add", scaled, mask), axis=3)
        mixed = self.node("MatMul", weights, self.node("Transpose", value, perm=[0, 2, 1, 3]))
        joined = self.node("Reshape", self.node("Transpose", mixed, perm=[0, 2, 1, 3]), self.shape(0, 0, size.hidden))
        return self.linear(joined, size.hidden, size.hidden)

    def block(self, x: str, size: Size, mask: str | None) -> str:
        x = self.norm(self.node("Add", self.attention(x, size, mask), x), size.hidden)
        inner = self.gelu(self.linear(x, size.hidden, size.intermediate))
        return self.norm(self.node("Add", self.linear(inner, size.intermediate, size.hidden), x), size.hidden)


def write(path: Path, size: Size = TINYBERT, seed: int = 0, *, masked: bool = False) -> None:
    """Write an encoder: int64 ``ids`` of shape (N, T) in, float ``y`` of shape (N, T, hidden) out.

    Args:
        path: Where to.
        size: Its sizes.
        seed: Same seed, same weights.
        masked: Whether it has an input ``mask``, int64 of shape (N, T) as well; it is at opset 12 then, the last one at
            which ONNX Runtime makes an Attention of its blocks.
    """
    opset = _MASKED_OPSET if masked else _OPSET
    writer = _Writer(seed, opset)
    mask = writer.mask("mask") if masked else None
    words = writer.node("Gather", writer.normal(size.words, size.hidden), "ids")
    x = writer.norm(writer.node("Add", words, writer.normal(size.tokens, size.hidden, scale=0.3)), size.hidden)
    for _ in range(size.layers):
        x = writer.block(x, size, mask)
    writer.nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        writer.nodes,
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["N", size.tokens])
            for name in ("ids", "mask")[: 1 + masked]
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", size.tokens, size.hidden])],
        writer.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
