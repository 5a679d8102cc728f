"""Tuning: the default recipe, AMCT's rollback strategy, `onnxq tune` and onnxruntime.quantization beside each other.

The search sees every second feed of the evaluation data; the figures under "held out" are of the others, which no
method has seen. All models calibrate with the same samples. AMCT's strategy, a binary search for the shortest part of
its ranking that is enough when it is rolled back, is run on the default recipe, with AMCT's own ranking: the cosine
similarity of each layer by itself, quantized as for Ascend. Latencies are times
on the processor of the models in turn, one thread.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peer
import tools
from datasets import Case, Feed, cases

import onnxq
from onnxq import stages
from onnxq.dialects.amct.search import Fix, SearchResult, Settings, auto_calibrate
from onnxq.dialects.amct.sensitivity import similarity
from onnxq.dialects.amct.strategies import BinarySearch
from onnxq.graph import GraphModel
from onnxq.recipe import Recipe, Rule, Selector
from onnxq.report.benchmark import Clock, benchmark
from onnxq.tune import Constraint, Evaluation, Scorer, tune
from onnxq.tune.single_layer import compare_layers

SCORES = {"perplexity": ("stories260K_llama",), "sqnr": ("yunet", "PP-OCR", "dtln", "silero")}
"""Which models have which metric; others with labels top1, without agreement."""
MIN_SQNR = 30.0
MAX_DROP = 0.005
RANKED = 16
"""Samples that AMCT's ranking is made from."""
BUDGET = float(os.environ.get("ONNXQ_TUNING_BUDGET", "600"))
"""Seconds for each search."""


@dataclass(frozen=True)
class Task:
    """A model, its data in halves, and what it must keep."""

    case: Case
    calib: list[Feed]
    seen: Scorer
    held_out: Scorer
    evaluation: Evaluation
    constraint: Constraint
    threads: int

    @staticmethod
    def of(case: Case, options: tools.Options) -> Task:
        """Split the evaluation data: every second feed is for the search."""
        feeds, labels = case.evaluation()
        metric = next((m for m, names in SCORES.items() if any(n in case.name for n in names)), None)
        metric = metric or ("agreement" if labels is None else "top1")
        halves = []
        for start in (0, 1):
            chosen = None
            if labels is not None:
                ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])
                parts = np.split(labels, ends[:-1])
                chosen = np.concatenate(parts[start::2])
            halves.append(Evaluation(feeds[start::2], metric, chosen, threads=options.threads))
        graph = onnxq.load_model(case.model)
        scorers = [half.prepare(graph) for half in halves]
        constraint = Constraint(min_score=MIN_SQNR) if metric == "sqnr" else Constraint(MAX_DROP, relative=True)
        return Task(case, case.calib(), *scorers, halves[0], constraint, options.threads)

    def row(self, by: str, graph: GraphModel, **facts: tools.Value) -> tools.Row:
        """The scores of a model on both halves."""
        metric, seen, other = self.seen.metric, self.seen.score(graph), self.held_out.score(graph)
        row: tools.Row = {"model": self.case.name, "by": by, "metric": metric.name, "float": self.seen.reference}
        row |= {"score": seen, "drop %": _drop(self.seen, seen)}
        row |= {"held out": other, "drop % there": _drop(self.held_out, other)}
        met = self.constraint.met(seen, self.seen.reference, metric)
        return row | {"meets": "yes" if met else "no"} | facts


def _drop(scorer: Scorer, score: float) -> float | None:
    if not math.isfinite(scorer.reference) or not scorer.reference:
        return None
    lost = scorer.reference - score if scorer.metric.higher_is_better else score - scorer.reference
    return 100.0 * lost / abs(scorer.reference)


class Rollback:
    """The prober that AMCT's strategy asks: the default recipe, and layers that are left float.

    Args:
        task: The model and its data.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._measured = stages.measure(task.case.model, task.calib, threads=task.threads)
        self.calibrations = 1

    def original(self) -> object:
        """The float model's score."""
        return self._task.seen.reference

    def recipe(self, settings: Settings) -> Recipe:
        """The default recipe without the layers that are rolled back."""
        left = [layer for layer, choice in settings.items() if not choice.quantize]
        return Recipe(rules=tuple(Rule(match=Selector(node=layer), skip=True) for layer in left))

    def probe(self, settings: Settings) -> object:
        """The score of a model."""
        return self._task.seen.score(self._measured.quantize(self.recipe(settings)).graph)

    def sensitivities(self) -> Mapping[str, float]:
        """How similar the output of each layer stays if it alone is quantized as for Ascend."""
        feeds = self._task.calib[:RANKED]
        chosen = stages.measure(self._task.case.model, feeds, recipe={"target": "ascend"}).choose()
        found: dict[str, list[float]] = {}
        for layer, reference, quantized in compare_layers(chosen, feeds):
            found.setdefault(layer, []).append(similarity([reference], [quantized]))
        ours = {d.node for d in self._measured.quantize().plan.decisions if d.role == "quantized"}
        return {layer: math.fsum(v) / len(v) for layer, v in found.items() if layer in ours}

    def fixes(self, layer: str) -> Collection[Fix]:
        """Rollback has none."""
        del layer
        return ()


def rollback(task: Task) -> tuple[GraphModel | None, tools.Row]:
    """AMCT's strategy."""
    start, prober = time.perf_counter(), Rollback(task)

    def verdict(original: object, found: object) -> tuple[bool, float]:
        score, reference = float(found), float(original)  # type: ignore[arg-type]
        met = task.constraint.met(score, reference, task.seen.metric)
        return met, reference - score if math.isfinite(reference) else -score

    found: SearchResult = auto_calibrate(prober, verdict, BinarySearch())
    facts: tools.Row = {
        "left float": len(found.rolled_back), "evaluations": found.evaluations,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip
    if not found.found:
        return None, facts
    return onnxq.quantize(task.case.model, task.calib, recipe=prober.recipe(found.settings)).graph, facts


def tuned(task: Task) -> tuple[GraphModel | None, tools.Row]:
    """`onnxq tune`."""
    found = tune(
        task.case.model, task.calib, task.evaluation, task.constraint, budget=BUDGET, threads=task.threads
    )  # fmt: skip
    facts: tools.Row = {
        "left float": len(found.left_float), "layers": len(found.costs.integer_cost),
        "evaluations": found.evaluations, "seconds": found.seconds,
        "note": "ended by the budget" if found.out_of_time else None,
    }  # fmt: skip
    return (found.result.graph if found.quantized else None), facts


def default(task: Task) -> tuple[GraphModel | None, tools.Row]:
    """The default recipe."""
    start = time.perf_counter()
    result = onnxq.quantize(task.case.model, task.calib, threads=task.threads)
    return result.graph if result.changed else None, {"left float": 0, "seconds": time.perf_counter() - start}


def theirs(task: Task) -> tuple[GraphModel | None, tools.Row]:
    """onnxruntime.quantization: quantize_static with Q/DQ, pre-processed, per channel, min-max."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        out = Path(name) / "model.onnx"
        peer.quantize(task.case.model, out, task.calib)
        graph = GraphModel.from_proto(onnxq.load_model(out).to_proto())
    return graph, {"seconds": time.perf_counter() - start}


METHODS: dict[str, Callable[[Task], tuple[GraphModel | None, tools.Row]]] = {
    "onnxruntime": theirs,
    "default": default,
    "AMCT's rollback": rollback,
    "onnxq tune": tuned,
}


def measure(case: Case, options: tools.Options) -> list[tools.Row]:
    """One row for each method."""
    task = Task.of(case, options)
    original = onnxq.load_model(case.model)
    rows: list[tools.Row] = []
    graphs: dict[str, GraphModel] = {}
    for by, method in METHODS.items():
        graph, row = _attempt(task, by, method, original)
        rows.append(row)
        if graph is not None:
            graphs[by] = graph
    clock = Clock(now=time.process_time)  # what other processes take is not counted
    found = benchmark(
        [original, *graphs.values()], task.calib[:4], threads=1, rounds=8 if options.quick else 30,
        names=["float", *graphs], clock=clock,
    )  # fmt: skip
    ratios = {ratio.name: ratio.median for ratio in found.ratios}
    return [row | {"latency ratio": ratios.get(str(row["by"]), 1.0)} if "score" in row else row for row in rows]


def _attempt(
    task: Task, by: str, method: Callable[[Task], tuple[GraphModel | None, tools.Row]], original: GraphModel
) -> tuple[GraphModel | None, tools.Row]:
    start = time.process_time()
    try:
        graph, facts = method(task)
        row = task.row(by, graph or original, **facts, **{"CPU s": time.process_time() - start})
    except Exception as err:  # noqa: BLE001 - whatever a quantizer or its model fails with is the result
        text = (str(err).strip().splitlines() or [type(err).__name__])[0][:120]
        return None, {"model": task.case.name, "by": by, "note": f"failed: {text}"}
    if graph is None:
        row |= {"note": "the float model: no quantized one keeps enough"}
    return graph, row


def run(options: tools.Options) -> list[tools.Table]:
    """The table of all models."""
    rows: list[tools.Row] = []
    for case in cases(options):
        rows += measure(case, options)
    notes = [
        f"a model may lose {100 * MAX_DROP:g} % of the float model's score; by sqnr it must reach {MIN_SQNR:g} dB",
        "the search sees every second feed; held out: the others",
        "latency: time on the processor over the float model's, one thread; CPU s: that of the whole search",
        "AMCT's rollback: its binary search and its ranking, on the default recipe; onnxruntime: quantize_static, QDQ",
    ]
    return [tools.Table("Tuning", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
