"""The HTML report on what a debug report says."""

from __future__ import annotations

from pathlib import Path

import yaml

from onnxq._version import __version__
from onnxq.report.advise import Advice, Thresholds, advise
from onnxq.report.files import write_text
from onnxq.report.page import Bar, BarPlot, Block, Card, Cell, Column, Page, Section, Table, Text, render


def write_advice(folder: Path, thresholds: Thresholds, report: Path | None) -> Advice:
    """Read a debug report, and write an HTML report on it if one is wanted.

    Args:
        folder: The folder of the debug report.
        thresholds: From where on something is too bad.
        report: The report to write; None for none.

    Raises:
        OnnxqError: If the folder holds no debug report, or the report cannot be written.
    """
    found = advise(folder, thresholds)
    if report is not None:
        write_text(report, advice_report(found))
    return found


def advice_report(found: Advice) -> str:
    """The report as HTML.

    Args:
        found: What the debug report says.
    """
    worst = min((worst for _, worst in found.outputs.values()), default=None)
    cards = [
        Card("rounds", str(found.rounds)),
        Card("nodes to leave float", str(len(found.condemned)), tone="bad" if found.condemned else "good"),
    ]
    if worst is not None:
        cards.insert(0, Card("worst cosine of an output", f"{worst:.5f}", tone="good" if worst >= 0.99 else "bad"))
    columns = (Column("output", "code"), Column("mean cosine", "number", 6), Column("worst", "number", 6))
    outputs: list[list[Cell]] = [[name, mean, low] for name, (mean, low) in found.outputs.items()]
    sections = [Section("Outputs", (Table(columns, outputs, label="outputs"),)), _advice(found)]
    subtitle = f"debug report in {found.folder}, read by onnxq {__version__}"
    return render(Page(found.folder.name or "debug report", subtitle, cards, sections))


def _advice(found: Advice) -> Section:
    if not found.condemned:
        return Section("Advice", (Text("No node has to be left float."),))
    columns = (
        Column("node", "code"),
        Column("operator", "choice"),
        Column("rule", "choice"),
        Column("figure", "number"),
        Column("limit", "number"),
        Column("rounds", "number", hint="in how many rounds it was beyond the limit"),
        Column("worst round", "number"),
        Column("tensor", "code"),
        Column("more about it"),
    )
    rows: list[list[Cell]] = []
    for node in found.condemned:
        for c in node.charges:
            numbers = (c.figure, c.limit, len(c.bad_rounds), c.worst_round)
            rows.append([node.node, node.op_type, c.rule, *numbers, c.tensor, c.detail])
    blocks: list[Block] = [Table(columns, rows, label="nodes to leave float")]
    low = [Bar(n.node, c.figure, n.op_type) for n in found.condemned for c in n.charges if c.rule == "cosine"]
    if len(low) > 1:
        blocks.insert(0, BarPlot("Cosine of the outputs that are bad", low))
    skip = yaml.safe_dump({"skip": found.skip}, allow_unicode=True, width=10**6)
    return Section("Advice", [*blocks, Text("In a recipe:"), Text(skip, "code")])
