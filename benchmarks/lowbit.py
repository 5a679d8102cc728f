"""Weights of 2 to 4 bits: perplexity, size and speed of methods and storages; memory of large models with --large.

The shared decoder model on the tokens that were sampled from it: the first 32 texts calibrate, the others are judged.
Beside it onnxruntime's MatMulNBitsQuantizer, where it can be imported (the extra ``bench``) and its methods run. Speeds
are medians of ratios to the float model of runs that take turns; on a decoder with 64 channels they say little, so one
token also goes through layers of the size of a real one.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tools
from accuracy import open_session
from onnx import TensorProto, helper

import onnxq

METHODS = ("rtn", "hqq", "awq", "gptq", "awq+gptq")
CALIBRATE = 32
BATCH = 32
WIDE = 2048
TURNS = 9

# ---- perplexity ----------------------------------------------------------------------------------


def recipe(method: str, bits: int | None, size: int, storage: str = "blocks", **scheme: object) -> dict[str, object]:
    """A recipe for blocks; without a width, `scheme` has an average."""
    content: dict[str, object] = {
        "scheme": {"kind": "weight_only", "method": method, "storage": storage, "block_size": size, **scheme}
    }
    return content | ({} if bits is None else {"weights": {"bits": bits}})


class Texts:
    """Tokens to calibrate with, tokens to judge by, and how long the float model takes."""

    def __init__(self, tokens: np.ndarray, threads: int) -> None:
        self.calib = {"tokens": tokens[:CALIBRATE, :-1]}
        self._rest = tokens[CALIBRATE:]
        self._threads = threads

    def perplexity(self, model: Path) -> float:
        """The exponential of the mean negative logarithm of each next token's probability."""
        session, total, count = open_session(model, self._threads), 0.0, 0
        for start in range(0, len(self._rest), BATCH):
            part = self._rest[start : start + BATCH]
            logits = session.run(None, {"tokens": part[:, :-1]})[0].astype(np.float64)
            logits -= logits.max(-1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
            total -= float(np.take_along_axis(logits, part[:, 1:, None], -1).sum())
            count += part[:, 1:].size
        return float(np.exp(total / count))

    def speed(self, models: Mapping[str, Path], turns: int) -> dict[str, float]:
        """Tokens per second over those of the first model, one text of 128 tokens at a time."""
        feed = {"tokens": self._rest[:1, :-1]}
        return in_turn({name: open_session(path, self._threads) for name, path in models.items()}, feed, turns)


def in_turn(sessions: Mapping[str, Any], feed: Mapping[str, np.ndarray], turns: int, runs: int = 5) -> dict[str, float]:
    """Speed over that of the first session, the median over the turns."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(turns + 1):
        for name, session in sessions.items():
            start = time.perf_counter()
            for _ in range(runs):
                session.run(None, feed)
            if turn:
                times[name].append(time.perf_counter() - start)
    first = next(iter(times.values()))
    return {name: statistics.median(a / b for a, b in zip(first, own, strict=True)) for name, own in times.items()}


def theirs(model: str, tokens: str, out: str, method: str, bits: int, size: int) -> tools.Row:
    """Quantize with onnxruntime's MatMulNBitsQuantizer."""
    from onnxruntime.quantization import matmul_nbits_quantizer as peer

    texts = np.load(tokens).astype(np.int64)[:CALIBRATE, :-1]
    match method:
        case "gptq":
            from peer import Reader

            config = peer.GPTQWeightOnlyQuantConfig(Reader([{"tokens": t[None]} for t in texts]), block_size=size)
        case "hqq":
            config = peer.HQQWeightOnlyQuantConfig(block_size=size, bits=bits)
        case _:
            config = peer.DefaultWeightOnlyQuantConfig(size, False, 4, bits=bits)
    start = time.perf_counter()
    quantizer = peer.MatMulNBitsQuantizer(onnx.load(model), bits, size, accuracy_level=4, algo_config=config)
    quantizer.process()
    onnx.save(quantizer.model.model, out)
    return {"seconds": time.perf_counter() - start}


def perplexities(options: tools.Options, folder: Path) -> list[tools.Table]:
    """The tables of the decoder model; none without the zoo."""
    if options.zoo is None or not options.wants("stories260K_llama"):
        return []
    model, tokens = options.zoo / "models" / "stories260K_llama.onnx", options.zoo / "stories260K_sample_tokens.npy"
    texts = Texts(np.load(tokens).astype(np.int64), options.threads)
    base = texts.perplexity(model)
    rows: list[tools.Row] = [row_of("float", 32, None, model, model, base, base)]
    paths = {"float": model}
    for bits, size in ((4, 32), (4, 128), (3, 32), (3, 128), (2, 32), (2, 128))[: 1 if options.quick else None]:
        for method in METHODS:
            path = folder / f"{method}{bits}{size}.onnx"
            start = time.perf_counter()
            onnxq.quantize(model, texts.calib, recipe=recipe(method, bits, size), threads=options.threads).save(path)
            seconds = time.perf_counter() - start
            row = row_of(method, bits, size, path, model, texts.perplexity(path), base)
            rows.append({**row, "seconds": seconds})
            paths[str(len(rows) - 1)] = path
        if options.peer_rounds and bits != 3:
            for method in ("rtn", "hqq", "gptq") if bits == 4 else ("rtn",):
                rows.append(peer_row(method, bits, size, model, tokens, texts, base, folder, paths, len(rows)))
    speeds = texts.speed(paths, 1 if options.quick else TURNS)
    for place, row in enumerate(rows):
        row["speed / float"] = speeds.get("float" if place == 0 else str(place))
    note = "MatMulNBits with codes of activations (compute: int8); rtn of onnxruntime: accuracy_level 4, no embeddings"
    return [
        tools.Table("Perplexity of the shared decoder model", rows, [note]),
        tools.Table("Widths by layer, packed", averages(options, texts, model, folder, base)),
        tools.Table("Storages of 4 bits, gptq in blocks of 32", storages(options, texts, model, folder, base)),
    ]


def peer_row(
    method: str, bits: int, size: int, model: Path, tokens: Path, texts: Texts, base: float, folder: Path,
    paths: dict[str, Path], place: int,
) -> tools.Row:  # fmt: skip
    """The row of onnxruntime's quantizer, or why there is none."""
    path = folder / f"peer-{method}{bits}{size}.onnx"
    name = f"onnxruntime {method}"
    try:
        done = tools.in_child(
            theirs, model=str(model), tokens=str(tokens), out=str(path), method=method, bits=bits, size=size
        )
        row = row_of(name, bits, size, path, model, texts.perplexity(path), base)
    except Exception as err:  # noqa: BLE001 - whatever the peer fails with is the result
        return {"method": f"{name}: {(str(err).strip().splitlines() or [''])[0][:60]}", "bits": bits, "block": size}
    paths[str(place)] = path
    return {**row, "seconds": done["seconds"]}


def row_of(
    method: str, bits: int | None, size: int | None, path: Path, model: Path, found: float, base: float
) -> tools.Row:
    """Perplexity and size."""
    row: tools.Row = {"method": method, "bits": bits, "block": size, "perplexity": f"{found:.3f}"}
    kept = path.stat().st_size
    return row | {"over float": f"{found / base:.3f}", "kB": kept / 1000, "size / float": kept / model.stat().st_size}


def averages(options: tools.Options, texts: Texts, model: Path, folder: Path, base: float) -> list[tools.Row]:
    """Widths chosen by layer beside one width for all."""
    rows, path = [], folder / "average.onnx"
    for average in (2.5, 3.0, 3.5, 4.0)[: 1 if options.quick else None]:
        ways: list[tuple[str, dict[str, object]]] = [
            (f"average_bits {average:g}", recipe("gptq", None, 32, "packed", average_bits=average))
        ]
        if average == int(average):
            ways.append((f"{average:g} bits", recipe("gptq", int(average), 32, "packed")))
        for name, content in ways:
            onnxq.quantize(model, texts.calib, recipe=content, threads=options.threads).save(path)
            rows.append(row_of(name, None, 32, path, model, texts.perplexity(path), base))
    return rows


def storages(options: tools.Options, texts: Texts, model: Path, folder: Path, base: float) -> list[tools.Row]:
    """The same codes in every storage, and products in floats."""
    rows, paths = [], {"float": model}
    for name, storage, compute in (
        ("blocks, int8", "blocks", "int8"), ("blocks, float32", "blocks", "float32"), ("native", "native", None),
        ("packed", "packed", None), ("rounded", "rounded", None),
    ):  # fmt: skip
        path = folder / f"storage-{name}.onnx"
        content = recipe("gptq", 4, 32, storage, compute=compute)
        onnxq.quantize(model, texts.calib, recipe=content, threads=options.threads).save(path)
        rows.append(row_of(name, 4, 32, path, model, texts.perplexity(path), base))
        paths[name] = path
    speeds = texts.speed(paths, 1 if options.quick else TURNS)
    return [row | {"speed / float": speeds[str(row["method"])]} for row in rows]


# ---- one token through wide layers ---------------------------------------------------------------


def wide(width: int, layers: int, path: Path) -> Path:
    """Layers of a decoder without attention: each a product with `width` inputs and outputs, and a Relu."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for layer in range(layers):
        weights.append(onnx.numpy_helper.from_array(
            (rng.normal(size=(width, width)) / np.sqrt(width / 2)).astype(np.float32), f"w{layer}"))  # fmt: skip
        nodes.append(helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"p{layer}"], f"layer{layer}"))
        nodes.append(helper.make_node("Relu", [f"p{layer}"], [f"h{layer + 1}"], f"relu{layer}"))
    save(nodes, weights, width, layers, path)
    return path


def save(nodes: list[onnx.NodeProto], weights: list[TensorProto], width: int, layers: int, path: Path) -> None:
    """Write the model of these layers."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", width]) for n in ("h0", f"h{layers}")]
    graph = helper.make_graph(nodes, "wide", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def one_token(options: tools.Options, folder: Path) -> tools.Table:
    """Speed of one row through wide layers, over floats."""
    width, layers = (256, 2) if options.quick else (WIDE, 4)
    paths = {"float": wide(width, layers, folder / "wide.onnx")}
    for bits in (4, 2, 8):
        for size in (32, 128):
            for compute in ("int8", "float32"):
                path = folder / f"wide{bits}{size}{compute}.onnx"
                onnxq.quantize(paths["float"], recipe=recipe("rtn", bits, size, compute=compute)).save(path)
                paths[f"{bits} {size} {compute}"] = path
    rows: list[tools.Row] = []
    feeds = {rows_: {"h0": np.ones((rows_, width), np.float32)} for rows_ in (1, 64)}
    sessions = {name: open_session(path, options.threads) for name, path in paths.items()}
    found = {count: in_turn(sessions, feed, 1 if options.quick else TURNS) for count, feed in feeds.items()}
    for name in list(paths)[1:]:
        bits, size, compute = name.split()
        rows.append({"bits": bits, "block": size, "compute": compute,
                     **{f"{count} tokens / float": speeds[name] for count, speeds in found.items()}})  # fmt: skip
    return tools.Table(f"Speed over float of {layers} layers of {width} x {width}", rows)


# ---- larger than memory --------------------------------------------------------------------------


def large(path: str, width: int, layers: int) -> tools.Row:
    """Write a model of many layers with its weights in a file, without holding them."""
    target = Path(path)
    block = (np.random.default_rng(0).standard_t(4, (width, width)) / np.sqrt(width)).astype(np.float32)
    nodes, weights = [], []
    with target.with_name(target.name + ".data").open("wb") as file:
        for layer in range(layers):
            tensor = TensorProto(name=f"w{layer}", dims=[width, width], data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": target.name + ".data", "offset": file.tell(), "length": block.nbytes}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(np.roll(block, layer, axis=1).data)
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"p{layer}"], f"layer{layer}"))
            nodes.append(helper.make_node("Relu", [f"p{layer}"], [f"h{layer + 1}"], f"relu{layer}"))
        size = file.tell()
    save(nodes, weights, width, layers, target)
    return {"bytes": size}


def quantize_large(path: str, out: str, content: str, width: int, threads: int) -> tools.Row:
    """Quantize and save."""
    data = {"h0": np.abs(np.random.default_rng(1).normal(size=(256, width))).astype(np.float32)}
    settings = json.loads(content)
    start = time.perf_counter()
    onnxq.quantize(path, data, recipe=settings, threads=threads).save(out)
    return {"seconds": time.perf_counter() - start}


def memory(options: tools.Options) -> list[tools.Table]:
    """Peak of the resident set over the size of the model."""
    width, layers = (512, 8) if options.quick else (2048, 160)
    rows: list[tools.Row] = []
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        model = Path(name) / "large.onnx"
        size = float(tools.in_child(large, path=str(model), width=width, layers=layers)["bytes"] or 0) / 2**20
        for method in ("rtn", "gptq"):
            out = Path(name) / f"{method}.onnx"
            content = recipe(method, 4, 32) | {"calibration": {"memory_budget_mb": 512}}
            done = tools.in_child(quantize_large, timeout=7200, path=str(model), out=str(out),
                                  content=json.dumps(content), width=width, threads=options.threads)  # fmt: skip
            written = sum(p.stat().st_size for p in out.parent.glob(out.name + "*")) / 2**20
            rows.append({
                "method": method, "model, MB": size, "layers": layers, "peak, MB": done["peak_mb"],
                "peak / model": float(done["peak_mb"] or 0) / size, "result, MB": written, "seconds": done["seconds"],
            })  # fmt: skip
            out.unlink()
    return [tools.Table("Peak memory of a model in a file", rows, ["peak: resident set of the process, all included"])]


def run(options: tools.Options) -> list[tools.Table]:
    """All tables but those of --large."""
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        return [*perplexities(options, Path(name)), one_token(options, Path(name))]


if __name__ == "__main__":
    chosen = memory if "--large" in sys.argv else run
    sys.argv = [word for word in sys.argv if word != "--large"]
    tools.main([chosen], __doc__)
