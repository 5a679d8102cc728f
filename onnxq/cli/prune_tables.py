"""What people read of pruning."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.cli.tables import percent, plain_table

if TYPE_CHECKING:
    from onnxq.pruning import Pruned


def pruned(result: Pruned) -> list[RenderableType]:
    """Layers before and after, the reasons of those that stay, and what the model costs."""
    layers = plain_table("layer", "operator", "channels", "left", "", right=["channels", "left"])
    for layer in result.layers:
        if layer.sparse or layer.after < layer.before:
            what = Text("two of four weights are 0" if layer.sparse else "", style="dim")
            layers.add_row(escape(layer.node), layer.op_type, str(layer.before), str(layer.after), what)
    reasons = Counter(layer.reason for layer in result.layers if layer.reason)
    kept = plain_table("not pruned", "because", right=["not pruned"])
    for reason, count in reasons.most_common(12):
        kept.add_row(str(count), escape(reason))
    return [*([layers] if result.changed else []), *([kept] if reasons else []), _costs(result)]


def _costs(result: Pruned) -> Table:
    table = plain_table("one sample", "before", "after", "left", right=["before", "after", "left"])
    before, after = result.before, result.after
    rows = (
        ("parameters", before.parameters, after.parameters),
        ("multiplications and additions", before.macs, after.macs),
        ("all operations (FLOPs)", before.flops, after.flops),
    )
    for name, old, new in rows:
        table.add_row(name, number(old), number(new), percent(new / old if old else None))
    return table


def number(value: int) -> str:
    """A count for people: ``3.49 M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)
