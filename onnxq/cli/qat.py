"""``onnxq qat``: quantization-aware training."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxq.cli.options import Config, Json, ModelPath, RecipeOptions, Samples, Skip, TargetName, Threads
from onnxq.cli.paths import check_outputs
from onnxq.cli.terminal import Terminal

if TYPE_CHECKING:
    from onnxq.qat.trainer import TrainOptions


class ScheduleShape(str, Enum):
    """How the learning rate changes."""

    CONSTANT = "constant"
    COSINE = "cosine"
    LINEAR = "linear"
    STEP = "step"


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


Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The artifacts.", show_default=False)]


@app.command()
def create(
    model: ModelPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the artifacts.", metavar="DIR", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Calibration data: an .npz file, or a folder of .npz, .npy, .bin or image files.",
            metavar="PATH", show_default=False,
        ),
    ] = None,
    samples: Samples = None,
    random: Annotated[
        int | None,
        typer.Option(min=1, help="Calibrate with N random samples.", metavar="N", show_default=False),
    ] = None,
    config: Config = None,
    target: TargetName = None,
    skip: Skip = None,
    quantize: Annotated[bool, typer.Option(help="With quantizers; without, the float model is trained.")] = True,
    threads: Threads = 0,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Make training artifacts of a float model.

    Any client of onnxruntime-training can train them, "onnxq qat train" for one; "onnxq qat save" makes the
    quantized model. For example: onnxq qat create model.onnx -o artifacts --data calibration.npz
    """
    from onnxq.cli import qat_tables
    from onnxq.qat.artifacts import create as make

    terminal = Terminal(as_json=as_json)
    options = RecipeOptions(
        config=config, target=target, samples=samples, skip=tuple(skip or ()), random=random, has_data=data is not None
    )
    wanted = options.wanted(model)
    with terminal.messages(), terminal.progress() as steps:
        made = make(model, data, output, recipe=wanted.recipe, quantize=quantize, threads=threads, progress=steps)
    terminal.notes((*wanted.notes, *made.notes), warning=random is not None)
    terminal.show(*qat_tables.created(made))
    terminal.document(
        {
            "directory": str(made.directory),
            "files": [str(path) for path in made.files],
            "trained": list(made.manifest.trained),
            "counts": made.plan.counts(),
            "notes": list(made.notes),
        }
    )
    return 0


def _train(
    directory: Path, data: Path, evaluation: Path | None, labels: Path | None, eval_labels: Path | None,
    options: TrainOptions, terminal: Terminal, *, resume: bool,
) -> int:  # fmt: skip
    from dataclasses import asdict

    from onnxq.cli import qat_tables
    from onnxq.qat.data import training_data
    from onnxq.qat.manifest import Manifest
    from onnxq.qat.trainer import QatTrainer

    manifest = Manifest.read(directory)
    train = training_data(data, manifest, labels=labels)
    held_out = None if evaluation is None else training_data(evaluation, manifest, labels=eval_labels)
    trainer = QatTrainer(directory, options)
    with terminal.progress() as steps:
        rows = trainer.fit(
            train, evaluation=held_out, resume=resume, tick=lambda done, total: steps("training", done, total)
        )
    terminal.show(qat_tables.epochs(rows))
    terminal.notes([f"make the quantized model with: onnxq qat save {directory} -o MODEL.onnx"])
    terminal.document({"directory": str(directory), "epochs": [asdict(row) for row in rows]})
    return 0


Data = Annotated[
    Path,
    typer.Option(
        "--data", help="Training data: an .npz file of inputs and labels.", metavar="FILE", show_default=False
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", help="Labels of --data, where it has none: a .npy file.", metavar="FILE", show_default=False
    ),
]
Evaluation = Annotated[
    Path | None,
    typer.Option(
        "--eval", help="Data for a figure after each epoch; the best model is kept.", metavar="FILE", show_default=False
    ),
]
EvalLabels = Annotated[
    Path | None,
    typer.Option(
        "--eval-labels", help="Labels of --eval, where it has none: a .npy file.", metavar="FILE", show_default=False
    ),
]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the data.", metavar="N")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples per step.", metavar="N")]
LearningRate = Annotated[float, typer.Option("--lr", help="Highest learning rate.", metavar="X")]
ScheduleName = Annotated[ScheduleShape, typer.Option(help="How the learning rate changes.")]
Warmup = Annotated[int, typer.Option(min=0, help="Steps in which the learning rate rises.", metavar="N")]
Accumulate = Annotated[int, typer.Option(min=1, help="Batches whose gradients make one step.", metavar="N")]
TrainSeed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the order of samples.", metavar="N")]
CheckpointEvery = Annotated[
    int, typer.Option(min=0, help="Steps between checkpoints; 0: after each epoch.", metavar="N")
]
Patience = Annotated[
    int | None,
    typer.Option(min=1, help="Stop after N epochs without a better figure.", metavar="N", show_default="never"),
]
Processes = Annotated[int, typer.Option(min=1, help="Data-parallel processes.", metavar="N")]
TrainThreads = Annotated[
    int,
    typer.Option("--threads", min=1, help="Threads of each process; small networks train fastest with 1.", metavar="N"),
]


@app.command()
def train(
    directory: Directory,
    data: Data,
    labels: Labels = None,
    evaluation: Evaluation = None,
    eval_labels: EvalLabels = None,
    epochs: Epochs = 1,
    batch_size: BatchSize = 32,
    learning_rate: LearningRate = 1e-3,
    schedule: ScheduleName = ScheduleShape.COSINE,
    warmup: Warmup = 0,
    accumulate: Accumulate = 1,
    seed: TrainSeed = 0,
    checkpoint_every: CheckpointEvery = 0,
    patience: Patience = None,
    processes: Processes = 1,
    threads: TrainThreads = 1,
    as_json: Json = False,
) -> int:
    """Train artifacts.

    Checkpoints are written into DIR; an interrupted training goes on with "onnxq qat restore" and the same options.
    For example: onnxq qat train artifacts --data train.npz --eval eval.npz --epochs 5
    """
    from onnxq.qat.trainer import TrainOptions

    options = TrainOptions(
        epochs, batch_size, learning_rate, schedule.value, warmup, accumulate, seed, checkpoint_every, patience,
        processes=processes, threads=threads,
    )  # fmt: skip
    terminal = Terminal(as_json=as_json)
    return _train(directory, data, evaluation, labels, eval_labels, options, terminal, resume=False)


@app.command()
def restore(
    directory: Directory,
    data: Data,
    labels: Labels = None,
    evaluation: Evaluation = None,
    eval_labels: EvalLabels = None,
    as_json: Json = False,
) -> int:
    """Go on with a training that was interrupted, from its last checkpoint, with the options it began with.

    The result is that of a training that was not interrupted, to the last bit. The data must be the same.
    """
    from onnxq.qat.trainer import saved_options

    terminal = Terminal(as_json=as_json)
    options = saved_options(directory)
    return _train(directory, data, evaluation, labels, eval_labels, options, terminal, resume=True)


@app.command()
def save(
    directory: Directory,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The quantized model.", metavar="OUT", show_default=False)
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Which checkpoint.", metavar="FILE", show_default="the best one, else the last one"),
    ] = None,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Make the quantized model of trained artifacts.

    For Ascend the runnable twin, quant.json and the record are written beside it.
    """
    from onnxq.cli import tables
    from onnxq.dialects.amct.deployment import write_companions
    from onnxq.qat.save import quantized, trained_values

    terminal = Terminal(as_json=as_json)
    check_outputs({"-o": output}, {"--checkpoint": checkpoint})
    result = quantized(directory, trained_values(directory, checkpoint))
    written = result.save(output)
    beside = write_companions(result, output) if result.twin is not None else ()
    terminal.notes(result.notes)
    terminal.show(tables.roles(result.plan.counts()))
    terminal.notes([f"written: {', '.join(map(str, (written, *beside)))}"])
    terminal.document({**result.to_dict(), "output": str(written), "beside": [str(path) for path in beside]})
    return 0
