"""LSTM and GRU in the form that the training runtime derives: forwards, with biases, initial states, all outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from onnxq.graph import Tensor
from onnxq.passes._legal_site import Rewrite, Site

_GATES = {"LSTM": 4, "GRU": 3}
_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}


@dataclass(frozen=True)
class _Layer:
    op: str
    directions: int
    hidden: int
    states: int


def recurrent(site: Site) -> bool:
    """One forward layer per direction; the other direction reads time back to front."""
    node, graph = site.node, site.graph
    layer = _checked(site)
    if _is_legal(site, layer):
        return False
    runs = [_run(site, layer, d) for d in range(layer.directions)]
    outputs = [t for t in node.outputs if t.name]
    places = [i for i, t in enumerate(node.outputs) if t.name]
    graph.remove_node(node)
    for tensor, place in zip(outputs, places, strict=True):
        parts = [run[place] for run in runs]
        whole = site.chain.op("Concat", *parts, axis=1 if place == 0 else 0) if len(parts) > 1 else parts[0]
        if len(parts) == 1:
            whole = site.chain.identity(whole)
        graph.replace_output(graph.producer(whole), 0, tensor)
    return True


def _checked(site: Site) -> _Layer:
    op, direction = str(site.node.op), str(site.attr("direction", "forward"))
    directions = 2 if direction == "bidirectional" else 1
    if site.given(4) is not None:
        site.refuse("it reads the lengths of its sequences", "export it for sequences of one length")
    if op == "LSTM" and site.given(7) is not None:
        site.refuse("it has peepholes, whose gradient is not verified", "export it without them")
    if site.attr("layout", 0):
        site.refuse("its layout is batch first", "export it with layout 0 and Transposes")
    named = [str(a).lower() for a in site.attr("activations", _ACTIVATIONS[op] * directions)]
    if named != _ACTIVATIONS[op] * directions:
        site.refuse(f"its activations are {named}", "only the usual ones can be trained")
    if float(site.attr("clip", 0) or 0) or site.attr("input_forget", 0):
        site.refuse("it clips its gates or couples them", "export it without clip and input_forget")
    return _Layer(op, directions, int(site.attr("hidden_size", 0)), 2 if op == "LSTM" else 1)


def _is_legal(site: Site, layer: _Layer) -> bool:
    outputs = site.node.outputs
    complete = len(outputs) == 1 + layer.states and all(t.name for t in outputs)
    states = all(site.given(5 + i) is not None for i in range(layer.states))
    plain = str(site.attr("direction", "forward")) == "forward" and "activations" not in site.node.attrs
    return plain and complete and states and site.given(3) is not None


def _run(site: Site, layer: _Layer, direction: int) -> list[Tensor]:
    """What one direction gives: all outputs, as the operator has them."""
    chain, x = site.chain, site.input()
    backwards = str(site.attr("direction", "forward")) == "reverse" or direction == 1
    turn = range(site.length(0, "reading backwards") - 1, -1, -1) if backwards else range(0)
    if backwards:
        x = chain.gather(x, turn, 0)

    def own(tensor: Tensor) -> Tensor:
        return tensor if layer.directions == 1 else chain.slice(tensor, 0, direction, direction + 1)

    given = site.given(3)
    bias = chain.real(np.zeros((1, 2 * _GATES[layer.op] * layer.hidden))) if given is None else own(given)
    initial = [site.given(5 + i) for i in range(layer.states)]
    batch = chain.sizes(site.input())[1]
    states = [_zeros(site, layer, batch) if t is None else own(t) for t in initial]
    attrs: dict[str, object] = {"hidden_size": layer.hidden}
    if layer.op == "GRU":
        attrs["linear_before_reset"] = int(site.attr("linear_before_reset", 0))
    name = f"{site.node.name}/{layer.op.lower()}"
    node = site.graph.add_node(
        layer.op, [x, own(site.input(1)), own(site.input(2)), bias, None, *states], name=name, attrs=attrs,
        outputs=[f"{name}_y", *(f"{name}_{'hc'[i]}" for i in range(layer.states))], dtype=np.float32,
    )  # fmt: skip
    results = list(node.outputs)
    if backwards:
        results[0] = chain.gather(results[0], turn, 0)
    return results


def _zeros(site: Site, layer: _Layer, batch: object) -> Tensor:
    chain = site.chain
    if isinstance(batch, int):
        return chain.real(np.zeros((1, batch, layer.hidden)))
    shape = chain.dims([1, batch, layer.hidden])
    return chain.op("Expand", chain.real(np.zeros((1, 1, 1))), shape)


RECURRENT: Mapping[str, Rewrite] = MappingProxyType({"LSTM": recurrent, "GRU": recurrent})
