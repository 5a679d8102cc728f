"""Keys and values of a decoder as codes: what it is given, what it joins and what it gives back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxq.errors import RecipeError
from onnxq.passes._base import Fact, Pass, PassReport, Skip
from onnxq.passes._caches import Cache

if TYPE_CHECKING:
    from onnxq.context import QuantContext
    from onnxq.graph import GraphModel, Node

METADATA = "onnxq.caches"
"""Key of the model's metadata: a JSON object of the outputs that are codes, each with its input and numbers."""


class StoreCaches(Pass):
    """Makes codes of the caches that the recipe asks for.

    Given:
        ``present = Dequantize(Quantize(Concat(past, new)))`` with floats as inputs and outputs of the model
    Result:
        ``present = Concat(past, Quantize(new))`` with codes as inputs and outputs; what reads `present` reads
        ``Dequantize(present)``. The codes of the past are never decoded and coded again.

    Where the past has codes of its own in front of the Concat, because a rule asks for them, the cache stays floats.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.QUANTIZED})

    def run(self, graph: GraphModel, ctx: QuantContext) -> PassReport:
        """Rewrite.

        Raises:
            RecipeError: If the recipe wants codes of caches and the model has none.
        """
        if ctx.recipe.cache is None:
            return PassReport()
        noted: dict[str, dict[str, object]] = {}
        skipped: list[Skip] = []
        for output in list(graph.outputs):
            decode = graph.producer(output)
            pair = None if decode is None else _pair_behind_concat(graph, decode)
            if pair is None:
                continue
            join, encode = pair
            index = next((i for i, t in enumerate(join.inputs) if any(t is past for past in graph.inputs)), -1)
            if index < 0:
                skipped.append(Skip(str(join.name), "its past gets codes by a rule already; leave the rule out"))
                continue
            cache = Cache(join.inputs[index], index, join, output)
            noted[str(output.name)] = _store(graph, cache, encode, decode)
        if not noted and not skipped:
            raise RecipeError(
                "cache: the model has none: an input of floats, a Concat with something new, an output; leave it out"
            )
        graph.metadata[METADATA] = json.dumps(noted, sort_keys=True)
        graph.sort()
        return PassReport(len(noted), tuple(skipped))


def _pair_behind_concat(graph: GraphModel, decode: Node) -> tuple[Node, Node] | None:
    """The Concat and the QuantizeLinear in front of a DequantizeLinear."""
    encode = graph.producer(decode.inputs[0]) if decode.op == "DequantizeLinear" else None
    join = graph.producer(encode.inputs[0]) if encode is not None and encode.op == "QuantizeLinear" else None
    return None if join is None or join.op != "Concat" else (join, encode)


def _store(graph: GraphModel, cache: Cache, encode: Node, decode: Node) -> dict[str, object]:
    numbers, dtype = encode.inputs[1:3], graph.dtype(encode.inputs[2])
    shapes = {t.name: graph.shape(t) for t in (cache.past, cache.present)}
    for index, tensor in enumerate(cache.join.inputs):
        if index == cache.index:
            continue
        codes = graph.add_node(
            "QuantizeLinear", [tensor, *numbers], name=f"{cache.present.name}_new_quantize",
            outputs=[f"{cache.present.name}_new"], dtype=dtype, shape=graph.shape(tensor),
        ).outputs[0]  # fmt: skip
        graph.set_input(cache.join, index, codes)
    floats = graph.new_variable(f"{cache.present.name}_dequantized", np.float32, shapes[cache.present.name])
    graph.replace_uses(cache.present, floats)
    graph.replace_output(cache.join, 0, cache.present)
    graph.replace_output(decode, 0, floats)
    graph.set_input(decode, 0, cache.present)
    graph.remove_node(encode)
    for tensor in (cache.past, cache.present):
        graph.set_type(tensor, dtype, shapes[tensor.name])
    scale, zero = (float(np.asarray(graph.value(t)).reshape(-1)[0]) for t in numbers)
    return {"input": str(cache.past.name), "type": str(dtype), "scale": scale, "zero_point": int(zero)}
