"""Dynamic quantization: size, likeness of the outputs and latency, for onnxq and for onnxruntime's quantize_dynamic.

Transformers and LSTMs. The models take turns, a few runs at a time, in one process; ratios are medians of the ratios
of one turn. onnxruntime's models are pre-processed first, as its documentation recommends. One model is made up: an
encoder of TinyBERT's size with random weights.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import encoders
import numpy as np
import peer
import tools
from accuracy import open_session
from datasets import Feed
from onnxruntime.quantization import QuantType, quantize_dynamic

import onnxq

SECONDS = 6.0
"""About how long the models are measured in one round."""
WARM_UP = 10
TURN = 0.05
"""About how many seconds one model runs in one turn."""
REST = 0.03
"""Seconds in front of each turn, for the threads of the model before to stop spinning."""
TOKENS = 128
SCHEMES: dict[str, dict[str, object]] = {
    "onnxq": {"kind": "dynamic"},
    "onnxq, exact ranges": {"kind": "dynamic", "ranges": "exact", "variables": True},
}


@dataclass(frozen=True)
class Case:
    """A model and what it is fed.

    Attributes:
        name: What tables call it.
        make: Gives its file; may write it into the folder it is given.
        feeds: Makes the inputs.
    """

    name: str
    make: Callable[[Path], Path]
    feeds: Callable[[], list[Feed]]


def cases(options: tools.Options) -> list[Case]:
    """The models that are wanted."""
    found = [
        Case("encoder of TinyBERT's size, synthetic", partial(_encoder, quick=options.quick), _ids),
        Case("digits_transformer", lambda _: tools.ROOT / "models" / "digits_transformer.onnx", _digits),
    ]
    if options.zoo is not None:
        models = options.zoo / "models"
        tokens = options.zoo / "stories260K_sample_tokens.npy"
        found += [
            Case("stories260K_llama", lambda _: models / "stories260K_llama.onnx", partial(_stories, tokens)),
            Case("dtln_model_1", lambda _: models / "dtln_model_1.onnx", _speech),
            Case("silero_vad_16k_op15", lambda _: models / "silero_vad_16k_op15.onnx", _voice),
        ]
    return [case for case in found if options.wants(case.name)]


def _encoder(folder: Path, *, quick: bool) -> Path:
    path = folder / "encoder.onnx"
    encoders.write(path, encoders.Size(layers=1) if quick else encoders.TINYBERT)
    return path


def _ids() -> list[Feed]:
    rng = np.random.default_rng(1)
    return [{"ids": rng.integers(0, encoders.TINYBERT.words, (1, TOKENS))} for _ in range(4)]


def _digits() -> list[Feed]:
    with np.load(tools.ROOT / "models" / "data" / "digits_test.npz", allow_pickle=False) as file:
        return [{"image": image[None]} for image in file["image"][:50].astype(np.float32)]


def _stories(tokens: Path) -> list[Feed]:
    rows = np.load(tokens, allow_pickle=False)[:8, :TOKENS].astype(np.int64)
    return [{"tokens": row[None]} for row in rows]


def _speech() -> list[Feed]:
    """Magnitudes and states as noise has them."""
    rng = np.random.default_rng(1)
    size = (1, 1, 257)
    return [
        {"input_2": np.abs(rng.normal(size=size)).astype(np.float32),
         "input_3": (0.1 * rng.normal(size=(1, 2, 128, 2))).astype(np.float32)}
        for _ in range(20)
    ]  # fmt: skip


def _voice() -> list[Feed]:
    rng = np.random.default_rng(1)
    return [
        {"input": (0.1 * rng.normal(size=(1, 576))).astype(np.float32),
         "state": (0.1 * rng.normal(size=(2, 1, 128))).astype(np.float32),
         "sr": np.array(16000, np.int64)}
        for _ in range(20)
    ]  # fmt: skip


def alternated(models: dict[str, str], feed: str, threads: int, seconds: float) -> tools.Row:
    """Median milliseconds, and medians of their ratios to the first and the last model, of models that take turns."""
    sessions = {name: open_session(Path(path), threads) for name, path in models.items()}
    with np.load(feed, allow_pickle=False) as file:
        inputs = dict(file)
    runs = {}
    for name, session in sessions.items():
        start = time.perf_counter()
        for _ in range(WARM_UP):
            session.run(None, inputs)
        runs[name] = max(1, int(TURN * WARM_UP / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in sessions}
    end = time.perf_counter() + seconds
    order = list(sessions)
    while time.perf_counter() < end:
        for name in order:
            time.sleep(REST)
            times[name].append(_turn(sessions[name], inputs, runs[name]))
        order.reverse()
    row: tools.Row = {name: 1000 * statistics.median(values) for name, values in times.items()}
    for over in ("float", "onnxruntime"):
        for name in times:
            if over in times and name != over:
                row[f"{name} / {over}"] = statistics.median(
                    a / b for a, b in zip(times[name], times[over], strict=True)
                )
    return row | {"turns": len(times["float"])}


def _turn(session: object, inputs: Feed, runs: int) -> float:
    session.run(None, inputs)  # type: ignore[attr-defined]
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, inputs)  # type: ignore[attr-defined]
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def make(case: Case, folder: Path) -> tuple[dict[str, Path], str | None]:
    """The float model and what each quantizer makes of it; why one of them is missing."""
    models = {"float": case.make(folder)}
    for number, (name, scheme) in enumerate(SCHEMES.items()):
        path = folder / f"onnxq_{number}.onnx"
        models[name] = onnxq.quantize(models["float"], recipe={"scheme": scheme}).save(path)
    path = folder / "onnxruntime.onnx"
    try:
        prepared = folder / "prepared.onnx"
        peer.preprocess(models["float"], prepared)
        quantize_dynamic(prepared, path, weight_type=QuantType.QInt8)
    except Exception as err:  # noqa: BLE001 - whatever the peer fails with is the result
        return models, f"onnxruntime failed: {(str(err).strip().splitlines() or [''])[0][:100]}"
    return models | {"onnxruntime": path}, None


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of the angle between two arrays."""
    flat_a, flat_b = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    return float(flat_a @ flat_b / (np.linalg.norm(flat_a) * np.linalg.norm(flat_b)))


def likeness(models: dict[str, Path], feeds: list[Feed], threads: int) -> dict[str, float]:
    """By model, the mean cosine of its outputs with those of the float model, over all floats it gives."""
    sessions = {name: open_session(path, threads) for name, path in models.items()}
    found: dict[str, list[float]] = {name: [] for name in models if name != "float"}
    for feed in feeds:
        wanted = sessions["float"].run(None, feed)
        for name, cosines in found.items():
            given = sessions[name].run(None, feed)
            cosines += [cosine(a, b) for a, b in zip(wanted, given, strict=True) if a.dtype == np.float32]
    return {name: float(np.mean(values)) for name, values in found.items()}


def measure(case: Case, options: tools.Options, folder: Path) -> list[tools.Row]:
    """One row for each quantizer."""
    models, note = make(case, folder)
    feeds = case.feeds()
    cosines = likeness(models, feeds, options.threads)
    np.savez(folder / "feed.npz", **feeds[0])
    call = partial(
        tools.in_child, alternated, models={name: str(path) for name, path in models.items()},
        feed=str(folder / "feed.npz"), threads=options.threads, seconds=0.5 if options.quick else SECONDS,
    )  # fmt: skip
    found = tools.alternate({case.name: call}, options.rounds)[case.name]
    problem = tools.failed(found)
    size = models["float"].stat().st_size
    rows: list[tools.Row] = []
    for name, path in models.items():
        if name == "float":
            continue
        row: tools.Row = {"model": case.name, "quantizer": name}
        row |= {"MB": path.stat().st_size / 1e6, "smaller by": size / path.stat().st_size}
        row["cosine"] = f"{cosines[name]:.6f}"
        if not problem:
            row |= {"float, ms": tools.median(found, "float"), "ms": tools.median(found, name)}
            row["over float"] = tools.median(found, f"{name} / float")
            if f"{name} / onnxruntime" in found[0]:
                row["over onnxruntime"] = tools.median(found, f"{name} / onnxruntime")
        rows.append(row | {"note": problem or (note if name == "onnxq" else None)})
    return rows


def run(options: tools.Options) -> list[tools.Table]:
    """The table of all models."""
    rows = []
    for case in cases(options):
        with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
            rows += measure(case, options, Path(name))
    vnni = {True: "has VNNI", False: "has no VNNI", None: "has VNNI or not: not known"}[tools.has_vnni()]
    notes = [
        f"this CPU {vnni}; {options.threads} threads, batch 1; {options.rounds} rounds, each in a fresh process",
        "published (MindSpore Lite, TinyBERT): 3.6 to 3.8 times smaller, cosine 0.9967 to 0.9993, time 0.46 to 0.50",
        "without VNNI products of codes take half the time of floats at best, and the rest of a model stays as it is",
        "silero_vad's LSTM is in the body of an If, which stays float",
    ]
    return [tools.Table("Dynamic quantization", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
