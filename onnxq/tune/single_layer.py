"""What quantizing does to each layer by itself: its float inputs in, its outputs in float and quantized out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from numpy.typing import NDArray

from onnxq.calib.chunks import rechunk
from onnxq.calib.readers import DataLike, as_reader
from onnxq.errors import RecipeError
from onnxq.passes._base import Fact, PassManager
from onnxq.passes._inputs import inputs_of
from onnxq.passes.duplicate_layers import DuplicateLayers, copy_name
from onnxq.passes.insert_ascend_fake import InsertAscendFake
from onnxq.pipeline import context_for, run_passes
from onnxq.runtime import make_session
from onnxq.stages import Chosen


class LayerOutputs(NamedTuple):
    """What one layer gives for one batch.

    Attributes:
        layer: Its name.
        reference: In float.
        quantized: Quantized, for the same inputs.
    """

    layer: str
    reference: NDArray[Any]
    quantized: NDArray[Any]


def compare_layers(chosen: Chosen, data: DataLike, *, batch: int = 1, threads: int = 0) -> Iterator[LayerOutputs]:
    """Run a model in which every layer stands twice, in float and quantized, both on float inputs.

    The cost is that of two forward passes, whatever the number of layers; one batch is held at a time.

    Args:
        chosen: The model and its numbers.
        data: Samples, as for `onnxq.quantize`.
        batch: Samples of a batch; what the model fixes takes precedence.
        threads: Threads of a run, 0 for all cores.

    Raises:
        RecipeError: If the recipe's target takes no records.
        OnnxqError: If the model or the data cannot be used.
    """
    graph = chosen.graph.copy()
    inputs = inputs_of(graph)
    ctx = replace(context_for(chosen.recipe, None, threads, None), factors=dict(chosen.factors))
    if ctx.target.insertion == "qdq":
        raise RecipeError(f"target {ctx.target.name!r} takes no records; use ascend")
    outputs = {n: graph.node(n).outputs[0].name for n, f in chosen.factors.items() if not f.tensor_quantize}
    run_passes(PassManager([DuplicateLayers()], initial=frozenset({Fact.NAMED, Fact.FACTORS})), graph, ctx)
    copies = {name: graph.node(copy_name(name)).outputs[0].name for name in outputs}
    run_passes(PassManager([InsertAscendFake()], initial=frozenset({Fact.FACTORS})), graph, ctx)
    wanted = [name for pair in zip(outputs.values(), copies.values(), strict=True) for name in pair]
    session = make_session(graph, threads=threads, outputs=wanted)
    for _, feed in rechunk(as_reader(data, inputs), batch, inputs):
        found = session.run(wanted, feed)
        for number, name in enumerate(outputs):
            yield LayerOutputs(name, found[2 * number], found[2 * number + 1])
