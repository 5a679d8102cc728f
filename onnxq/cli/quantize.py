"""``onnxq quantize``: a float model in, a quantized model out."""

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
    Method,
    ModelPath,
    RecipeOptions,
    ReportFile,
    Samples,
    Skip,
    Target,
    TargetName,
    Threads,
    Verbose,
    with_image_options,
)
from onnxq.cli.paths import check_outputs
from onnxq.cli.terminal import Terminal
from onnxq.errors import OnnxqError


@with_image_options
def quantize(
    model: ModelPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The quantized model.", metavar="OUT", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Calibration data: an .npz file, a folder of .npz, .npy, .bin or image files, or for several inputs "
            "INPUT:FOLDER,INPUT:FOLDER.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    samples: Samples = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Samples at a time; the result is the same.", metavar="N", show_default="automatic"),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(
            min=1, help="Calibrate with N random samples, only to try things out.", metavar="N", show_default=False
        ),
    ] = None,
    config: Config = None,
    target: TargetName = None,
    method: Annotated[
        Method | None,
        typer.Option(
            help="How ranges of activations are chosen.", rich_help_panel="Recipe", show_default="the best known"
        ),
    ] = None,
    skip: Skip = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of everything random.", rich_help_panel="Recipe", metavar="N", show_default="0"),
    ] = None,
    images: ImageOptions = AS_CONFIGURED,
    bin_layout: BinLayoutName = None,
    report: ReportFile = None,
    debug_dir: Annotated[
        Path | None,
        typer.Option(
            help="Also describe every tensor of both models in CSV files in this folder, sample by sample.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    external_data: Annotated[
        bool | None,
        typer.Option(help="Weights in a file of their own, OUT.data.", show_default="as the model has them"),
    ] = None,
    threads: Threads = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Calibrate on N processes; the result is the same.", metavar="N", show_default=False),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Calibrate on the workers of this scheduler of dask's, such as tcp://host:8786; same result.",
            metavar="ADDRESS",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Quantize a model.

    For example: onnxq quantize model.onnx -o model.int8.onnx --data calibration.npz
    """
    from onnxq.cli import tables
    from onnxq.dialects.amct.deployment import DeployedFiles, write_companions
    from onnxq.report.job import Job, run_job

    terminal = Terminal(as_json=as_json, verbose=verbose)
    if workers is not None and scheduler is not None:
        raise OnnxqError("--workers starts workers and --scheduler names those there are; leave one of them out")
    check_outputs({"-o": output, "--report": report}, {"MODEL": model, "--data": data, "--config": config})
    wanted = RecipeOptions(
        config=config,
        target=target,
        method=method,
        batch_size=batch_size,
        samples=samples,
        skip=tuple(skip or ()),
        seed=seed,
        random=random,
        has_data=data is not None,
        images=images,
        bin_layout=bin_layout,
    ).wanted(model)
    recipe = wanted.recipe
    job = Job(
        model=model,
        output=output,
        data=wanted.data(data),
        recipe=recipe,
        report=report,
        external_data=external_data,
        threads=threads,
        debug=debug_dir or wanted.debug_dir,
        workers=scheduler or workers,
    )
    files = DeployedFiles.beside(output)
    if recipe.target == Target.ASCEND.value:
        also = {f"{path} beside it": path for path in (files.fake_quant, files.fusion, files.record)}
        check_outputs({"-o": output, **also}, {"MODEL": model, "--data": data, "--config": config})
    with wanted.explained(), terminal.messages(), terminal.progress() as progress:
        done = run_job(job, progress=progress)
        beside = (files.fake_quant, *write_companions(done.result, output)) if done.result.twin is not None else ()
    terminal.notes(wanted.notes)
    terminal.notes(done.result.notes, warning=recipe.calibration.random or not done.result.changed)
    terminal.show(*tables.job(done, beside, verbose=verbose))
    terminal.document({**done.to_dict(), "beside": [str(path) for path in beside]})
    return 0
