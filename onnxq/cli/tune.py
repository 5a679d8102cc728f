"""``onnxq tune``: the fastest or smallest quantized model that keeps enough accuracy."""

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


class Aim(str, Enum):
    """What is to be least."""

    LATENCY = "latency"
    SIZE = "size"


@with_image_options
def tune(
    model: ModelPath,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The tuned model; its recipe goes beside it.", metavar="OUT", show_default=False
        ),
    ],
    data: Annotated[Path, typer.Option(help="Calibration data, as for quantize.", metavar="PATH", show_default=False)],
    evaluation: Annotated[
        Path,
        typer.Option("--eval", help="Evaluation data, in the same forms.", metavar="PATH", show_default=False),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="True classes: CSV (file,label or index,label or label) or .npy.", metavar="FILE", show_default=False
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            help="How much may be lost: 0.5% of the float model's score, or 0.5 points of the metric.",
            metavar="N%|N",
            show_default="1%",
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="The score that must be reached, such as 30 dB of sqnr.", metavar="N", show_default=False),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="top1, agreement, sqnr, kl, perplexity, or a function of your own: mymetric.py:function.",
            metavar="NAME|FILE:FUNCTION",
            show_default="top1 with --labels, else agreement",
        ),
    ] = None,
    objective: Annotated[Aim, typer.Option(help="What is to be least.")] = Aim.LATENCY,
    budget: Annotated[
        str | None, typer.Option(help="Stop after 10m, 90s, 1h30m.", metavar="TIME", show_default="no limit")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="File of what was tried: read if it is there, and written as the search goes on.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    samples: Samples = None,
    eval_samples: Annotated[
        int | None, typer.Option(min=1, help="Evaluate on the first N samples.", metavar="N", show_default="all")
    ] = None,
    config: Config = None,
    target: TargetName = None,
    skip: Skip = None,
    images: ImageOptions = AS_CONFIGURED,
    bin_layout: BinLayoutName = None,
    report: ReportFile = None,
    threads: Threads = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Search the recipe that makes the fastest or smallest model within a loss of accuracy.

    For example: onnxq tune model.onnx -o model.int8.onnx --data calib/ --eval eval/ --labels labels.csv --max-drop 0.5%

    Exit code 1 if the model that was found loses more.
    """
    from onnxq.cli import tune_tables
    from onnxq.cli.paths import check_outputs
    from onnxq.dialects.amct.deployment import write_companions
    from onnxq.tune.job import TuneJob, recipe_path, run_tune

    terminal = Terminal(as_json=as_json, verbose=verbose)
    read = {"MODEL": model, "--data": data, "--eval": evaluation, "--labels": labels, "--config": config}
    written = {"-o": output, "the recipe beside it": recipe_path(output), "--report": report, "--resume": resume}
    check_outputs(written, read)
    wanted = RecipeOptions(
        config=config,
        target=target,
        samples=samples,
        skip=tuple(skip or ()),
        has_data=True,
        images=images,
        bin_layout=bin_layout,
    ).wanted(model)
    job = TuneJob(
        model=model,
        output=output,
        data=wanted.data(data) or data,
        evaluation=evaluation,
        recipe=wanted.recipe,
        labels=labels,
        metric=metric,
        max_drop=max_drop,
        min_score=min_score,
        objective="size" if objective is Aim.SIZE else "latency",
        budget=budget,
        state=resume,
        eval_samples=eval_samples,
        threads=threads,
        report=report,
    )
    with wanted.explained(), terminal.messages(), terminal.progress() as progress:
        found = run_tune(job, progress=progress)
        beside = write_companions(found.result, output) if found.result.twin is not None else ()
    terminal.notes(wanted.notes)
    terminal.notes(found.notes, warning=True)
    terminal.show(*tune_tables.tuned(found, job, verbose=verbose))
    if not found.met:
        terminal.err.print(f"failed: {tune_tables.failure(found)}", style="bold red", markup=False, soft_wrap=True)
    paths = {"output": str(output), "recipe_file": str(recipe_path(output)), "beside": [str(path) for path in beside]}
    terminal.document({**paths, **found.to_dict()})
    return 0 if found.met else 1
