"""The HTML reports of ``onnxq quantize``, ``onnxq compare`` and ``onnxq report``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxq._version import __version__
from onnxq.report.blocks import graph_section, layer_section, scale_section, value_section
from onnxq.report.compare import Comparison
from onnxq.report.page import Block, Card, Cell, Column, Folded, Page, Section, Shares, Table, Text, render

if TYPE_CHECKING:
    from onnxq.plan import Plan
    from onnxq.report.anatomy import Anatomy
    from onnxq.report.examine import Examined
    from onnxq.report.job import Done
    from onnxq.report.reasons import ReasonGroup

GOOD_SQNR = 20.0
"""From this SQNR of the outputs on, in dB, a figure is shown as good news."""


def quantize_report(done: Done, examined: Examined) -> str:
    """The report on a job, as HTML.

    Args:
        done: What became of it.
        examined: What was found out about the result.
    """
    job, result, found = done.job, done.result, examined.comparison
    counts = result.plan.counts()
    cards = [_size_card(done.bytes_before, done.bytes_after), *([] if found is None else _comparison_cards(found))]
    cards.append(_count_card(counts))
    cards.append(Card("calibration", f"{result.samples:,}", f"samples; {done.seconds:.1f} s in all"))
    warnings = ["Nothing was quantized; the model was written unchanged."] if not result.changed else []
    summary: list[Block] = [Shares(list(counts.items()), "nodes")]
    summary += [Text(text, "warning") for text in warnings]
    summary += [Text(text, "note") for text in dict.fromkeys((*result.notes, *examined.notes))]
    if found is not None:
        summary += [_before_after(found), *_outputs(found)]
        summary += [Text(text, "note") for text in found.notes]
    sections = [Section("Summary", summary, _measured_on(found)), *_anatomy_sections(examined.anatomy)]
    sections += [_float_section(done.groups, result.plan), _run_section(done)]
    subtitle = f"quantized from {job.model} for target {job.recipe.target} by onnxq {__version__}"
    return render(Page(job.output.name, subtitle, cards, sections))


def compare_report(found: Comparison, anatomy: Anatomy, *, failed: Sequence[str] = ()) -> str:
    """The report on a comparison, as HTML.

    Args:
        found: The comparison.
        anatomy: What is known of the nodes and tensors.
        failed: Which demands are not met, a sentence each.
    """
    cards = [_size_card(found.bytes_reference, found.bytes_quantized), *_comparison_cards(found)]
    summary: list[Block] = [Text(text, "warning") for text in failed]
    counts = dict.fromkeys(("quantized", "shared", "absorbed", "float"), 0)
    for node in anatomy.nodes():
        counts[anatomy.decision(node).role] += 1
    cards.append(_count_card(counts))
    summary.append(Shares(list(counts.items()), "nodes"))
    summary += [Text(text, "note") for text in found.notes]
    summary += [_before_after(found), *_outputs(found)]
    cards.append(Card("compared on", f"{found.samples:,}", "samples"))
    sections = [Section("Summary", summary, f"Compared on {found.data}."), *_anatomy_sections(anatomy)]
    subtitle = f"{found.quantized} compared with {found.reference} by onnxq {__version__}"
    return render(Page(found.quantized.name, subtitle, cards, sections))


def _anatomy_sections(anatomy: Anatomy | None) -> list[Section]:
    if anatomy is None or not anatomy.nodes():
        return []
    found = [layer_section(anatomy), value_section(anatomy), graph_section(anatomy), scale_section(anatomy)]
    return [section for section in found if section is not None]


def _size_card(before: int, after: int) -> Card:
    share = 100 * after / max(1, before)
    text = f"{_bytes(before)} → {_bytes(after)}"
    return Card("size", f"{share:.1f} %", text, "good" if share < 95 else "plain")


def _count_card(counts: dict[str, int]) -> Card:
    total = sum(counts.values())
    return Card("not float", f"{total - counts['float']} of {total}", "nodes")


def _comparison_cards(found: Comparison) -> list[Card]:
    cards = []
    accuracy = found.accuracy
    if accuracy is not None and accuracy.reference is not None and accuracy.quantized is not None:
        drop = accuracy.drop_points or 0.0
        text = f"float {100 * accuracy.reference:.2f} %, {0.0 - drop:+.2f} points"
        cards.append(Card("top-1", f"{100 * accuracy.quantized:.2f} %", text, "bad" if drop > 1 else "good"))
    elif accuracy is not None:
        cards.append(Card("same first class", f"{100 * accuracy.agreement:.1f} %", f"of {accuracy.samples} samples"))
    worst = found.worst.metrics
    exact = math.isinf(worst.sqnr_db) and worst.sqnr_db > 0
    value = "exact" if exact else f"{worst.sqnr_db:.1f} dB"
    name = found.worst.name if len(found.outputs) > 1 else ""
    detail = name or f"cosine {worst.cosine:.5f}"
    cards.append(Card("SQNR of the output", value, detail, "good" if worst.sqnr_db >= GOOD_SQNR else "bad"))
    if found.latency is not None:
        times = f"{found.latency.reference_ms:.3g} ms → {found.latency.quantized_ms:.3g} ms"
        ratio = found.latency.ratio
        cards.append(Card("latency", f"{100 * ratio:.0f} %", times, "good" if ratio < 0.98 else "plain"))
    return cards


def _before_after(found: Comparison) -> Table:
    rows: list[list[Cell]] = [_row("size", found.bytes_reference / 1e6, found.bytes_quantized / 1e6, "MB")]
    if found.latency is not None:
        rows.append(_row("latency", found.latency.reference_ms, found.latency.quantized_ms, "ms"))
        rows.append(_row("throughput", 1e3 / found.latency.reference_ms, 1e3 / found.latency.quantized_ms, "1/s"))
    accuracy = found.accuracy
    if accuracy is not None:
        rows.append(_row("top-1", _percent(accuracy.reference), _percent(accuracy.quantized), "%"))
        rows.append(_row("top-5", _percent(accuracy.reference_top5), _percent(accuracy.quantized_top5), "%"))
        rows.append(["same first class", None, 100 * accuracy.agreement, None, "%"])
    columns = (Column("measure"), *(Column(t, "number") for t in ("float", "quantized", "ratio")), Column("unit"))
    return Table(columns, [row for row in rows if row[2] is not None], label="before and after")


def _row(name: str, before: float | None, after: float | None, unit: str) -> list[Cell]:
    return [name, before, after, after / before if before and after is not None else None, unit]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _outputs(found: Comparison) -> list[Block]:
    columns = (
        Column("output", "code"),
        Column("SQNR (dB)", "number"),
        Column("cosine", "number", 6),
        Column("largest error", "number"),
        Column("mean error", "number"),
        Column("largest value", "number"),
    )
    rows: list[list[Cell]] = []
    for output in found.outputs:
        m = output.metrics
        rows.append([output.name, m.sqnr_db, m.cosine, m.max_abs, m.mean_abs, m.peak])
    return [Table(columns, rows, label="outputs")]


def _measured_on(found: Comparison | None) -> str:
    if found is None:
        return ""
    return (
        f"Measured on the first {found.samples} calibration samples, which the ranges were chosen for; for data that "
        "the model has not seen, use onnxq compare --report."
    )


def _float_section(groups: Sequence[ReasonGroup], plan: Plan) -> Section:
    if not groups:
        return Section("Left float", (Text("Every node is quantized." if plan else "There is nothing to quantize."),))
    columns = (Column("nodes", "number"), Column("operators"), Column("reason"))
    rows: list[list[Cell]] = [[len(group.nodes), group.op_types, group.reason] for group in groups]
    each = [[node.node, node.op_type, node.reason] for group in groups for node in group.nodes]
    listed = Table((Column("node", "code"), Column("operator", "choice"), Column("reason")), each, label="float nodes")
    return Section("Left float", (Table(columns, rows, label="reasons"), Folded("Node by node", (listed,))))


def _run_section(done: Done) -> Section:
    columns = (Column("pass", "code"), Column("changed", "number"), Column("seconds", "number"))
    rows: list[list[Cell]] = [[r.name, r.changed, round(r.seconds, 4)] for r in done.result.reports]
    blocks: list[Block] = [Table(columns, rows, label="passes")]
    skipped = [[r.name, skip.node, skip.reason] for r in done.result.reports for skip in r.skipped]
    if skipped:
        titles = (Column("pass", "choice"), Column("node", "code"), Column("reason"))
        blocks.append(Folded(f"{len(skipped)} places that passes left alone", (Table(titles, skipped),)))
    recipe = done.job.recipe
    blocks.append(Text(recipe.to_yaml(defaults=False), "code"))
    blocks.append(Folded("Recipe with all defaults", (Text(recipe.to_yaml(), "code"),)))
    return Section("Run and recipe", blocks)


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
