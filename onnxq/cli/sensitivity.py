"""``onnxq sensitivity``: what quantizing each layer does to the model's output."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.options import (
    AS_CONFIGURED,
    BinLayoutName,
    Config,
    ImageOptions,
    Json,
    ModelPath,
    RecipeOptions,
    ReportFile,
    Samples,
    Skip,
    TargetName,
    Threads,
    Verbose,
    with_image_options,
)
from onnxq.cli.terminal import Terminal


class Effects(str, Enum):
    """How effects are found."""

    FIRST_ORDER = "first_order"
    ONE = "one"
    ALL_BUT_ONE = "all_but_one"


@with_image_options
def sensitivity(
    model: ModelPath,
    data: Annotated[Path, typer.Option(help="Calibration data, as for quantize.", metavar="PATH", show_default=False)],
    method: Annotated[
        Effects,
        typer.Option(
            help="first_order: estimated for all layers at once; one: one layer quantized at a time; all_but_one: one "
            "layer float at a time."
        ),
    ] = Effects.FIRST_ORDER,
    metric: Annotated[
        str | None,
        typer.Option(
            help="top1, agreement, sqnr, kl, perplexity, or a function of your own: mymetric.py:function.",
            metavar="NAME|FILE:FUNCTION",
            show_default="top1 with --labels, else sqnr",
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            help="Data that effects are measured on, in the same forms.",
            metavar="PATH",
            show_default="the calibration data",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="True classes: CSV (file,label or index,label or label) or .npy.", metavar="FILE", show_default=False
        ),
    ] = None,
    eval_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Measure effects on the first N samples.",
            metavar="N",
            show_default="32 for first_order; else all of --eval, or 64 of --data",
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the rows.", metavar="FILE", show_default=False)] = None,
    report: ReportFile = None,
    samples: Samples = None,
    config: Config = None,
    target: TargetName = None,
    skip: Skip = None,
    images: ImageOptions = AS_CONFIGURED,
    bin_layout: BinLayoutName = None,
    threads: Threads = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Rank the layers of a model by what their quantization does to its output.

    For example: onnxq sensitivity model.onnx --data calib/ --method one --metric kl --csv layers.csv
    """
    from onnxq.cli import sensitivity_tables
    from onnxq.cli.paths import check_outputs
    from onnxq.tune.sensitivity_job import SensitivityJob, run_sensitivity

    terminal = Terminal(as_json=as_json, verbose=verbose)
    read = {"MODEL": model, "--data": data, "--eval": evaluation, "--labels": labels, "--config": config}
    check_outputs({"--csv": csv, "--report": report}, read)
    wanted = RecipeOptions(
        config=config,
        target=target,
        samples=samples,
        skip=tuple(skip or ()),
        has_data=True,
        images=images,
        bin_layout=bin_layout,
    ).wanted(model)
    job = SensitivityJob(
        model=model,
        data=wanted.data(data) or data,
        recipe=wanted.recipe,
        method=method.value,
        metric=metric,
        evaluation=evaluation,
        labels=labels,
        samples=eval_samples,
        csv=csv,
        report=report,
        threads=threads,
    )
    with wanted.explained(), terminal.messages(), terminal.progress() as progress:
        found = run_sensitivity(job, progress=progress)
    terminal.notes((*wanted.notes, *found.notes))
    terminal.show(*sensitivity_tables.sensitivity(found, verbose=verbose))
    terminal.document(found.to_dict())
    return 0
