"""``onnxq compare``: how far a quantized model is from the float model."""

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
    ReportFile,
    Samples,
    Threads,
    Verbose,
    with_image_options,
)
from onnxq.cli.paths import check_outputs
from onnxq.cli.terminal import Terminal

_WORST = 20


@with_image_options
def compare(
    reference: Annotated[Path, typer.Argument(metavar="FLOAT", help="The float model.", show_default=False)],
    quantized: Annotated[Path, typer.Argument(metavar="QUANT", help="The quantized model.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            help="Evaluation data: an .npz file, a folder of .npz, .npy, .bin or image files, or for several inputs "
            "INPUT:FOLDER,INPUT:FOLDER.",
            metavar="PATH",
            show_default=False,
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="True classes, for top-1 accuracy: CSV (file,label or index,label or label) or .npy.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also compare layer by layer.")] = False,
    samples: Samples = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.", metavar="N")] = 8,
    latency: Annotated[bool, typer.Option(help="Measure latency.")] = True,
    threads: Threads = 0,
    min_sqnr: Annotated[
        float | None,
        typer.Option(help="Fail if an output's SQNR is below this.", metavar="DB", show_default=False),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Fail if top-1 accuracy drops by more.", metavar="POINTS", show_default=False),
    ] = None,
    report: ReportFile = None,
    config: Config = None,
    images: ImageOptions = AS_CONFIGURED,
    bin_layout: BinLayoutName = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Compare a quantized model with the float model on data: outputs, classes, layers, size and latency.

    Exit code 1 if --min-sqnr or --max-drop is not met. Of a recipe (--config) only the way data are read
    is used.
    """
    from onnxq.cli import tables
    from onnxq.errors import DataError
    from onnxq.report.checked import Demands, check_models
    from onnxq.report.compare import Options

    terminal = Terminal(as_json=as_json, verbose=verbose)
    check_outputs({"--report": report}, {"FLOAT": reference, "QUANT": quantized, "--data": data, "--labels": labels})
    if max_drop is not None and labels is None:
        raise DataError("--max-drop is about top-1 accuracy and needs --labels")
    wanted = RecipeOptions(config=config, images=images, bin_layout=bin_layout, has_data=True).wanted(reference)
    reading = wanted.recipe.calibration
    options = Options(
        data, labels, samples, batch_size, reading.preprocess, layers, latency, threads, reading.bin_layout
    )
    with terminal.messages(), terminal.progress() as progress:
        checked = check_models(
            reference, quantized, options, Demands(min_sqnr, max_drop), report=report, progress=progress
        )
    found, failed = checked.found, checked.failed
    terminal.notes(found.notes, warning=True)
    terminal.show(*tables.comparison(found, layers=None if verbose else _WORST))
    for text in failed:
        terminal.err.print(f"failed: {text}", style="bold red", markup=False, soft_wrap=True)
    terminal.document({**found.to_dict(), "failed": list(failed)})
    return 1 if failed else 0
