"""The HTML report of ``onnxq sensitivity``."""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnxq.report.page import Bar, BarPlot, Block, Card, Column, Page, Section, Table, Text
from onnxq.tune.ranking import Sensitivity

TOLD = {
    "first_order": "estimated for all layers at once: what a layer's error does to the output, to first order",
    "one": "one layer quantized at a time, everything else float",
    "all_but_one": "one layer float at a time, everything else quantized",
}
"""What each method is, in words."""
_MANY = 0.8


def sensitivity_page(found: Sensitivity, model: str, target: str) -> Page:
    """A page with a plot and a table of all layers.

    Args:
        found: The ranking.
        model: What the model is called.
        target: What it would be quantized for.
    """
    return Page(
        "Sensitivity",
        f"{model}: what quantizing each layer for target {target} does to the output",
        tuple(_cards(found)),
        (Section("Layers", tuple(_blocks(found)), f"{TOLD[found.method].capitalize()}."),),
    )


def effect_unit(found: Sensitivity) -> str:
    """What effects are counted in."""
    if found.metric.name == "sqnr":
        return "noise to signal"
    return found.metric.unit or f"points of {found.metric.name}"


def concentration(found: Sensitivity) -> int:
    """How many layers have most of the effect, four fifths."""
    total = 0.0
    for count, row in enumerate(found.rows, 1):
        total += row.share
        if total >= _MANY:
            return count
    return len(found.rows)


def _cards(found: Sensitivity) -> Iterator[Card]:
    metric = found.metric
    yield Card("layers", str(len(found.rows)), f"{concentration(found)} of them have 80 % of the effect")
    if found.rows:
        worst = found.rows[0]
        yield Card("most sensitive", f"{100 * worst.share:.1f} %", f"of the effect: {worst.layer} ({worst.op_type})")
    if not math.isnan(found.quantized):
        float_score = f"; float {metric.text(found.reference)}" if math.isfinite(found.reference) else ""
        yield Card(metric.name, metric.text(found.quantized), f"all quantized{float_score}")
    yield Card("samples", str(found.samples), f"method {found.method}")


def _blocks(found: Sensitivity) -> Iterator[Block]:
    unit = effect_unit(found)
    bars = [
        Bar(row.layer, row.effect, row.op_type, f"rank {rank}, {100 * row.share:.2f} % of the effect")
        for rank, row in enumerate(found.rows, 1)
    ]
    yield BarPlot("Effect on the output, largest first", bars, unit, log=found.metric.name in ("sqnr", "kl"))
    columns = (
        Column("rank", "number"),
        Column("layer", "code"),
        Column("is", "choice"),
        Column("effect", "number", hint=unit),
        Column("share %", "number", hint="part of the sum of all effects"),
        Column(found.metric.name, "number", hint=f"{TOLD[found.method]} {found.metric.unit}".rstrip()),
    )
    rows = [
        (rank, row.layer, row.op_type, row.effect, 100 * row.share, None if math.isnan(row.score) else row.score)
        for rank, row in enumerate(found.rows, 1)
    ]
    yield Table(columns, rows)
    for note in found.notes:
        yield Text(note, "note")
