"""The bundled models, quantized and compared with their float originals."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq.errors import ModelError, OnnxqError, nearest
from onnxq.recipe import Recipe
from onnxq.report.compare import Comparison, Options, compare
from onnxq.report.job import Done, Job, run_job
from onnxq.report.reasons import ReasonGroup

NAMES = ("digits_cnn", "digits_mobilenet", "digits_transformer")

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class DemoRow:
    """What became of one bundled model.

    Attributes:
        name: Its name.
        done: The quantization.
        comparison: The result beside the float model, on the test split.
    """

    name: str
    done: Done
    comparison: Comparison

    @property
    def groups(self) -> tuple[ReasonGroup, ...]:
        """What stayed float, by reason."""
        return self.done.groups

    @property
    def seconds(self) -> float:
        """Time of quantization."""
        return self.done.seconds

    def to_dict(self) -> dict[str, object]:
        """Content for JSON."""
        compared = self.comparison.to_dict()
        kept = ("bytes_reference", "bytes_quantized", "samples", "outputs", "accuracy", "latency")
        return {
            "name": self.name,
            "seconds": round(self.seconds, 3),
            "counts": self.done.result.plan.counts(),
            "float": self.done.result.to_dict()["float"],
            **{key: compared[key] for key in kept},
        }


def find_models(folder: Path | None = None) -> Path:
    """The folder of the bundled models.

    Args:
        folder: Where the user says it is; by default ``models`` here or in a folder above.

    Raises:
        ModelError: If it is not there.
    """
    here = Path.cwd()
    candidates = [folder] if folder is not None else [base / "models" for base in (here, *here.parents)]
    for candidate in candidates:
        if (candidate / f"{NAMES[0]}.onnx").is_file():
            return candidate
    if folder is not None:
        raise ModelError(f"{folder} does not hold the bundled models (there is no {NAMES[0]}.onnx in it)")
    raise ModelError(
        f"the bundled models were not found: there is no models/{NAMES[0]}.onnx in {here} or above. They are part of "
        "the source checkout, not of the installed package: run this in a checkout, or name their folder with --models"
    )


def run_demo(
    folder: Path | None = None,
    *,
    only: Sequence[str] = (),
    keep: Path | None = None,
    threads: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> tuple[DemoRow, ...]:
    """Quantize the bundled models with the default recipe and compare each with its original.

    Args:
        folder: The folder of the bundled models; see `find_models`.
        only: Names of the models; by default all.
        keep: Write the quantized models into this folder; by default they are thrown away.
        threads: Threads of ONNX Runtime; 0 for all cores.
        progress: Told how it is going.

    Raises:
        OnnxqError: If the models are not found or cannot be quantized.
    """
    models = find_models(folder)
    unknown = [name for name in only if name not in NAMES]
    if unknown:
        raise ModelError(f"there is no bundled model {unknown[0]!r}{nearest(unknown[0], NAMES)}")
    with tempfile.TemporaryDirectory(prefix="onnxq-demo-") as scratch:
        target = Path(scratch) if keep is None else _created(keep)
        return tuple(_run(models, name, target, threads, progress) for name in NAMES if not only or name in only)


def _created(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OnnxqError(f"cannot create the folder {folder}: {err.strerror or err}") from err
    return folder


def _run(models: Path, name: str, target: Path, threads: int, progress: Progress) -> DemoRow:
    def tell(what: str, done: int, total: int | None) -> None:
        progress(f"{name}: {what}", done, total)

    data = models / "data"
    job = Job(
        models / f"{name}.onnx", target / f"{name}.int8.onnx", data / "digits_calib.npz", Recipe(), threads=threads
    )
    done = run_job(job, progress=tell)
    options = Options(data / "digits_test.npz", labels=data / "digits_test_labels.npy", threads=threads)
    return DemoRow(name, done, compare(job.model, job.output, options, progress=tell))
