"""What people read: the tables of the commands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.dialects.amct.job import AmctJob
    from onnxq.dialects.mslite.job import Conversion
    from onnxq.packing import PackReport
    from onnxq.plan import Decision
    from onnxq.qat.overlay import Installation
    from onnxq.report.compare import Comparison
    from onnxq.report.demo import DemoRow
    from onnxq.report.facts import ModelFacts, ValueFacts
    from onnxq.report.job import Done
    from onnxq.report.layers import LayerError
    from onnxq.report.metrics import Accuracy
    from onnxq.report.reasons import ReasonGroup

MOST_REASONS = 12
_ROLES = {
    "quantized": "compute with integer codes",
    "shared": "pass codes on with the scale of their input",
    "absorbed": "done by the saturation of a quantized output",
    "float": "stay as they are",
}
_QUANTIZED = {
    "weight_only": "have weights that are stored as codes",
    "dynamic": "compute with codes that activations get as they come",
}
"""What is meant by quantized where it is not what `_ROLES` says, by scheme."""


def size(count: int) -> str:
    """Bytes for people: ``3.4 MB``."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def decibels(value: float) -> str:
    """A signal to noise ratio for people; ``equal`` where there is no noise."""
    if math.isinf(value):
        return "equal" if value > 0 else "-inf dB"
    return f"{value:.1f} dB"


def percent(value: float | None) -> str:
    """A share for people."""
    return "-" if value is None else f"{100 * value:.2f} %"


def plain_table(*columns: str, right: Iterable[str] = (), title: str | None = None) -> Table:
    """A table of these columns; those in `right` hold numbers."""
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
    numbers = set(right)
    for name in columns:
        # Numbers are never cut; names are broken where they must be, so that they can be copied.
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=name in numbers, overflow="fold")
    return table


def _grid(rows: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, escape(value))
    return grid


# ---- what is quantized -------------------------------------------------------------------------


def roles(counts: Mapping[str, int], scheme: str = "static") -> Table:
    """How many nodes have each role."""
    table = plain_table("nodes", "count", "", right=["count"])
    meanings = {**_ROLES, "quantized": _QUANTIZED.get(scheme, _ROLES["quantized"])}
    for role, meaning in meanings.items():
        table.add_row(role, str(counts[role]), Text(meaning, style="dim"))
    return table


def reasons(groups: Sequence[ReasonGroup], *, verbose: bool = False) -> list[RenderableType]:
    """What stays float and why, one line per reason; with `verbose` one per node."""
    if not groups:
        return []
    if verbose:
        return [nodes([node for group in groups for node in group.nodes], title="Left float")]
    table = plain_table("left float", "operators", "because", right=["left float"])
    for group in groups[:MOST_REASONS]:
        table.add_row(str(len(group.nodes)), escape(group.op_types), escape(group.reason))
    if len(groups) <= MOST_REASONS:
        return [table]
    rest = sum(len(group.nodes) for group in groups[MOST_REASONS:])
    return [table, f"… and {rest} more for {len(groups) - MOST_REASONS} other reasons; --verbose shows all"]


def nodes(decisions: Sequence[Decision], *, title: str | None = None) -> Table:
    """What becomes of each node."""
    table = plain_table("node", "operator", "role", "because", title=title)
    for decision in decisions:
        style = "yellow" if decision.role == "float" else ""
        table.add_row(
            escape(decision.node), escape(decision.op_type), Text(decision.role, style=style), escape(decision.reason)
        )
    return table


def job(done: Done, beside: Sequence[Path] = (), *, verbose: bool = False) -> list[RenderableType]:
    """What became of ``onnxq quantize``, and what else it wrote."""
    result = done.result
    samples = f"{result.samples} samples" if result.samples else "no samples needed"
    rows = [
        ("written", str(done.job.output)),
        *(("", str(path)) for path in beside),
        ("size", f"{size(done.bytes_before)} -> {size(done.bytes_after)} (x{done.ratio:.2f})"),
        ("time", f"{done.seconds:.1f} s, {samples}"),
    ]
    if done.job.report is not None:
        rows.append(("report", str(done.job.report)))
    if done.debug is not None:
        rows.append(("debug", f"{done.debug.folder}, {len(done.debug.rounds)} rounds"))
    counted = roles(result.plan.counts(), result.recipe.scheme.kind)
    return [_grid(rows), counted, *reasons(done.groups, verbose=verbose)]


def conversion(done: Conversion, *, verbose: bool = False) -> list[RenderableType]:
    """What became of ``onnxq converter_lite``."""
    from onnxq.report.reasons import group_reasons

    result = done.result
    samples = f", {result.samples} samples" if result is not None and result.samples else ""
    ratio = done.bytes_after / max(1, done.bytes_before)
    rows = [
        ("written", str(done.output)),
        *(("", str(path)) for path in done.files[1:]),
        ("asked for", done.wanted),
        ("size", f"{size(done.bytes_before)} -> {size(done.bytes_after)} (x{ratio:.2f})"),
        ("time", f"{done.seconds:.1f} s{samples}"),
    ]
    if done.debug is not None:
        rows.append(("debug report", f"{done.debug.folder}, {len(done.debug.rounds)} rounds"))
    if result is None:
        return [_grid(rows)]
    counted = roles(result.plan.counts(), result.recipe.scheme.kind)
    return [_grid(rows), counted, *reasons(group_reasons(result.plan.left_float()), verbose=verbose)]


# ---- qat ---------------------------------------------------------------------------------------


def training_runtime(done: Installation) -> Table:
    """What ``onnxq qat setup`` did."""
    overlay = done.overlay
    rows = [
        ("training runtime", f"onnxruntime-training {overlay.version}, {overlay.tag}"),
        ("installed" if done.installed else "was there", str(overlay.path)),
        ("wheel", done.wheel.filename),
        ("sha256", done.wheel.sha256),
        ("interpreter", str(overlay.python)),
        ("verified", f"one step trained in {done.verified_seconds:.1f} s"),
    ]
    return _grid(rows)


# ---- inspect -----------------------------------------------------------------------------------


def facts(found: ModelFacts) -> list[RenderableType]:
    """What a model file holds."""
    versions = [f"opset {found.opset}", *(f"{name} {version}" for name, version in found.domains.items())]
    external = ", weights in files of their own" if found.external_data else ""
    rows = [
        ("file", str(found.path)),
        ("size", f"{size(found.file_bytes)}{external}"),
        ("operators", ", ".join(versions)),
        ("IR version", str(found.ir_version)),
        ("producer", found.producer or "not stated"),
        ("parameters", f"{found.parameters:,} in {size(found.weight_bytes)}"),
        *_values("input", found.inputs),
        *_values("output", found.outputs),
    ]
    counts = ", ".join(f"{name} x{count}" for name, count in found.op_types.items())
    rows.append((f"{sum(found.op_types.values())} nodes", counts or "none"))
    return [_grid(rows)]


def _values(kind: str, values: Sequence[ValueFacts]) -> list[tuple[str, str]]:
    return [(kind if index == 0 else "", f"{value.name}: {value}") for index, value in enumerate(values)]


def amct_layers(job: AmctJob) -> Table:
    """What a configuration of AMCT's means for each layer."""
    table = plain_table("layer", "operator", "activations", "weights", "dmq", title=f"Layers, {job.batch_num} batches")
    for name, found in job.settings.items():
        op_type = job.layers.quantizable[name].op_type
        if not found.quant_enable:
            table.add_row(escape(name), op_type, Text("float", style="yellow"), "", "")
            continue
        weight = "" if found.weight is None else str(found.weight)
        table.add_row(
            escape(name), op_type, str(found.activation), weight, "" if found.dmq is None else f"{found.dmq:g}"
        )
    for tensor in job.tensors:
        op_type = job.layers.nodes[tensor.node].op_type
        table.add_row(escape(f"{tensor.node}:{tensor.input_index}"), op_type, str(tensor.activation), "", "")
    return table


# ---- compare -----------------------------------------------------------------------------------


def comparison(found: Comparison, *, layers: int | None) -> list[RenderableType]:
    """The differences of two models.

    Args:
        found: What was found.
        layers: Show this many of the worst layers; None for all layers in the order of the graph.
    """
    parts: list[RenderableType] = [
        f"{found.samples} samples of {escape(found.data)}" if "samples" not in found.data else escape(found.data),
        _outputs(found),
    ]
    if found.accuracy is not None:
        parts.append(_accuracy(found.accuracy))
    if found.layers:
        parts += _layers(found.layers, layers)
    parts.append(_costs(found))
    return parts


def _outputs(found: Comparison) -> Table:
    right = ["SQNR", "cosine", "max error", "mean error", "largest value"]
    table = plain_table("output", *right, right=right)
    for output in found.outputs:
        m = output.metrics
        numbers = (f"{m.max_abs:.4g}", f"{m.mean_abs:.4g}", f"{m.peak:.4g}")
        table.add_row(escape(output.name), decibels(m.sqnr_db), f"{m.cosine:.6f}", *numbers)
    return table


def _accuracy(found: Accuracy) -> Table:
    table = plain_table("classes", "float", "quantized", "difference", right=["float", "quantized", "difference"])
    if found.reference is not None and found.quantized is not None:
        rows = [("top-1", found.reference, found.quantized), ("top-5", found.reference_top5, found.quantized_top5)]
        for name, a, b in rows:
            if a is not None and b is not None:
                table.add_row(name, percent(a), percent(b), f"{100 * (b - a):+.2f}")
    table.add_row("same first class", "", percent(found.agreement), "")
    return table


def _layers(layers: Sequence[LayerError], most: int | None) -> list[RenderableType]:
    ranked = sorted(layers, key=lambda layer: layer.metrics.sqnr_db)
    worst = {id(layer) for layer in ranked[:3]}
    shown = layers if most is None else [layer for layer in layers if layer in ranked[:most]]
    table = plain_table("layer", "operator", "SQNR", "cosine", "max error", right=["SQNR", "cosine", "max error"])
    for layer in shown:
        m = layer.metrics
        numbers = (decibels(m.sqnr_db), f"{m.cosine:.6f}", f"{m.max_abs:.4g}")
        style = "bold red" if id(layer) in worst else ""
        mark = "> " if id(layer) in worst else ""
        table.add_row(f"{mark}{escape(layer.pair.node)}", layer.pair.op_type, *numbers, style=style)
    parts: list[RenderableType] = [table, "> the three worst layers"]
    if len(shown) < len(layers):
        parts.append(f"the worst {len(shown)} of {len(layers)} layers; --verbose shows all")
    return parts


def _costs(found: Comparison) -> Table:
    table = plain_table("cost", "float", "quantized", "ratio", right=["float", "quantized", "ratio"])
    before, after = found.bytes_reference, found.bytes_quantized
    table.add_row("size", size(before), size(after), f"{after / max(1, before):.2f}")
    if found.latency is not None:
        fast = found.latency
        table.add_row("latency", f"{fast.reference_ms:.3g} ms", f"{fast.quantized_ms:.3g} ms", f"{fast.ratio:.2f}")
    return table


# ---- demo --------------------------------------------------------------------------------------


def demo(rows: Sequence[DemoRow]) -> list[RenderableType]:
    """One line per model, and what stayed float."""
    right = ["float", "int8", "agree", "SQNR", "size", "latency"]
    table = plain_table("model", *right, right=right)
    for row in rows:
        found, classes = row.comparison, row.comparison.accuracy
        table.add_row(
            escape(row.name),
            percent(classes.reference if classes else None),
            percent(classes.quantized if classes else None),
            percent(classes.agreement if classes else None),
            decibels(found.worst.metrics.sqnr_db),
            f"x{found.bytes_quantized / found.bytes_reference:.2f}",
            "-" if found.latency is None else f"x{found.latency.ratio:.2f}",
        )
    parts: list[RenderableType] = [table]
    for row in rows:
        if row.groups:
            parts += [Text(row.name, style="bold"), *reasons(row.groups)]
        else:
            parts.append(Text.assemble((row.name, "bold"), ": no node is left float"))
    return parts


# ---- packing -----------------------------------------------------------------------------------


def packed(report: PackReport, *, most: int | None) -> list[RenderableType]:
    """What `onnxq pack` did: the largest weights, all of them, and the file.

    Args:
        report: What it says.
        most: How many weights to show; None for all.
    """
    columns = ("bits", "codes", "entropy", "model", "bound", "packed")
    table = plain_table("weight", *columns, right=columns)
    weights = sorted(report.weights, key=lambda w: -w.before)[:most]
    for w in (*weights, report.total()) if report.weights else ():
        figures = (size(w.before), size(round(w.bound)), size(w.after))
        table.add_row(escape(w.name), str(w.bits), f"{w.count:,}", f"{w.entropy:.2f}", *figures)
    rest = f"{size(report.rest_before)} to {size(report.rest_after)}"
    total = f"{size(report.before)} to {size(report.after)}, {report.ratio:.2f} times smaller"
    grid = _grid([("everything else", rest), ("packed", total), ("written", str(report.path))])
    return [table, grid] if report.weights else [grid]
