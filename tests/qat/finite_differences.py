"""Gradients of the training runtime against finite differences of what ONNX Runtime computes.

The differences are those of the model as it was, the gradients those of what is made of it for training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxq.graph import GraphModel
from onnxq.qat.worker_client import Worker
from tests.graphs import Feed, session

Array = NDArray[np.float32]
STEP = 1e-2
RTOL = 1e-3
COORDINATES = 24


def with_parameters_as_inputs(model: onnx.ModelProto, names: Sequence[str]) -> tuple[onnx.ModelProto, Feed]:
    """The model with some initializers as inputs, and their values."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    values: Feed = {}
    for tensor in list(changed.graph.initializer):
        if tensor.name in names:
            values[tensor.name] = numpy_helper.to_array(tensor)
            changed.graph.initializer.remove(tensor)
            changed.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return changed, values


def with_loss(model: onnx.ModelProto, upstream: Feed) -> tuple[onnx.ModelProto, Feed]:
    """The model with a loss: the sum of its outputs, each weighted by a given array, and those as feeds."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph, terms, feeds = changed.graph, [], {}
    for name, weights in upstream.items():
        feeds[f"up_{name}"] = weights
        graph.input.append(helper.make_tensor_value_info(f"up_{name}", TensorProto.FLOAT, weights.shape))
        graph.node.append(helper.make_node("Mul", [name, f"up_{name}"], [f"weighted_{name}"]))
        graph.node.append(helper.make_node("ReduceSum", [f"weighted_{name}"], [f"term_{name}"], keepdims=0))
        terms.append(f"term_{name}")
    while len(terms) > 1:
        last = terms.pop()
        graph.node.append(helper.make_node("Add", [terms[-1], last], [f"{terms[-1]}+"]))
        terms[-1] += "+"
    graph.output.append(helper.make_tensor_value_info(terms[0], TensorProto.FLOAT, []))
    outputs = list(graph.output)
    del graph.output[:]
    graph.output.extend([outputs[-1], *outputs[:-1]])
    return changed, feeds


def numeric(loss: Callable[[Feed], float], feed: Feed, name: str, direction: Array) -> float:
    """The derivative of a loss in a direction, by central differences of two widths, extrapolated to none."""

    def slope(step: float) -> float:
        ends = [{**feed, name: np.asarray(feed[name] + sign * step * direction, np.float32)} for sign in (1, -1)]
        moved = ends[0][name].astype(np.float64) - ends[1][name]
        length = float((moved * direction).sum() / (direction.astype(np.float64) ** 2).sum())
        return (loss(ends[0]) - loss(ends[1])) / length

    return (4 * slope(STEP) - slope(2 * STEP)) / 3


def directions(value: Array, rng: np.random.Generator) -> list[Array]:
    """Single coordinates, all of them if they are few, and two that move everything."""
    found = [np.asarray(rng.normal(size=value.shape) / np.sqrt(value.size), np.float32) for _ in range(2)]
    places = rng.permutation(value.size)[:COORDINATES]
    for place in places:
        one = np.zeros(value.size, np.float32)
        one[place] = 1
        found.append(one.reshape(value.shape))
    return found


def check_gradients(
    worker: Worker,
    model: onnx.ModelProto,
    legal: onnx.ModelProto | GraphModel,
    names: Sequence[str],
    feed: Feed,
    *,
    rtol: float = RTOL,
    smallest: float = 1e-3,
    outputs: Sequence[str] = (),
) -> None:
    """Assert that the gradients of `legal` are what differences of `model` say.

    Args:
        worker: The training runtime.
        model: What computes the function.
        legal: What is derived; an equal function.
        names: Initializers and inputs to derive by.
        feed: Values of the inputs.
        rtol: How much a gradient may differ, relative to the largest gradient of the same tensor.
        smallest: A gradient as large as differences can be told from rounding.
        outputs: The outputs that the loss depends on; by default all float ones.
    """
    proto = legal if isinstance(legal, onnx.ModelProto) else legal.to_proto()
    open_model, values = with_parameters_as_inputs(model, names)
    start = {**feed, **values}
    run = session(open_model)
    found = [o.name for o in run.get_outputs()]
    wanted = list(outputs) or [
        o.name for o, v in zip(run.get_outputs(), run.run(found, start), strict=True) if v.dtype == np.float32
    ]
    rng = np.random.default_rng(5)
    shapes = [v.shape for v in run.run(wanted, start)]
    upstream = {n: np.asarray(rng.normal(size=s), np.float32) for n, s in zip(wanted, shapes, strict=True)}

    def loss(at: Feed) -> float:
        results = run.run(wanted, at)
        return sum(float((r.astype(np.float64) * u).sum()) for r, u in zip(results, upstream.values(), strict=True))

    derived, extra = with_loss(proto, upstream)
    gradients = worker.gradient(
        derived.SerializeToString(), tuple(names), {**feed, **extra}, seed_output=derived.graph.output[0].name
    )
    for name in names:
        gradient = gradients[name].astype(np.float64)
        assert gradient.shape == start[name].shape
        ways = directions(start[name], rng)
        slopes = np.array([numeric(loss, start, name, way) for way in ways])
        expected = np.array([(gradient * way).sum() for way in ways])
        scale = max(float(np.abs(slopes).max()), smallest)
        np.testing.assert_allclose(expected, slopes, rtol=rtol, atol=rtol * scale, err_msg=f"gradient of {name}")
