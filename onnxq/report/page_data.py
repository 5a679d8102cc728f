"""The blocks of a page as the numbers and texts that its script draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxq.report.graph_layout import HEIGHT, PITCH, WIDTH, lay_out
from onnxq.report.page import (
    BarPlot,
    Cell,
    ChannelPlot,
    Column,
    GraphView,
    HistogramPlot,
    ScatterPlot,
    Table,
)

Live = Table | BarPlot | ScatterPlot | HistogramPlot | ChannelPlot | GraphView
"""Blocks that the script of a page draws."""
Json = dict[str, object]


def data_of(block: Live) -> Json:
    """What the script is given, of plain mappings, lists, strings and finite numbers.

    Args:
        block: The block.

    Raises:
        ValueError: If a row has another number of cells than there are columns, or an edge does not lead from an
            earlier node to a later one.
    """
    match block:
        case Table():
            return _table(block)
        case BarPlot():
            return _bars(block)
        case ScatterPlot():
            return _points(block)
        case HistogramPlot():
            return _histograms(block)
        case ChannelPlot():
            return _channels(block)
        case GraphView():
            return _graph(block)


def column_of(column: Column | str) -> Column:
    """A column, also where only its title is given."""
    return Column(column) if isinstance(column, str) else column


def _table(table: Table) -> Json:
    columns = [column_of(column) for column in table.columns]
    for number, row in enumerate(table.rows):
        if len(row) != len(columns):
            raise ValueError(f"row {number} of a table has {len(row)} cells for {len(columns)} columns")
    return {
        "kind": "table",
        "columns": [{"kind": c.kind, "digits": c.digits} for c in columns],
        "rows": [[_cell(cell, column) for cell, column in zip(row, columns, strict=True)] for row in table.rows],
        "sort": table.sort,
        "descending": table.descending,
    }


def _cell(cell: Cell, column: Column) -> str | int | float | None:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        if math.isnan(cell):
            return None
        return _short(cell, column.digits + 2) if math.isfinite(cell) else ("∞" if cell > 0 else "-∞")
    return cell


def _short(value: float, digits: int = 6) -> float | int:
    """A number with so many significant digits, as short as JSON can write it."""
    found = float(f"{value:.{digits}g}")
    return int(found) if found.is_integer() and abs(found) < 1e15 else found


def _bars(plot: BarPlot) -> Json:
    bars = [bar for bar in plot.bars if math.isfinite(bar.value) and (bar.value > 0 or not plot.log)]
    return {
        "kind": "bars",
        "title": plot.title,
        "unit": plot.unit,
        "log": plot.log,
        "hidden": len(plot.bars) - len(bars),
        "bars": [[bar.label, _short(bar.value), bar.group, bar.detail] for bar in bars],
    }


def _points(plot: ScatterPlot) -> Json:
    def drawn(x: float, y: float) -> bool:
        positive = (x > 0 or not plot.log_x) and (y > 0 or not plot.log_y)
        return math.isfinite(x) and math.isfinite(y) and positive

    points = [p for p in plot.points if drawn(p.x, p.y)]
    return {
        "kind": "points",
        "title": plot.title,
        "x": plot.x_label,
        "y": plot.y_label,
        "log": [plot.log_x, plot.log_y],
        "line": list(plot.line),
        "hidden": len(plot.points) - len(points),
        "points": [[_short(p.x), _short(p.y), p.label, p.series] for p in points],
    }


def _histograms(plot: HistogramPlot) -> Json:
    tensors = [
        {
            "name": t.name,
            "range": [_short(t.low), _short(t.high)],
            "counts": [int(count) for count in t.counts],
            "clip": _finite(t.clip or ()),
            "detail": t.detail,
        }
        for t in plot.tensors
    ]
    return {"kind": "histogram", "title": plot.title, "tensors": tensors}


def _channels(plot: ChannelPlot) -> Json:
    tensors = [
        {
            "name": t.name,
            "low": _finite(t.low),
            "high": _finite(t.high),
            "step": t.step,
            "clip": [_finite(pair) for pair in t.clip],
            "detail": t.detail,
        }
        for t in plot.tensors
    ]
    return {"kind": "channels", "title": plot.title, "tensors": tensors}


def _finite(values: Sequence[float]) -> list[float | int | None]:
    return [_short(value, 4) if math.isfinite(value) else None for value in values]


def _graph(view: GraphView) -> Json:
    layout = lay_out(len(view.nodes), view.edges)
    kinds = list(dict.fromkeys(node.kind for node in view.nodes))
    place = {kind: number for number, kind in enumerate(kinds)}
    edges: list[list[object]] = []
    for route in layout.routes:
        bend: list[object] = [route.gutter] if route.gutter is not None else [list(route.via)] if route.via else []
        edges.append([route.start, route.end, *bend])
    return {
        "kind": "graph",
        "title": view.title,
        "kinds": kinds,
        "box": [WIDTH, HEIGHT, PITCH],
        "size": [layout.width, layout.height],
        "nodes": [
            [node.name, node.op_type, place[node.kind], x, y, [list(pair) for pair in node.details]]
            for node, x, y in zip(view.nodes, layout.x, layout.y, strict=True)
        ],
        "edges": edges,
    }
