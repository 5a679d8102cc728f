"""Tables of ``onnxq report``."""

from __future__ import annotations

import yaml
from rich.console import RenderableType
from rich.markup import escape

from onnxq.cli.tables import plain_table
from onnxq.report.advise import Advice, Charge

_MOST_ROUNDS = 5


def outputs(found: Advice) -> list[RenderableType]:
    """How close the outputs of the model are to the float model's."""
    right = ["mean cosine", "worst"]
    table = plain_table("output", *right, right=right)
    for name, (mean, worst) in found.outputs.items():
        table.add_row(escape(name), f"{mean:.6f}", f"{worst:.6f}")
    return [f"{found.rounds} rounds in {escape(str(found.folder))}", table]


def advice(found: Advice) -> list[RenderableType]:
    """The nodes to leave float, and why."""
    if not found.condemned:
        return []
    table = plain_table("node", "operator", "because", "in rounds")
    for node in found.condemned:
        for number, charge in enumerate(node.charges):
            names = ("", "") if number else (escape(node.node), escape(node.op_type))
            table.add_row(*names, escape(_because(charge)), _rounds(charge))
    return [table]


def instructions(found: Advice) -> list[str]:
    """How to leave the nodes float, in lines to copy; or that none has to be."""
    lines = []
    if found.condemned:
        lines += ["In a configuration of MindSpore Lite's converter, section [common_quant_param]:", ""]
        lines += [f"skip_quant_node={found.skip_quant_node}", "", "In a recipe:", ""]
        lines += [yaml.safe_dump({"skip": found.skip}, allow_unicode=True, width=10**6)]
    else:
        lines.append(f"No node has to be left float: {_limits(found)}.")
    if any("," in node.node for node in found.condemned):
        lines.append("skip_quant_node= cannot name nodes that have a comma in their names; they are left out there.")
    if found.inherited:
        lines.append(
            f"{found.inherited} other nodes have outputs below a cosine of {found.thresholds.cosine:g}, with an error "
            "that is mostly in their inputs already: leaving them float does not take it away."
        )
    return lines


def _limits(found: Advice) -> str:
    limits = found.thresholds
    return (
        f"no quantized node adds an error that brings its output below a cosine of {limits.cosine:g}, brings "
        f"inputs together whose ranges differ by more than a factor of {limits.range_ratio:g}, or has more than "
        f"{100 * limits.clip:g} % of a tensor cut off, in {100 * limits.rounds:g} % of the rounds"
    )


def _because(charge: Charge) -> str:
    match charge.rule:
        case "cosine":
            return f"output cosine {charge.figure:.6g} (< {charge.limit:g}), {charge.detail}"
        case "ranges":
            text = f"input ranges differ by a factor of {charge.figure:.3g} (> {charge.limit:g})"
            return f"{text}: {charge.tensor} {charge.detail}"
        case "clip":
            share, limit = 100 * charge.figure, 100 * charge.limit
            return f"{share:.3g} % of {charge.tensor} is cut off (> {limit:g} %)"


def _rounds(charge: Charge) -> str:
    if len(charge.bad_rounds) == charge.rounds:
        text = "all" if charge.rounds > 1 else str(charge.worst_round)
    else:
        shown = ", ".join(map(str, charge.bad_rounds[:_MOST_ROUNDS]))
        text = f"{shown}, …" if len(charge.bad_rounds) > _MOST_ROUNDS else shown
    return f"{text} (worst: {charge.worst_round})" if charge.rounds > 1 else text
