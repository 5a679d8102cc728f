"""The HTML report of ``onnxq tune``."""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnxq.report.page import Block, Card, Column, Page, Point, ScatterPlot, Section, Table, Text
from onnxq.tune.tuning import Tuned

_TRIALS = (
    Column("trial", "number"),
    Column("what was new"),
    Column("score", "number"),
    Column("damage", "number", hint="how far the outputs are from the float model's; it decides what is kept"),
    Column("bytes", "number"),
    Column("cost", "number", hint="time of one inference by the costs of the layers"),
    Column("left float", "number", hint="layers"),
    Column("meets", "choice"),
    Column("seconds", "number", hint="how long it took to quantize and to evaluate"),
    Column("refused", hint="why the recipe cannot be used"),
)
_LAYERS = (
    Column("layer", "code"),
    Column("is", "choice"),
    Column("8 bits", "number", hint="what it costs with codes"),
    Column("float", "number", hint="what it costs in float, without conversions"),
    Column("float instead", "number", hint="what the model costs more if this layer alone is left float"),
    Column("repairs"),
)


def tune_page(found: Tuned, model: str) -> Page:
    """A page with the result, the search, the front and the layers.

    Args:
        found: What tuning found.
        model: What the float model is called.
    """
    target = found.recipe.target
    what = "the fastest" if found.objective == "latency" else "the smallest"
    subtitle = f"{model}: {what} model for target {target} with at most {found.constraint}"
    if found.constraint.max_drop is None:
        subtitle = f"{model}: {what} model for target {target} with {found.constraint}"
    return Page(
        "Tuning",
        subtitle,
        tuple(_cards(found)),
        (
            Section("Front", tuple(_front(found)), "What each trial costs, and what it is worth."),
            Section("Search", (_search(found),), "What was tried, in this order."),
            Section("Layers", (_layers(found),), "What each layer costs, and what became of it."),
            Section("Recipe", (Text(found.recipe.to_yaml(defaults=False), "code"),), "It makes the same model again."),
        ),
    )


def _cards(found: Tuned) -> Iterator[Card]:
    metric = found.metric
    limit = f"float {metric.text(found.reference)}, good enough from {metric.text(found.threshold)}"
    yield Card(metric.name, metric.text(found.score), limit, "good" if found.met else "bad")
    if found.times is not None:
        times = found.times
        detail = f"{times.float_ms:.3g} ms to {times.tuned_ms:.3g} ms; untuned {times.default_ms / times.float_ms:.2f}"
        ratio = times.tuned_ms / times.float_ms
        yield Card("latency over float", f"{ratio:.2f}", detail, "good" if ratio < 1 else "bad")
    if found.chosen is not None:
        yield Card(
            "size", f"{found.chosen.outcome.size / 1e6:.2f} MB", f"untuned {found.first.outcome.size / 1e6:.2f} MB"
        )
    count = len(found.costs.integer_cost)
    yield Card("layers left float", f"{len(found.left_float)} of {count}")
    detail = f"{found.seconds:.0f} s" + (", ended by the budget" if found.out_of_time else "")
    yield Card("evaluations", str(found.evaluations), detail)


def _front(found: Tuned) -> Iterator[Block]:
    for note in found.notes:
        yield Text(note, "note")
    front = {trial.number for trial in found.front}
    unit = found.costs.unit if found.objective == "latency" else "bytes"
    points = [
        Point(
            trial.cost,
            trial.outcome.score,
            f"{trial.number}: {trial.what}" + (" (chosen)" if trial == found.chosen else ""),
            "front" if trial.number in front else "other trials",
        )
        for trial in found.history
        if not trial.outcome.refused
    ]
    if found.objective == "latency" and math.isfinite(found.reference):
        points.append(Point(found.costs.total(found.costs.integer_cost), found.reference, "the float model", "float"))
    label = f"{found.metric.name} {found.metric.unit}".rstrip()
    note = f"good enough from {found.metric.text(found.threshold)}"
    yield ScatterPlot("Score and cost", points, f"{found.objective}, {unit}", label, line=("front",), note=note)


def _search(found: Tuned) -> Table:
    rows = [
        (
            trial.number,
            trial.what + (" (chosen)" if trial == found.chosen else ""),
            None if trial.outcome.refused else trial.outcome.score,
            None if trial.outcome.refused else trial.outcome.damage,
            trial.outcome.size or None,
            trial.latency,
            len(trial.variant.floats),
            "yes" if trial.met else "no",
            trial.outcome.seconds,
            trial.outcome.refused,
        )
        for trial in found.history
    ]
    return Table(_TRIALS, rows, label="trials")


def _layers(found: Tuned) -> Table:
    costs = found.costs
    repairs = {} if found.chosen is None else found.chosen.variant.repairs
    left = frozenset(found.left_float)
    rows = [
        (
            name,
            "float" if name in left else "quantized",
            costs.integer_cost[name],
            costs.float_cost[name],
            costs.extra(name, ()),
            ", ".join(repair.name for repair in repairs.get(name, ())),
        )
        for name in costs.integer_cost
    ]
    return Table(_LAYERS, rows, note=f"costs in {costs.unit}", label="layers")
