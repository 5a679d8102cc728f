"""What people read of ``onnxq sensitivity``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from onnxq.cli.tables import plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from onnxq.tune.ranking import Sensitivity

_SHOWN = 20
_BAR = 12


def sensitivity(found: Sensitivity, *, verbose: bool = False) -> list[RenderableType]:
    """The layers that matter most; with `verbose` all."""
    from onnxq.tune.sensitivity_page import TOLD, concentration

    metric = found.metric
    parts: list[RenderableType] = [Text(f"{len(found.rows)} layers on {found.samples} samples: {TOLD[found.method]}")]
    if not math.isnan(found.quantized):
        before = f"{metric.text(found.reference)} in float, " if math.isfinite(found.reference) else ""
        parts.append(Text(f"{metric.name} {before}{metric.text(found.quantized)} all quantized"))
    if not found.rows:
        return [*parts, Text("nothing in this model would be quantized")]
    parts.append(_rows(found, None if verbose else _SHOWN))
    if not verbose and len(found.rows) > _SHOWN:
        parts.append(Text(f"… and {len(found.rows) - _SHOWN} more (--verbose)", style="dim"))
    parts.append(Text(f"{concentration(found)} of {len(found.rows)} layers have 80 % of the effect"))
    return parts


def _rows(found: Sensitivity, most: int | None) -> Table:
    name = f"{found.metric.name} {found.metric.unit}".rstrip()
    table = plain_table("rank", "layer", "is", "effect", "share", "", name, right=("rank", "effect", "share", name))
    largest = max((row.share for row in found.rows), default=0.0)
    for rank, row in enumerate(found.rows[:most], 1):
        bar = "█" * round(_BAR * row.share / largest) if largest > 0 else ""
        score = "" if math.isnan(row.score) else f"{row.score:.4g}"
        cells = (str(rank), row.layer, row.op_type, f"{row.effect:.3g}", f"{100 * row.share:.1f} %", bar, score)
        table.add_row(*map(Text, cells))
    return table
