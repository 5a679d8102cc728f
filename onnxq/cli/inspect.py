"""``onnxq inspect``: what a model holds, and what would be quantized."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxq.cli.options import Config, Json, ModelPath, RecipeOptions, Skip, TargetName, Verbose
from onnxq.cli.terminal import Terminal


def inspect(
    model: ModelPath,
    config: Config = None,
    target: TargetName = None,
    skip: Skip = None,
    nodes: Annotated[bool, typer.Option("--nodes", help="List what would become of each node.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Show what a model holds, what would be quantized, and why not the rest.

    Nothing is run and nothing is written.
    """
    from onnxq.cli import qat_tables, tables
    from onnxq.pipeline import plan_model
    from onnxq.report.facts import model_facts
    from onnxq.report.reasons import group_reasons

    terminal = Terminal(as_json=as_json, verbose=verbose)
    options = RecipeOptions(config=config, target=target, skip=tuple(skip or ()))
    found = model_facts(model)
    with terminal.messages():
        wanted = options.wanted(model)
        recipe = wanted.recipe
        with wanted.explained():
            result = plan_model(model, recipe=recipe)
    groups = group_reasons(result.plan.left_float())
    terminal.show(*tables.facts(found), tables.roles(result.plan.counts(), recipe.scheme.kind))
    if wanted.amct is not None:
        terminal.show(tables.amct_layers(wanted.amct))
    if wanted.retrain is not None:
        terminal.show(qat_tables.retrain_layers(wanted.retrain))
    if nodes:
        terminal.show(tables.nodes(result.plan.decisions))
    else:
        terminal.show(*tables.reasons(groups, verbose=verbose))
    terminal.notes((*found.notes, *wanted.notes, *result.notes))
    listed = [{"node": d.node, "op_type": d.op_type, "role": d.role, "reason": d.reason} for d in result.plan.decisions]
    plan = {
        "target": recipe.target,
        "counts": result.plan.counts(),
        "nodes": listed,
        "notes": list(result.notes),
    }
    job = wanted.amct or wanted.retrain
    amct = {} if job is None else {"amct": {**job.to_dict(), "notes": list(wanted.notes)}}
    terminal.document({"model": found.to_dict(), "plan": plan, **amct})
    return 0
