"""Transformers: what balancing, codes in attention, float8 and 16 bits do to accuracy, latency and fused kernels.

Nothing but ratios to the float model is said about latency. Fused kernels are those that ONNX Runtime makes of several
nodes in the float model (normalizations, Gelus, scaled products) and how many of them are left.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dmq
import encoders
import numpy as np
import onnx
import tools
from accuracy import open_session
from datasets import Feed, cut

import onnxq
from onnxq.report.benchmark import benchmark
from onnxq.runtime import optimized

RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "balanced": {"balance": {}},
    "balanced, no Mul": {"balance": {"mul": False}},
    "attention in codes": {"rules": [{"match": {"op_type": "MatMul"}, "quantize": True}]},
    "uint16 activations": {"activations": {"type": "uint16"}},
    "float8 (E4M3)": {"activations": {"type": "float8e4m3fn"}},
}
FUSED = (
    *(
        "LayerNormalization",
        "SkipLayerNormalization",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    ),
    *("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "FusedMatMul", "Attention", "MultiHeadAttention"),
)
OUTLIERS = 30.0
_TURNS, _QUICK_TURNS = 30, 6
_BATCH = 16

Score = Callable[[list[np.ndarray], list[Feed]], tools.Row]


@dataclass(frozen=True)
class Case:
    """A transformer and its data.

    Attributes:
        name: What tables call it.
        model: Its file.
        calib: Feeds of one sample each.
        feeds: Other data.
        score: What its first output is worth.
        projections: Nodes that give queries, keys and values, where ONNX Runtime makes an Attention of them; one more
            recipe leaves them float.
    """

    name: str
    model: Path
    calib: list[Feed]
    feeds: list[Feed]
    score: Score
    projections: tuple[str, ...] = ()

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """By name."""
        return RECIPES | ({"projections in floats": {"skip": list(self.projections)}} if self.projections else {})


def no_score(outputs: list[np.ndarray], feeds: list[Feed]) -> tools.Row:
    """Of models that have learned nothing."""
    return {}


def top1(labels: np.ndarray) -> Score:
    """Share of the largest logits that are right."""
    return lambda outputs, _: {"top-1 %": 100 * float((np.concatenate(outputs).argmax(-1) == labels).mean())}


def perplexity(following: np.ndarray | None = None, tokens: str = "tokens") -> Score:
    """Perplexity of the tokens that follow, given or those of the input itself."""

    def score(outputs: list[np.ndarray], feeds: list[Feed]) -> tools.Row:
        logits = np.concatenate(outputs).astype(np.float64)
        if following is None:
            wanted = np.concatenate([feed[tokens] for feed in feeds])[:, 1:]
            logits = logits[:, :-1]
        else:
            wanted = following
        logits -= logits.max(axis=-1, keepdims=True)
        right = np.take_along_axis(logits, wanted[..., None].astype(np.int64), axis=-1)[..., 0]
        surprise = np.log(np.exp(logits).sum(axis=-1)) - right
        return {"perplexity": float(np.exp(surprise.mean()))}

    return score


def arrays(name: str, count: int | None = None) -> Feed:
    """The inputs in a file of the bundled models' data."""
    with np.load(tools.ROOT / "models" / "data" / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key][:count] for key in file.files}


def batches(feed: Feed, size: int) -> list[Feed]:
    """Cut a feed along the first axis of all its arrays."""
    count = len(next(iter(feed.values())))
    return [{key: array[i : i + size] for key, array in feed.items()} for i in range(0, count, size)]


def cases(options: tools.Options, folder: Path) -> list[Case]:
    """The transformers that are wanted."""
    models, count = tools.ROOT / "models", 32 if options.quick else None
    labels = np.load(models / "data" / "digits_test_labels.npy", allow_pickle=False)[:count]
    digits = batches(arrays("digits_calib", count), 1), batches(arrays("digits_test", count), 50)
    found = [Case(path.stem, path, *digits, top1(labels)) for path in sorted(models.glob("digits_transformer*.onnx"))]
    planted = folder / "outliers.onnx"
    onnx.save(dmq.planted(onnx.load(dmq.MODEL), OUTLIERS), planted)
    found.append(Case(f"digits_transformer, outliers x {OUTLIERS:g}", planted, *digits, top1(labels)))
    for name, data in (("sketch_decoder", "sketch"), ("sketch_decoder_with_past", "sketch_with_past")):
        following = np.load(models / "data" / f"{data}_test_labels.npy", allow_pickle=False)[:count]
        calib, test = batches(arrays(f"{data}_calib", count), 1), batches(arrays(f"{data}_test", count), 50)
        found.append(Case(name, models / f"{name}.onnx", calib, test, perplexity(following)))
    if options.zoo is not None:
        tokens = np.load(options.zoo / "stories260K_sample_tokens.npy", allow_pickle=False).astype(np.int64)
        tokens = tokens[: 32 if options.quick else None, : 64 if options.quick else None]
        half = len(tokens) // 2
        model = options.zoo / "models" / "stories260K_llama.onnx"
        feeds = cut("tokens", tokens[half:], _BATCH)
        found.append(Case("stories260K_llama", model, cut("tokens", tokens[:half]), feeds, perplexity()))
    made_up = folder / "encoder.onnx"
    encoders.write(made_up)
    words = np.random.default_rng(0).integers(0, encoders.TINYBERT.words, (16, encoders.TINYBERT.tokens))
    found.append(
        Case("encoder of TinyBERT's size, made up", made_up, cut("ids", words[:8]), cut("ids", words[8:]), no_score)
    )
    masked = folder / "masked.onnx"
    encoders.write(masked, masked=True)
    calib, test = (
        [feed | {"mask": np.ones_like(feed["ids"])} for feed in cut("ids", w)] for w in (words[:8], words[8:])
    )
    found.append(Case("the same with a mask, opset 12", masked, calib, test, no_score, projections_of(masked)))
    return [case for case in found if options.wants(case.name)]


def projections_of(model: Path) -> tuple[str, ...]:
    """The MatMuls whose results, with a bias, become heads."""
    nodes = onnx.load(model).graph.node
    made = {output: node for node in nodes for output in node.output}
    biased = [made.get(made[n.input[0]].input[0]) for n in nodes if n.op_type == "Transpose"]
    products = [made.get(n.input[0]) for n in biased if n is not None and n.op_type == "Add"]
    return tuple(n.name for n in products if n is not None and n.op_type == "MatMul")


def outputs_of(model: Path, feeds: list[Feed], threads: int) -> list[np.ndarray]:
    """The first output of each feed."""
    session = open_session(model, threads)
    return [session.run(None, feed)[0] for feed in feeds]


def kernels(model: Path) -> int:
    """How many fused kernels there are."""
    counts = Counter(node.op_type for node in optimized(model).graph.node)
    return sum(counts[op] for op in FUSED)


def measure(case: Case, options: tools.Options, folder: Path) -> list[tools.Row]:
    """A row for the float model and one for each recipe."""
    wanted = outputs_of(case.model, case.feeds, options.threads)
    rows: list[tools.Row] = [{"model": case.name, "recipe": "float"} | case.score(wanted, case.feeds)]
    rows[0] |= {"fused kernels": kernels(case.model), "latency, ratio to float": 1.0}
    files: list[Path] = []
    for number, (name, recipe) in enumerate(case.recipes.items()):
        out = folder / f"{number}.onnx"
        onnxq.quantize(case.model, case.calib, recipe=recipe, threads=options.threads).save(out)
        found = outputs_of(out, case.feeds, options.threads)
        power = sum(float(np.square(a, dtype=np.float64).sum()) for a in wanted)
        noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(wanted, found, strict=True))
        row: tools.Row = {"model": case.name, "recipe": name, "SQNR dB": 10 * float(np.log10(power / noise))}
        rows.append(row | case.score(found, case.feeds) | {"fused kernels": kernels(out)})
        files.append(out)
    turns = _QUICK_TURNS if options.quick else _TURNS
    timed = benchmark([case.model, *files], case.calib[:1], threads=options.threads, rounds=turns)
    for row, ratio in zip(rows[1:], timed.ratios, strict=True):
        row["latency, ratio to float"] = ratio.median
    return rows


def run(options: tools.Options) -> list[tools.Table]:
    """The table of all transformers."""
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        folder = Path(name)
        rows = [row for case in cases(options, folder) for row in measure(case, options, folder)]
    notes = ["one sample at a time for latency, models in turn; perplexity of texts that did not calibrate"]
    return [tools.Table("Transformers", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
