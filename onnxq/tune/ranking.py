"""How much each layer's quantization does to a model's output, as a table to look at and to hand on."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnxq.report.files import write_text
from onnxq.tune.metrics_builtin import Metric

Method = Literal["first_order", "one", "all_but_one"]
"""How effects are found.

* ``first_order``: estimated for all layers at once from the output's slope at each layer.
* ``one``: one layer quantized at a time, everything else float.
* ``all_but_one``: one layer float at a time, everything else quantized.
"""
METHODS: tuple[Method, ...] = ("first_order", "one", "all_but_one")
COLUMNS = ("rank", "layer", "op_type", "effect", "share", "score")


@dataclass(frozen=True, slots=True)
class LayerEffect:
    """What quantizing one layer does to the output.

    Attributes:
        layer: Name of the node.
        op_type: Its operator type.
        effect: How much worse the model is for it: the noise to signal ratio at the output for ``sqnr``, nats for
            ``kl``, points of the metric for others. Negative where quantizing the layer helps.
        share: Its part of the sum of all effects above 0.
        score: The metric with this layer quantized, or, for ``all_but_one``, left float; NaN where it was not measured.
    """

    layer: str
    op_type: str
    effect: float
    share: float
    score: float

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {
            "layer": self.layer,
            "op_type": self.op_type,
            "effect": _number(self.effect),
            "share": _number(self.share),
            "score": _number(self.score),
        }


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """A ranking of layers.

    Attributes:
        rows: The layers, that with the largest effect first.
        method: How effects were found.
        metric: What they are effects on.
        reference: The float model's own score; NaN where it has none.
        quantized: The score with all layers quantized; NaN where it was not measured.
        samples: How many samples it was measured on.
        notes: What a user should know, a sentence each.
    """

    rows: tuple[LayerEffect, ...]
    method: Method
    metric: Metric
    reference: float
    quantized: float = math.nan
    samples: int = 0
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, that with the largest effect first."""
        return tuple(row.layer for row in self.rows)

    def effect(self, layer: str) -> float:
        """The effect of one layer; 0 for one that is not quantized."""
        return next((row.effect for row in self.rows if row.layer == layer), 0.0)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        return {
            "method": self.method,
            "metric": {"name": self.metric.name, "unit": self.metric.unit},
            "reference": _number(self.reference),
            "quantized": _number(self.quantized),
            "samples": self.samples,
            "layers": [{"rank": rank, **row.to_dict()} for rank, row in enumerate(self.rows, 1)],
            "notes": list(self.notes),
        }

    def to_csv(self) -> str:
        """The rows with a heading, RFC 4180."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        for rank, row in enumerate(self.rows, 1):
            numbers = (f"{row.effect:.9g}", f"{row.share:.9g}", "" if math.isnan(row.score) else f"{row.score:.9g}")
            writer.writerow((rank, row.layer, row.op_type, *numbers))
        return text.getvalue()

    def save_csv(self, path: Path) -> None:
        """Write the rows.

        Raises:
            OSError: If the file cannot be written; nothing half-written is left.
        """
        write_text(path, self.to_csv())

    def save_json(self, path: Path) -> None:
        """Write everything.

        Raises:
            OSError: If the file cannot be written; nothing half-written is left.
        """
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")


def ranked(found: Iterable[tuple[str, str, float, float]]) -> tuple[LayerEffect, ...]:
    """Rows in order: larger effects first, equal ones as they came.

    Args:
        found: Name, operator type, effect and score of each layer; an effect that is NaN counts as the largest.
    """
    rows = [(name, op, math.inf if math.isnan(effect) else effect, score) for name, op, effect, score in found]
    total = math.fsum(effect for _, _, effect, _ in rows if 0 < effect < math.inf)
    endless = sum(effect == math.inf for _, _, effect, _ in rows)
    return tuple(
        LayerEffect(name, op, effect, _share(effect, total, endless), score)
        for name, op, effect, score in sorted(rows, key=lambda row: -row[2])
    )


def _share(effect: float, total: float, endless: int) -> float:
    if endless:
        return 1 / endless if effect == math.inf else 0.0
    return effect / total if effect > 0 else 0.0


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values get the mean of their ranks.

    Args:
        a: Numbers.
        b: As many.

    Returns:
        From -1 to 1; NaN where one of them is the same everywhere.
    """
    x, y = _ranks(a), _ranks(b)
    mean = (len(x) + 1) / 2
    products = math.fsum((p - mean) * (q - mean) for p, q in zip(x, y, strict=True))
    sizes = math.fsum((p - mean) ** 2 for p in x) * math.fsum((q - mean) ** 2 for q in y)
    return products / math.sqrt(sizes) if sizes else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    first = {value: place for place, value in reversed(list(enumerate(order, 1)))}
    last = {value: place for place, value in enumerate(order, 1)}
    return [(first[value] + last[value]) / 2 for value in values]


def _number(value: float) -> float | None:
    """A number that JSON has."""
    return value if math.isfinite(value) else None
