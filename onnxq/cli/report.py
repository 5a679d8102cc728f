"""``onnxq report``: what a debug report says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.options import Json, Verbose
from onnxq.cli.terminal import Terminal

_ADVICE = "Advice"


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a debug report (--debug-dir).", show_default=False)
    ],
    advise: Annotated[bool, typer.Option("--advise", help="Name the nodes to leave float, and why.")] = False,
    min_cosine: Annotated[
        float,
        typer.Option(
            min=-1, max=1, help="An output is bad below this cosine similarity.", rich_help_panel=_ADVICE, metavar="X"
        ),
    ] = 0.99,
    own_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="... if at least this share of its error is not in the node's inputs yet.",
            rich_help_panel=_ADVICE,
            metavar="X",
        ),
    ] = 0.5,
    max_range_ratio: Annotated[
        float,
        typer.Option(
            min=1,
            help="Inputs of an Add, a Concat or the like may have ranges that differ by this factor.",
            rich_help_panel=_ADVICE,
            metavar="X",
        ),
    ] = 8.0,
    max_clip: Annotated[
        float,
        typer.Option(min=0, max=1, help="This share of a tensor may be cut off.", rich_help_panel=_ADVICE, metavar="X"),
    ] = 0.01,
    min_rounds: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="A node is named if it is bad in this share of the rounds.",
            rich_help_panel=_ADVICE,
            metavar="X",
        ),
    ] = 0.5,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Show what a debug report says about a quantized model.

    For example: onnxq quantize model.onnx -o model.int8.onnx --data calibration.npz --debug-dir debug,
    then: onnxq report debug --advise
    """
    from onnxq.cli import report_tables
    from onnxq.report.advise import Thresholds
    from onnxq.report.advise import advise as run

    terminal = Terminal(as_json=as_json, verbose=verbose)
    found = run(folder, Thresholds(min_cosine, own_share, max_range_ratio, max_clip, min_rounds))
    terminal.show(*report_tables.outputs(found))
    if advise:
        terminal.show(*report_tables.advice(found))
        terminal.lines(*report_tables.instructions(found))
    else:
        terminal.notes(["--advise names the nodes to leave float"])
    terminal.document(found.to_dict())
    return 0
