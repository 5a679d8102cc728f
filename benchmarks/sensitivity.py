"""Which layers hurt: the first-order estimate beside measuring one layer at a time.

Both use the same calibration, the same numbers of the recipe and the same metric, the SQNR of the outputs on
calibration samples. rho is Spearman's rank correlation of the effects. Times are of the ranking alone, CPU seconds
and wall seconds; "whole" is what one layer at a time costs without a shared prefix: a session and a run over the
samples for every layer, measured on a few of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tools
from datasets import Case, cases

from onnxq import stages
from onnxq.tune.evaluation import Evaluation, Scorer
from onnxq.tune.prefixes import Copies
from onnxq.tune.ranking import Method, Sensitivity, rank_correlation
from onnxq.tune.sensitivity import FEW_SAMPLES, rank_layers

T = TypeVar("T")
WANTED = ("digits_mobilenet", "mobilenetv2-7_refit_head", "mobilenetv1_0.25_224", "squeezenet1.1")
SAMPLES = 64
TOP = 5
PROBES = 4


@dataclass(frozen=True)
class Timed:
    """A result and what it took."""

    cpu: float
    wall: float


def timed(work: Callable[[], T]) -> tuple[T, Timed]:
    """Run something."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    return found, Timed(time.process_time() - cpu, time.perf_counter() - wall)


def measure(case: Case, options: tools.Options) -> tools.Row:
    """One row of the table."""
    samples = 8 if options.quick else SAMPLES
    measured = stages.measure(case.model, case.calib()[:samples], threads=options.threads)
    chosen = measured.choose()

    def ranking(method: Method, count: int) -> tuple[Sensitivity, Timed]:
        return timed(
            lambda: rank_layers(measured, method=method, chosen=chosen, samples=count, threads=options.threads)
        )

    one, exhaustive = ranking("one", samples)
    estimate, cheap = ranking("first_order", min(FEW_SAMPLES, samples))
    wanted = [row.effect for row in one.rows]
    found = [estimate.effect(row.layer) for row in one.rows]
    reader = measured.context.reader
    assert reader is not None
    scorer = Evaluation(reader, "sqnr", samples=samples, threads=options.threads).prepare(measured.graph)
    whole = whole_evaluations(Copies(chosen), scorer)
    return {
        "model": case.name,
        "layers": len(one.rows),
        "rho": rank_correlation(wanted, found),
        f"of the {TOP} worst": len(set(one.layers[:TOP]) & set(estimate.layers[:TOP])),
        "estimate CPU s": cheap.cpu,
        "one by one CPU s": exhaustive.cpu,
        "whole CPU s": whole,
        "one / estimate": exhaustive.cpu / cheap.cpu,
        "whole / estimate": whole / cheap.cpu,
        "estimate wall s": cheap.wall,
        "one by one wall s": exhaustive.wall,
    }


def whole_evaluations(copies: Copies, scorer: Scorer) -> float:
    """CPU seconds that a whole evaluation for every layer would take, by those of a few layers."""
    from onnxq.runtime import make_session

    step = max(1, len(copies.layers) // PROBES)
    probes = copies.layers[::step]
    start = time.process_time()
    for layer in probes:
        copies.fresh()
        made = copies.write({layer.name}, range(len(copies.protos)), {}, "whole")
        wanted = [made.get(name, name) for name in copies.outputs]
        session = make_session(copies.graph, outputs=wanted, extra=copies.nodes)
        for batch in scorer.rounds():
            session.run(wanted, batch.feed)
    return (time.process_time() - start) / len(probes) * len(copies.layers)


def run(options: tools.Options) -> list[tools.Table]:
    """The table of all models."""
    wanted = [case for case in cases(options, classifiers_only=True) if case.name in WANTED]
    rows = [measure(case, options) for case in wanted]
    notes = [
        f"estimate on {FEW_SAMPLES} samples, one by one on {SAMPLES}",
        "calibration and the choice of numbers, which all of them need once, are not in the times",
    ]
    return [tools.Table("Sensitivity: the first-order estimate beside one layer at a time", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
