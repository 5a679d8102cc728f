"""``onnxq benchmark``: how fast models are, and what their time goes to."""

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
    Threads,
    Verbose,
    with_image_options,
)
from onnxq.cli.terminal import Terminal


@with_image_options
def benchmark(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Models; all are compared with the first one.", show_default=False),
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="What the models are fed, as for compare.", metavar="PATH", show_default="random numbers"),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Shape of an input with free dimensions. May be repeated.",
            metavar="INPUT:N,N,...",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples at a time.", metavar="N", show_default="1, or the model's")
    ] = None,
    threads: Threads = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each model.", metavar="N")] = 30,
    profile: Annotated[bool, typer.Option("--profile", help="Show what the time goes to.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Also write an HTML report.", metavar="FILE", show_default=False)
    ] = None,
    config: Config = None,
    images: ImageOptions = AS_CONFIGURED,
    bin_layout: BinLayoutName = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Measure models in turn (A B A B ...) on the same feeds, and show which kernels they use.

    Each turn gives one time; medians, quartiles and the ratios of turns in the same round are shown.

    Of a recipe (--config) only the way data are read is used.
    """
    from onnxq.cli import benchmark_tables
    from onnxq.cli.paths import check_outputs
    from onnxq.report.benchmark_feeds import parse_shape
    from onnxq.report.benchmark_job import BenchmarkOptions, run_benchmark
    from onnxq.report.benchmark_page import benchmark_page
    from onnxq.report.files import write_text
    from onnxq.report.page import render

    terminal = Terminal(as_json=as_json, verbose=verbose)
    read = {f"the model {path}": path for path in models}
    check_outputs({"--report": report}, {**read, "--data": data, "--config": config})
    wanted = RecipeOptions(config=config, images=images, bin_layout=bin_layout, has_data=True).wanted(models[0])
    reading = wanted.recipe.calibration
    options = BenchmarkOptions(
        data,
        dict(map(parse_shape, shape or ())),
        batch,
        threads,
        rounds,
        profile,
        reading.preprocess,
        reading.bin_layout,
    )
    with terminal.messages(), terminal.progress() as progress:
        found = run_benchmark(models, options, progress=progress)
    terminal.notes(found.notes)
    terminal.show(*benchmark_tables.benchmark(found, verbose=verbose))
    if report is not None:
        write_text(report, render(benchmark_page(found)))
    terminal.document(found.to_dict())
    return 0
