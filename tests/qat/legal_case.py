"""A small graph whose gradients are compared with finite differences, and what is made of it for training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxq.context import QuantContext
from onnxq.graph import GraphModel
from onnxq.passes.assign_names import AssignNames
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.legalize_for_training import LegalizeForTraining
from onnxq.passes.lift_constants import LiftConstants
from tests.graphs import Feed, apply, build, context

F32 = np.float32


def spread(*shape: int, seed: int = 0) -> np.ndarray:
    """Values that lie at least 0.1 apart from each other and 0.05 from 0: no two change places in a difference."""
    count = int(np.prod(shape))
    order = np.random.default_rng([seed, *shape]).permutation(count)
    return ((order - count // 2 + 0.5) * 0.1).astype(F32).reshape(shape)


def coarse(*shape: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Multiples of 0.1 (plus a shift) in about [-1, 1]; two sets of different shifts have no ties."""
    values = np.random.default_rng([seed, *shape]).integers(-10, 10, size=shape)
    return (values * 0.1 + 0.05 + shift).astype(F32)


@dataclass(frozen=True)
class Case:
    """A graph ``body`` over an input ``x``.

    Attributes:
        name: What it is called.
        body: Its nodes, in ONNX's text format.
        x: The value of the input.
        outputs: Its outputs and their ranks.
        opset: Version of the operator set.
        names: What is derived by; by default the input and all float constants.
        symbolic: Axes of the input whose length is not known before the model runs.
        loss: The outputs that the loss depends on; by default all.
        constants: Initializers.
    """

    name: str
    body: str
    x: Any
    outputs: dict[str, int]
    opset: int = 17
    names: tuple[str, ...] = ()
    symbolic: tuple[int, ...] = ()
    loss: tuple[str, ...] = ()
    constants: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> onnx.ModelProto:
        dims = ",".join(f"d{i}" if i in self.symbolic else str(d) for i, d in enumerate(self.x.shape))
        kind = "int64" if self.x.dtype == np.int64 else "float"
        outs = ", ".join(
            f"float[{','.join(f'{name}{i}' for i in range(rank))}] {name}" if rank else f"float {name}"
            for name, rank in self.outputs.items()
        )
        return build(f"g ({kind}[{dims}] x) => ({outs}) {{ {self.body} }}", opset=self.opset, **self.constants)

    @property
    def derived_by(self) -> tuple[str, ...]:
        real = [name for name, value in self.constants.items() if np.asarray(value).dtype == F32]
        return self.names or (("x", *real) if self.x.dtype == F32 else tuple(real))

    @property
    def feed(self) -> Feed:
        return {"x": self.x}

    @property
    def ops(self) -> set[str]:
        return {node.op_type for node in self.model.graph.node}


def legal(
    model: onnx.ModelProto, names: tuple[str, ...], ctx: QuantContext | None = None, outputs: tuple[str, ...] = ()
) -> GraphModel:
    """The model as it is trained."""
    graph = GraphModel.from_proto(model)
    apply(
        graph, AssignNames(), LiftConstants(), InferShapes(), LegalizeForTraining(names, outputs), ctx=ctx or context()
    )
    return graph


def prepared(model: onnx.ModelProto) -> GraphModel:
    """The model with names, constants and shapes."""
    graph = GraphModel.from_proto(model)
    apply(graph, AssignNames(), LiftConstants(), InferShapes())
    return graph


def case(name: str, body: str, x: Any, rank: int | dict[str, int] | None = None, **others: Any) -> Case:
    options = {key: others.pop(key) for key in ("opset", "names", "symbolic", "loss") if key in others}
    if rank is None:
        rank = np.ndim(x)
    return Case(name, body, x, rank if isinstance(rank, dict) else {"y": rank}, constants=others, **options)
