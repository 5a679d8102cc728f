"""``onnxq demo``: the bundled models, quantized and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.options import Json, Threads, Verbose
from onnxq.cli.terminal import Terminal


def demo(
    models: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the bundled models.", metavar="DIR", show_default="models/ here or in a folder above"
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this model. May be repeated.", metavar="NAME", show_default="all")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the quantized models in this folder.", metavar="DIR", show_default=False)
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Quantize the bundled models and show accuracy, size and latency.

    The models are part of the source checkout, not of the installed package.
    """
    from onnxq.cli import tables
    from onnxq.report.demo import run_demo

    terminal = Terminal(as_json=as_json, verbose=verbose)
    with terminal.messages(), terminal.progress() as progress:
        rows = run_demo(models, only=tuple(only or ()), keep=keep, threads=threads, progress=progress)
    terminal.notes((f"{row.name}: {note}" for row in rows for note in row.comparison.notes), warning=True)
    terminal.show(*tables.demo(rows))
    terminal.document({"models": [row.to_dict() for row in rows]})
    return 0
