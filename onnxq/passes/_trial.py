"""Running a model with other weights again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnxq.algos.weight.codes import WeightCodes, decode, encode
from onnxq.algos.weight.init_scale import mean_cosine
from onnxq.calib.chunks import first_batches
from onnxq.calib.feeds import Feed, InputInfo, batching, sample_count
from onnxq.calib.live import resolve_shapes
from onnxq.graph import GraphModel
from onnxq.passes._inputs import inputs_of
from onnxq.passes._weights import weight_value
from onnxq.plan import WeightPlan
from onnxq.runtime import make_session

if TYPE_CHECKING:
    from onnxq.context import QuantContext


class Trial:
    """The model with its planned weights as inputs, one sample and what the float model makes of it.

    The session is made once; a trial needs memory for one copy of the weights. It runs in one thread, so that what is
    found does not depend on how many there are.

    Args:
        graph: The float model; it is not changed.
        ctx: Its reader is asked for one sample.
        weights: What is replaced, by keys; all readers of a tensor get the same.

    Attributes:
        samples: How many samples were taken from the reader.

    Raises:
        DataError: If the sample does not fit the model, or there is none and a free dimension has no size.
    """

    def __init__(self, graph: GraphModel, ctx: QuantContext, weights: Mapping[str, WeightPlan]) -> None:
        self._graph = graph
        self._weights = {w.tensor: w for w in weights.values()}
        self._session = make_session(opened_model(graph, list(self._weights)), threads=1)
        self._feed, self.samples = _sample(inputs_of(graph), ctx)
        floats = {name: weight_value(graph, w) for name, w in self._weights.items()}
        self._expected = self._session.run(None, {**self._feed, **floats})

    def cosine(self, codes: Callable[[WeightPlan], WeightCodes]) -> float:
        """The mean cosine of the model's outputs to those of the float model, with rounded weights.

        Args:
            codes: How a weight becomes codes.
        """
        feed = dict(self._feed)
        for name, weight in self._weights.items():
            chosen = codes(weight)
            feed[name] = decode(encode(weight_value(self._graph, weight), chosen), chosen)
        return mean_cosine(self._expected, self._session.run(None, feed))


def opened_model(graph: GraphModel, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these constants as inputs."""
    opened = graph.copy()
    for name in names:
        opened.rewrite_constant(opened.tensor(name), np.zeros(1, np.float32))
    proto = opened.to_proto()
    for kept in [t for t in proto.graph.initializer if t.name in names]:
        proto.graph.initializer.remove(kept)
    infos = {v.name: v for v in proto.graph.value_info}
    for name in names:
        if name in infos:
            proto.graph.value_info.remove(infos[name])
        shape = [int(d) for d in graph.shape(graph.tensor(name)) or () if isinstance(d, int)]
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return proto


def _sample(inputs: tuple[InputInfo, ...], ctx: QuantContext) -> tuple[Feed, int]:
    if ctx.reader is not None:
        feed = first_batches(ctx.reader, 1, 1, inputs)[0]
        return feed, sample_count(feed, batching(inputs).carried) or 1
    return _uniform(inputs, ctx), 0


def _uniform(inputs: tuple[InputInfo, ...], ctx: QuantContext) -> Feed:
    """Uniform numbers from 0.1 to 1 for floats; ones for whole numbers, which index or mask something."""
    shapes = resolve_shapes(inputs, {})
    rng = ctx.rng("auto_tune")
    feed: Feed = {}
    for info in inputs:
        values = rng.uniform(0.1, 1.0, shapes[info.name])
        floats = info.dtype.kind == "f"
        feed[info.name] = values.astype(info.dtype) if floats else np.ones(shapes[info.name], info.dtype)
    return feed
