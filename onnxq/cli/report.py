"""``onnxq report``: an HTML report on two models, or what a debug report says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.options import (
    AS_CONFIGURED,
    BinLayoutName,
    Config,
    ImageOptions,
    Json,
    RecipeOptions,
    Samples,
    Threads,
    Verbose,
    with_image_options,
)
from onnxq.cli.paths import check_outputs
from onnxq.cli.terminal import Terminal

_ADVICE = "Advice (on a debug report)"
_MODELS = "Two models"
_WORST = 10


@with_image_options
def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FLOAT QUANT | DIR",
            help="Two models to compare, or the folder of a debug report (--debug-dir).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The HTML report to write.", metavar="FILE", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Evaluation data, as for onnxq compare.", rich_help_panel=_MODELS, metavar="PATH", show_default=False
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="True classes, as for onnxq compare.", rich_help_panel=_MODELS, metavar="FILE", show_default=False
        ),
    ] = None,
    samples: Samples = None,
    latency: Annotated[bool, typer.Option(help="Measure latency.", rich_help_panel=_MODELS)] = True,
    threads: Threads = 0,
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
    config: Config = None,
    images: ImageOptions = AS_CONFIGURED,
    bin_layout: BinLayoutName = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Report on a float model and what became of it, or show what a debug report says.

    For example: onnxq report model.onnx model.int8.onnx --data eval/ -o report.html. Or: onnxq quantize model.onnx
    -o model.int8.onnx --data calibration.npz --debug-dir debug, then: onnxq report debug --advise
    """
    from onnxq.cli import report_tables, tables
    from onnxq.report.advice_page import write_advice
    from onnxq.report.advise import Thresholds
    from onnxq.report.checked import check_models, wanted_pair
    from onnxq.report.compare import BATCH, Options

    terminal = Terminal(as_json=as_json, verbose=verbose)
    check_outputs(
        {"-o": output}, {"--data": data, "--labels": labels, **{f"PATH {i}": p for i, p in enumerate(paths, 1)}}
    )
    pair = wanted_pair(paths, data, output, advise=advise)
    if pair is None:
        thresholds = Thresholds(min_cosine, own_share, max_range_ratio, max_clip, min_rounds)
        found = write_advice(paths[0], thresholds, output)
        terminal.show(*report_tables.outputs(found))
        if advise:
            terminal.show(*report_tables.advice(found))
            terminal.lines(*report_tables.instructions(found))
        else:
            terminal.notes(["--advise names the nodes to leave float"])
        terminal.document(found.to_dict())
        return 0
    wanted = RecipeOptions(config=config, images=images, bin_layout=bin_layout, has_data=True).wanted(pair.reference)
    reading = wanted.recipe.calibration
    options = Options(pair.data, labels, samples, BATCH, reading.preprocess, True, latency, threads, reading.bin_layout)
    with terminal.messages(), terminal.progress() as progress:
        checked = check_models(pair.reference, pair.quantized, options, report=pair.report, progress=progress)
    terminal.notes(checked.found.notes, warning=True)
    terminal.show(*tables.comparison(checked.found, layers=None if verbose else _WORST))
    terminal.document({**checked.found.to_dict(), "report": str(pair.report)})
    return 0
