"""Where noise comes in: how much more each layer's output has of it than the layer's inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from onnxq.graph import GraphModel
from onnxq.report.layers import compare_layers
from onnxq.tune.evaluation import Scorer

_BATCHES = 4


def noise_by_layer(prepared: GraphModel, quantized: GraphModel, scorer: Scorer) -> Mapping[str, float]:
    """Noise over signal that each node adds, by name of the node.

    Args:
        prepared: The float model, with the quantized one's names.
        quantized: What became of it.
        scorer: Its data are run, at most so many batches that layers can be told apart.
    """
    probe = scorer.sample()
    found = compare_layers(prepared, quantized, lambda: itertools.islice(scorer.batches(), _BATCHES), probe, batch=1)
    noise = {layer.pair.node: _ratio(layer.metrics.sqnr_db) for layer in found}
    makers = {t.name: str(node.name) for node in prepared.nodes() for t in node.outputs if t.name}
    added: dict[str, float] = {}
    for node in prepared.nodes():
        name = str(node.name)
        if name in noise:
            before = [noise.get(makers[t.name], 0.0) for t in node.inputs if t.name in makers]
            added[name] = max(0.0, noise[name] - max(before, default=0.0))
    return added


def _ratio(sqnr_db: float) -> float:
    return 1e6 if sqnr_db == -math.inf else 0.0 if sqnr_db == math.inf else 10.0 ** (-sqnr_db / 10.0)
