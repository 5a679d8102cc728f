"""What pruning saves and costs: parameters, operations, latency, and accuracy before and after training.

Channels are removed from the bundled models and from the zoo's MobileNetV2, by one ratio for all layers and by ratios
found for a target of operations; 2:4 sparsity; and both together with 8-bit quantization-aware training. Training sees
the training split of the digits; accuracy is that on the test split.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import latency
import numpy as np
import tools
from accuracy import open_session
from datasets import DIGITS

import onnxq
from onnxq.qat.artifacts import create
from onnxq.qat.ratios import find_ratios
from onnxq.qat.save import quantized, trained_values
from onnxq.qat.trainer import QatTrainer, TrainOptions

DATA = tools.ROOT / "models" / "data"
MOBILENET = "mobilenetv2-7_refit_head"
RATIOS = (0.3, 0.5)
SECONDS = 3.0
EPOCHS = 12


def channels(ratio: float, multiple: int = 1) -> dict[str, object]:
    return {"prune": {"kind": "channels", "ratio": ratio, "multiple": multiple}}


def digits(part: str) -> dict[str, Any]:
    with np.load(DATA / f"digits_{part}.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def top1(path: Path) -> float:
    """Accuracy on the test split, in percent."""
    labels = np.load(DATA / "digits_test_labels.npy", allow_pickle=False)
    logits = open_session(path, 1).run(None, {"image": digits("test")["image"]})[0]
    return float(100 * (logits.argmax(axis=1) == labels).mean())


def trained(model: Path, recipe: dict[str, object], folder: Path, options: tools.Options, *, quantize: bool) -> Path:
    """The model after fine-tuning with a recipe that prunes."""
    art = folder / "artifacts"
    data = {"image": digits("calib")["image"]} if quantize else None
    create(model, data, art, recipe=recipe, quantize=quantize, threads=options.threads)
    epochs = 1 if options.quick else EPOCHS
    QatTrainer(art, TrainOptions(epochs=epochs, batch_size=32, learning_rate=3e-3)).fit(digits("train"))
    out = folder / "trained.onnx"
    quantized(art, trained_values(art)).save(out)
    return out


def sparsity(path: Path) -> str:
    """Share of weights that are kept, over all groups of four in sparse layers: the smallest and the largest."""
    graph = onnxq.load_model(path)
    shares = []
    for node in graph.nodes("Conv", "Gemm"):
        weight = graph.value(node.inputs[1])
        axis = 1 if node.op == "Conv" or node.attrs.get("transB", 0) else 0
        if weight.shape[axis] % 4 == 0:
            shares.append((np.moveaxis(weight, axis, -1).reshape(-1, 4) != 0).mean(axis=1))
    found = np.concatenate(shares)
    return f"{found.min():g} to {found.max():g}"


def row(name: str, what: str, result: onnxq.Pruned, model: Path, out: Path, options: tools.Options) -> tools.Row:
    """Sizes and latency of a pruned model over those of the model."""
    result.save(out)
    seconds = 0.3 if options.quick else SECONDS
    times = latency.alternated({"float": str(model), "pruned": str(out)}, options.threads, seconds)
    return {
        "model": name,
        "pruned": what,
        "parameters": result.after.parameters / result.before.parameters,
        "FLOPs": result.after.flops / result.before.flops,
        "latency": float(times["pruned"] or 0) / float(times["float"] or 1),
    }


def bundled(name: str, options: tools.Options, folder: Path) -> list[tools.Row]:
    """The rows of a bundled model."""
    model, out = tools.ROOT / "models" / f"{name}.onnx", folder / "pruned.onnx"
    recipes: dict[str, dict[str, object]] = {f"{100 * r:.0f} %": channels(r) for r in RATIOS}
    recipes["50 %, multiples of 8"] = channels(0.5, 8)
    found = find_ratios(model, digits("train"), flops=0.5, multiple=8)
    recipes["FLOPs 0.5, multiples of 8"] = found.recipe.to_dict()
    recipes["2:4"] = {"prune": "2:4"}
    rows = []
    for what, recipe in recipes.items():
        result = row(name, what, onnxq.prune(model, recipe=recipe), model, out, options)
        result |= {"float": top1(model), "before": top1(out)}
        if what == "2:4":
            result["density"] = sparsity(out)
        result["after"] = top1(trained(model, recipe, folder, options, quantize=False))
        result["after, 8 bits"] = top1(trained(model, recipe, folder, options, quantize=True))
        rows.append(result)
    return rows


def large(options: tools.Options, folder: Path) -> list[tools.Row]:
    """The rows of MobileNetV2, which is not trained here."""
    model = None if options.zoo is None else options.zoo / "models" / f"{MOBILENET}.onnx"
    if model is None or not model.is_file() or not options.wants(MOBILENET):
        return []
    rows = []
    for ratio in RATIOS:
        for multiple in (1, 8, 16):
            recipe = {"prune": {"kind": "channels", "ratio": ratio, "multiple": multiple}}
            what = f"{100 * ratio:.0f} %" + (f", multiples of {multiple}" if multiple > 1 else "")
            result = onnxq.prune(model, recipe=recipe)
            rows.append(row("MobileNetV2", what, result, model, folder / "pruned.onnx", options))
    return rows


def run(options: tools.Options) -> list[tools.Table]:
    """The table."""
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        folder = Path(name)
        rows = [r for n in DIGITS[:2] if options.wants(n) for r in bundled(n, options, folder)]
        rows += large(options, folder)
    notes = [
        "parameters, FLOPs and latency: over the model as it came, batch 1; accuracy: top-1 in %, one training each",
        "before: pruned and not trained; after: fine-tuned; 8 bits: fine-tuned with quantizers, then quantized",
        f"FLOPs 0.5: ratios found by sensitivity; trained {EPOCHS} epochs, AdamW, 3e-3, batches of 32",
    ]
    return [tools.Table("Pruning", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
