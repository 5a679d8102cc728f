"""Calibration by workers over calibration in one process: the time with 1 and with 2 workers; are the bytes the same?

Every worker has one thread, and so has the calibration without workers. Workers are up before the clock starts; how
long that takes is told as well. Data are images that workers decode themselves, or arrays that are sent to them.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import tools
from datasets import IMAGENET

import onnxq
from onnxq.calib.distributed import Workers

SAMPLES = 200
FEW = 32
COUNTS = (0, 1, 2)
RECIPE = {
    "activations": {"method": "minmax"},
    "refine": [],
    "equalize": {"depthwise": False},
    "calibration": {"preprocess": IMAGENET.model_dump()},
}
"""Nothing but the run over all samples, which is what is distributed."""


def pictures(folder: Path, count: int) -> Path:
    """A folder of smooth pictures that take as long to decode as photographs."""
    folder.mkdir()
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 255, (24, 32, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number}.jpg"), cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC))
    return folder


def once(model: Path, data: object, workers: Workers | None) -> tuple[float, str]:
    """Seconds of one quantization, and the digest of what it gave."""
    start = time.perf_counter()
    result = onnxq.quantize(model, data, recipe=RECIPE, threads=1, workers=workers)
    seconds = time.perf_counter() - start
    return seconds, hashlib.sha256(result.graph.to_proto().SerializeToString(deterministic=True)).hexdigest()


def measure(name: str, model: Path, data: object, options: tools.Options) -> list[tools.Row]:
    """One row for each number of workers; they take turns."""
    started: dict[int, float] = {}
    opened: dict[int, Workers | None] = {}
    try:
        for count in COUNTS:
            start = time.perf_counter()
            opened[count] = Workers.open(count, threads=1) if count else None
            started[count] = time.perf_counter() - start
        times: dict[int, list[float]] = {count: [] for count in COUNTS}
        digests: dict[int, str] = {}
        for _ in range(1 if options.quick else options.rounds):
            for count, workers in opened.items():
                if not times[count]:
                    once(model, data, workers)  # kernels are compiled and modules loaded the first time
                seconds, digests[count] = once(model, data, workers)
                times[count].append(seconds)
    finally:
        for workers in opened.values():
            with workers or nullcontext():
                pass
    found = {count: statistics.median(values) for count, values in times.items()}
    return [
        {
            "model": model.stem,
            "data": name,
            "workers": count or "none",
            "seconds": found[count],
            "over 1 worker": found[count] / found[1],
            "over none": found[count] / found[0],
            "start, s": started[count],
            "same bytes": str(digests[count] == digests[0]),
        }
        for count in COUNTS
    ]


def run(options: tools.Options) -> list[tools.Table]:
    """The table: MobileNetV2 of the zoo, or a bundled model."""
    if options.zoo is None:
        return []
    model = options.zoo / "models" / "mobilenetv2-7_refit_head.onnx"
    count = FEW if options.quick else SAMPLES
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        folder = pictures(Path(name) / "images", count)
        rows = measure(f"{count} images", model, folder, options)
        arrays = {"input": np.random.default_rng(0).normal(size=(count, 3, 224, 224)).astype(np.float32)}
        rows += measure(f"{count} arrays", model, arrays, options)
    notes = ["one thread each; medians; workers are up before the clock starts"]
    return [tools.Table("Distributed calibration", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
