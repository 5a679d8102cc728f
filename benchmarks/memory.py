"""Peak memory of quantizing with 10, 100 and 1,000 samples, and whether batches change the result.

Samples are made one at a time while they are read, so the data themselves take no memory that grows.
Each figure is the peak resident memory of a fresh process that loads, quantizes and saves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peer
import tools
from datasets import Feed, cases, joined

import onnxq
from onnxq.modelio import file_sha256

MINMAX: dict[str, Any] = {"activations": {"method": "minmax"}, "refine": []}
DEFAULT: dict[str, Any] = {}
BASE = 20
"""Samples that are kept; all others are mixtures of two of them."""


@dataclass(frozen=True)
class Mixtures:
    """Any number of samples of one input, each made when it is read.

    Attributes:
        name: The input.
        base: shape (N, ...), float32.
        count: How many samples to give.
    """

    name: str
    base: np.ndarray
    count: int

    def __iter__(self) -> Iterator[Feed]:
        """Give one sample after the other."""
        rng = np.random.default_rng(0)
        for _ in range(self.count):
            first, second = rng.integers(0, len(self.base), 2)
            part = np.float32(rng.uniform(0.5, 1.0))
            yield {self.name: part * self.base[first : first + 1] + (1 - part) * self.base[second : second + 1]}


def _mixtures(base: str, count: int) -> Mixtures:
    with np.load(base, allow_pickle=False) as file:
        name = file.files[0]
        return Mixtures(name, file[name], count)


def ours(model: str, base: str, samples: int, recipe: dict[str, Any], out: str, threads: int) -> tools.Row:
    """Quantize with onnxq."""
    result = onnxq.quantize(model, _mixtures(base, samples), recipe=recipe, threads=threads)
    result.save(out)
    return {"samples": result.samples}


def theirs(model: str, base: str, samples: int, out: str) -> tools.Row:
    """Quantize with onnxruntime.quantization, min-max."""
    peer.quantize(Path(model), Path(out), iter(_mixtures(base, samples)))
    return {"samples": samples}


def growth(options: tools.Options, folder: Path) -> tools.Table:
    """Peak memory by the number of samples."""
    name, model, base = _subject(options, folder)
    counts = (4, 8, 40) if options.quick else (10, 100, 1000)
    common = {"model": model, "base": base, "out": str(folder / "q.onnx")}
    targets = {
        "onnxq min-max": partial(ours, recipe=MINMAX, threads=options.threads),
        "onnxq default recipe": partial(ours, recipe=DEFAULT, threads=options.threads),
        "onnxruntime min-max": theirs,
    }
    rows: list[tools.Row] = []
    for what, target in targets.items():
        function, extra = (target.func, target.keywords) if isinstance(target, partial) else (target, {})
        calls = {str(n): partial(tools.in_child, function, samples=n, **common, **extra) for n in counts}
        found = {n: result[0] for n, result in tools.alternate(calls, 1).items()}
        peaks = [found[str(n)].get("peak_mb") for n in counts]
        row: tools.Row = {"what": what} | {f"{n} samples, MB": p for n, p in zip(counts, peaks, strict=True)}
        if isinstance(peaks[0], float) and isinstance(peaks[-1], float):
            row["growth, MB"] = peaks[-1] - peaks[0]
        problems = [str(f["failed"]) for f in found.values() if "failed" in f]
        rows.append(row | {"note": f"failed: {problems[0]}" if problems else None})
    return tools.Table(f"Peak memory, {name}", rows, ["bar for the growth: 150 MB"])


def _subject(options: tools.Options, folder: Path) -> tuple[str, str, str]:
    """MobileNetV2 where there is one; its name, its file, and a file of some samples."""
    found = {case.name: case for case in cases(tools.Options(zoo=options.zoo), classifiers_only=True)}
    case = next((c for name, c in found.items() if name.startswith("mobilenetv2")), found["digits_mobilenet"])
    base = folder / "base.npz"
    np.savez(base, **joined(case.calib()[:BASE], BASE)[0])
    return case.name, str(case.model), str(base)


def batches(options: tools.Options, folder: Path) -> tools.Table:
    """Whether samples handed over in other batches, or other numbers of threads, give another file."""
    rows: list[tools.Row] = []
    for case in cases(options, classifiers_only=True):
        feeds = case.calib()[:20] if options.quick else case.calib()
        digests: tools.Row = {}
        for batch, threads in ((1, options.threads), (8, options.threads), (32, options.threads), (8, 1)):
            out = folder / f"{case.name}.onnx"
            onnxq.quantize(case.model, joined(feeds, batch), threads=threads).save(out)
            digests[f"batches of {batch}" + ("" if threads > 1 else ", 1 thread")] = file_sha256(out)[:12]
        rows.append({"model": case.name, **digests, "equal": "yes" if len(set(digests.values())) == 1 else "NO"})
    return tools.Table("sha256 of the models, default recipe", rows)


def run(options: tools.Options) -> list[tools.Table]:
    """Both tables."""
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        return [growth(options, Path(name)), batches(options, Path(name))]


if __name__ == "__main__":
    tools.main([run], __doc__)
