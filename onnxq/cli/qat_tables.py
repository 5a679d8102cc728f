"""What people read of quantization-aware training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnxq.cli.tables import plain_table, roles, size

if TYPE_CHECKING:
    from onnxq.dialects.amct.retrain_job import RetrainJob
    from onnxq.qat.artifacts import Artifacts
    from onnxq.qat.trainer import Progress


def created(made: Artifacts) -> list[RenderableType]:
    """What `onnxq qat create` has written."""
    manifest = made.manifest
    learned = [name for r in manifest.ranges for name in r.parameters]
    learned += [s.parameter for s in manifest.scales if s.parameter]
    grid = Table.grid(padding=(0, 2))
    labels = ", ".join(i.name for i in manifest.loss_inputs if not i.teacher) or "none"
    facts = (
        ("trained", f"{len(manifest.trained) - len(learned)} weights and biases, {len(learned)} scales and ranges"),
        ("loss", f"{manifest.recipe.training.loss.kind} of {manifest.outputs[0]}; labels: {labels}"),
        ("files", ", ".join(f"{path.name} ({size(path.stat().st_size)})" for path in made.files)),
        ("folder", str(made.directory)),
    )
    for name, value in facts:
        grid.add_row(name, escape(value))
    return [roles(made.plan.counts()), grid]


def epochs(rows: Sequence[Progress]) -> Table:
    """A row for each epoch."""
    figures = sorted({name for row in rows for name in row.figures})
    columns = ("epoch", "step", "loss", *(f"eval {name}" for name in figures), "rate", "samples/s", "")
    table = plain_table(*columns, right=columns[:-1])
    for row in rows:
        values = [
            f"{100 * v:.2f} %" if n == "accuracy" else f"{v:.4f}"
            for n, v in ((n, row.figures.get(n, 0.0)) for n in figures)
        ]
        table.add_row(
            str(row.epoch), f"{row.step}/{row.steps}", f"{row.loss:.4f}", *values, f"{row.rate:.2e}",
            f"{row.samples_per_second:.0f}", "best" if row.best else "",
        )  # fmt: skip
    return table


def retrain_layers(job: RetrainJob) -> Table:
    """What a configuration of AMCT's for training or pruning means for each layer."""
    table = plain_table(
        "layer", "operator", "activations", "weights", "pruned", title=f"Layers, {job.batch_num} batches"
    )
    for name, found in job.settings.items():
        op_type = job.layers.quantizable[name].op_type
        prune = str(found.prune) if job.prunes and found.prune is not None else ""
        if job.quantizes and found.retrain_enable:
            table.add_row(escape(name), op_type, str(found.data), str(found.weight), prune)
        else:
            table.add_row(escape(name), op_type, Text("float", style="yellow"), "", prune)
    return table
