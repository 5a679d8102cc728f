"""Random chains of layers, affine nodes and activations through the float passes: the function survives all of them.

Tolerance: up to 12 layers with sums of at most 54 products each, every weight rounded twice: 12 * 54 * 1.2e-7
is 8e-5 of the output's range; seen are 5e-6.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxq.graph import GraphModel
from onnxq.passes.equalize_layers import EqualizeLayers
from onnxq.passes.fuse_batchnorm import FuseBatchNorm
from onnxq.passes.infer_shapes import InferShapes
from tests.graphs import apply, assert_same_function, build, normal, positive

RTOL = 8e-5
SIZE = 6


class Writer:
    """Writes one random graph of feature maps (N, C, SIZE, SIZE)."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.constants: dict[str, np.ndarray] = {}
        self.lines: list[str] = []
        self.channels = self.rng.choice([2, 4])
        self.tail = "x"
        self.made: list[tuple[str, int]] = [("x", self.channels)]

    def constant(self, make: Callable[..., np.ndarray], *shape: int) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = make(*shape, seed=self.seed * 100 + len(self.constants))
        return name

    def weight(self, *shape: int) -> str:
        name = self.constant(normal, *shape)
        self.constants[name] *= np.exp(2 * normal(shape[0], *[1] * (len(shape) - 1), seed=self.seed))
        return name

    def layer(self) -> str:
        wanted, bias = self.rng.choice([2, 4]), self.rng.random() < 0.5
        form = self.rng.choice(["plain", "grouped", "depthwise", "transposed"])
        group = {"plain": 1, "grouped": 2, "depthwise": self.channels}.get(form, self.rng.choice([1, 2]))
        wanted = self.channels if form == "depthwise" else wanted
        if form == "transposed":
            weight, op = self.weight(self.channels, wanted // group, 1, 1), "ConvTranspose"
        else:
            kernel = 3 if form == "depthwise" else 1
            weight, op = self.weight(wanted, self.channels // group, kernel, kernel), "Conv"
        pads = "1,1,1,1" if form == "depthwise" else "0,0,0,0"
        last = f", {self.constant(normal, wanted)}" if bias else ""
        text = f"{op} <group={group}, pads=[{pads}]> ({self.tail}, {weight}{last})"
        self.channels = wanted
        return text

    def affine(self) -> str:
        op = self.rng.choice(["BatchNormalization", "Mul", "Add", "Sub", "Div"])
        if op == "BatchNormalization":
            makers = (normal, normal, normal, positive)
            return f"{op} ({', '.join([self.tail, *(self.constant(m, self.channels) for m in makers)])})"
        shape = self.rng.choice([(), (1,), (self.channels, 1, 1), (1, self.channels, 1, 1), (SIZE, SIZE)])
        operands = [self.tail, self.constant(positive, *shape)]
        if op != "Div":
            self.rng.shuffle(operands)
        return f"{op} ({', '.join(operands)})"

    def other(self) -> str:
        same = [name for name, channels in self.made if channels == self.channels]
        slopes = self.constant(normal, self.channels, 1, 1)
        zero, six = self.constant(lambda seed: np.float32(0)), self.constant(lambda seed: np.float32(6))
        return self.rng.choice(
            [
                f"Relu({self.tail})",
                f"LeakyRelu <alpha=0.2> ({self.tail})",
                f"PRelu({self.tail}, {slopes})",
                f"Clip({self.tail}, {zero})",
                f"Clip({self.tail}, {zero}, {six})",
                f"MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> ({self.tail})",
                f"AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> ({self.tail})",
                f"Sigmoid({self.tail})",
                f"Add({self.tail}, {self.rng.choice(same)})",
                f"Mul({self.tail}, {self.tail})",
            ]
        )

    def model(self) -> onnx.ModelProto:
        for position in range(self.rng.randint(3, 12)):
            text = self.rng.choices([self.layer, self.affine, self.other], weights=[3, 3, 2])[0]()
            self.tail = f"t{position}"
            self.lines.append(f"{self.tail} = {text}")
            self.made.append((self.tail, self.channels))
        first = self.made[0][1]
        outputs = [o for o in self.made[1:-1] if self.rng.random() < 0.1] + [self.made[-1]]
        signature = ", ".join(f"float[N,{channels},{SIZE},{SIZE}] {name}" for name, channels in outputs)
        text = f"g (float[N,{first},{SIZE},{SIZE}] x) => ({signature}) {{ {' '.join(self.lines)} }}"
        return build(text, **self.constants)


@pytest.mark.parametrize("seed", range(100))
def test_the_function_survives_fusing_and_equalizing(seed: int) -> None:
    model = Writer(seed).model()
    graph = GraphModel.from_proto(model)
    apply(graph, InferShapes(), FuseBatchNorm())
    assert_same_function(model, graph, rtol=RTOL)
    apply(graph, EqualizeLayers())
    assert_same_function(model, graph, rtol=RTOL)
    assert apply(graph, FuseBatchNorm()).changed == 0
    assert apply(graph, EqualizeLayers()).changed == 0


def test_the_seeds_above_have_something_to_fuse_and_to_equalize() -> None:
    fused = equalized = 0
    for seed in range(100):
        graph = GraphModel.from_proto(Writer(seed).model())
        fused += apply(graph, InferShapes(), FuseBatchNorm()).changed
        equalized += apply(graph, EqualizeLayers()).changed
    assert fused >= 50
    assert equalized >= 20
