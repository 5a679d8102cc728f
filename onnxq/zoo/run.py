"""A run of a zoo: every entry measured, with what it was measured by."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxq import runtime
from onnxq._version import __version__
from onnxq.errors import ManifestError, OnnxqError
from onnxq.zoo.manifest import Manifest
from onnxq.zoo.matrix import Entry, entries_of
from onnxq.zoo.measuring import Outcome
from onnxq.zoo.workers import Told, measure_all

VERSION = 1


@dataclass(frozen=True)
class Run:
    """What a run of a zoo found.

    Attributes:
        manifest: The manifest's file.
        outcomes: One per entry, in the manifest's order.
        made_with: Versions of what decides numbers.
        jobs: How many processes measured at once.
        seconds: Time it took.
    """

    manifest: Path
    outcomes: tuple[Outcome, ...]
    made_with: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 1
    seconds: float = 0.0

    def counted(self, status: str) -> int:
        """How many entries have a status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    def to_dict(self) -> dict[str, object]:
        """Content for JSON; what two runs differ in is in ``timings``."""
        return {
            "version": VERSION,
            "manifest": self.manifest.name,
            "made_with": dict(self.made_with),
            "entries": [outcome.to_dict() for outcome in self.outcomes],
            "timings": {"jobs": self.jobs, "seconds": round(self.seconds, 3)},
        }

    @staticmethod
    def from_dict(content: Mapping[str, Any], manifest: Path) -> Run:
        """Read back what `to_dict` wrote.

        Raises:
            KeyError: If something is missing.
            ValueError: If something is no number.
        """
        timings = content["timings"]
        outcomes = tuple(Outcome.from_dict(entry) for entry in content["entries"])
        return Run(manifest, outcomes, dict(content["made_with"]), int(timings["jobs"]), float(timings["seconds"]))


def run_zoo(
    manifest: Manifest,
    *,
    jobs: int = 1,
    only: Sequence[str] = (),
    out: Path | None = None,
    threads: int = 0,
    told: Told = lambda outcome: None,
) -> Run:
    """Quantize every model with every recipe, and measure what comes out.

    With `jobs` above 0 the processes that measure import the caller's main module: a script must have its own call of
    this behind ``if __name__ == "__main__":``.

    Args:
        manifest: The manifest.
        jobs: How many processes measure at once; 0 measures in this one, where a crash ends everything.
        only: Globs over ``model/recipe``, or names of models or recipes; none for all entries.
        out: Folder the quantized models are kept in, as ``model/recipe.onnx``; None to throw them away.
        threads: Threads in all; 0 for all cores. They do not change what is measured, but times.
        told: Is told of every outcome.

    Raises:
        ManifestError: If files are missing, or if there is nothing to run.
    """
    entries = entries_of(manifest, only)
    return run_entries(manifest.source, entries, jobs=jobs, out=out, threads=threads, told=told)


def run_entries(
    source: Path, entries: Sequence[Entry], *, jobs: int, out: Path | None, threads: int, told: Told
) -> Run:
    """As `run_zoo`, for entries that are known already.

    Args:
        source: The manifest's file.
        entries: The entries.
        jobs: See `run_zoo`, as all that follows.
        out: Folder the quantized models are kept in.
        threads: Threads in all.
        told: Is told of every outcome.

    Raises:
        OnnxqError: If the folder cannot be made.
    """
    start = time.perf_counter()
    with _folder(out) as folder:
        outcomes = measure_all(entries, jobs=jobs, folder=folder, threads=threads, told=told)
    made_with = {"onnxq": __version__, "onnxruntime": runtime.version()}
    return Run(source, outcomes, made_with, jobs, time.perf_counter() - start)


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is None:
        with tempfile.TemporaryDirectory(prefix="onnxq-zoo-") as name:
            yield Path(name)
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OnnxqError(f"cannot create the folder {out}: {err.strerror or err}") from err
    yield out


def read_run(path: Path, manifest: Path) -> Run:
    """Read the results of an earlier run, as ``--json`` or ``--out`` wrote them.

    Args:
        path: The file.
        manifest: The manifest's file.

    Raises:
        ManifestError: If it cannot be read, or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Run.from_dict(content, manifest)
    except OSError as err:
        raise ManifestError(f"{path}: cannot be read: {err.strerror or err}") from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ManifestError(f"{path}: is not the result of 'onnxq zoo run --json': {err!r}") from err
