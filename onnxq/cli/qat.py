"""``onnxq qat``: quantization-aware training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.options import Json
from onnxq.cli.terminal import Terminal

app = typer.Typer(help="Train a model that is quantized.")


@app.callback(invoke_without_command=True)
def _start(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command()
def setup(
    wheel: Annotated[
        Path | None,
        typer.Option(
            help="The wheel of the training runtime, or a folder with it.", metavar="FILE",
            show_default="from the package registry",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder to install into.", metavar="DIR", show_default="$ONNXQ_CACHE or the user's cache"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Install it anew, even if it is there and whole.")] = False,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Install the training runtime into a folder of its own, and train one step with it.

    The environment is not changed. To be done once for each version of Python.
    """
    from onnxq.cli import tables
    from onnxq.qat.overlay import CACHE, cache_dir, set_up

    terminal = Terminal(as_json=as_json)
    with terminal.progress() as steps:
        done = set_up(cache, wheel_file=wheel, force=force, progress=steps)
    if done.repaired:
        terminal.warn(f"what was installed before was damaged and is replaced: {done.repaired}")
    terminal.show(tables.training_runtime(done))
    if done.overlay.path.parent != cache_dir():
        terminal.notes([f"set {CACHE}={done.overlay.path.parent} to let other commands find it"])
    terminal.document(done.to_dict())
    return 0
