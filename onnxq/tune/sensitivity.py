"""What each layer's quantization does to the model's output: measured layer by layer, or estimated for all at once.

ranking = rank_layers(stages.measure("model.onnx", data), "sqnr")
ranking.layers[:3]  # those that hurt most
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from onnxq.errors import DataError, RecipeError
from onnxq.pipeline import RecipeLike
from onnxq.runtime import Session, make_session, thread_count
from onnxq.stages import Chosen, Measured
from onnxq.tune.evaluation import Evaluation, Scorer
from onnxq.tune.metrics_builtin import Batch, Metric
from onnxq.tune.prefixes import Copies, Layer
from onnxq.tune.ranking import METHODS, Method, Sensitivity, ranked
from onnxq.tune.taylor import estimate

Progress = Callable[[str, int, int | None], None]

FEW_SAMPLES = 32
"""What the estimate takes of the data unless told otherwise: beyond, ranks hardly change."""
FEWEST = 16
"""What is enough to measure the layers that cannot be estimated."""
SAMPLES = 64
"""What the methods that measure layer by layer take of calibration data unless told otherwise."""
MOST_NODES = 2000
"""Nodes of all copies in one session; more take the runtime long to load."""
MOST_WEIGHTS = 1 << 29
"""Bytes of their weights; together with those of the model they must fit into one message."""
MOST_ACTIVATIONS = 1 << 28
"""Bytes of what the copies read of the model; a batch has as many samples as fit."""


def rank_layers(
    measured: Measured,
    evaluation: Evaluation | str = "sqnr",
    *,
    method: Method = "first_order",
    recipe: RecipeLike | None = None,
    chosen: Chosen | None = None,
    samples: int | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Sensitivity:
    """Rank the layers of a model by what their quantization does to its output.

    A layer is a node that computes with codes: its inputs, its weight and the bias that was corrected for it are
    quantized with the numbers that the recipe gives. Nothing is calibrated again.

    Args:
        measured: The float model and its statistics.
        evaluation: What counts and on what; or the name of a metric, on the calibration data.
        method: See `Method`. ``first_order`` estimates effects on ``sqnr`` and ``kl``; for other metrics it ranks by
            one of these: the divergence where the metric is about classes, else the noise.
        recipe: How layers are quantized, if not as the model was measured for.
        chosen: What `Measured.choose` gave for that recipe, where it is at hand: it is not done again.
        samples: Use the first so many samples; by default all of an evaluation, and a few of calibration data.
        threads: Threads of ONNX Runtime; 0 for all cores.
        progress: Is told how far it is.

    Raises:
        RecipeError: If the method does not exist, or the recipe does not fit.
        DataError: If there are no data, or the metric does not fit the model.
    """
    if method not in METHODS:
        raise RecipeError(f"there is no method {method!r}; use {', '.join(METHODS)}")
    wanted = _evaluation(measured, evaluation, method, samples, threads)
    wanted.check()
    chosen = measured.choose(recipe) if chosen is None else chosen
    copies = Copies(chosen)
    if method == "first_order":
        return _first_order(chosen, copies, wanted, progress)
    scorer = wanted.prepare(copies.graph, progress=progress)
    everything = frozenset(layer.name for layer in copies.layers)
    start = everything if method == "all_but_one" else frozenset[str]()
    trials = [_trial(copies, layer, start) for layer in copies.layers]
    whole = _Trial(everything, tuple(range(len(copies.protos))), 0)
    scores = list(scores_of(copies, scorer, [whole], frozenset(), threads=wanted.threads))
    scores += scores_of(copies, scorer, trials, start, threads=wanted.threads, progress=progress)
    effects = [_effect(scorer.metric, score, scorer.reference) for score in scores]
    if method == "all_but_one":
        effects = [effects[0] - effect for effect in effects]
    rows = ranked(
        (layer.name, layer.op_type, effect, score)
        for layer, effect, score in zip(copies.layers, effects[1:], scores[1:], strict=True)
    )
    notes = tuple(dict.fromkeys((*chosen.notes, *scorer.notes)))
    return Sensitivity(rows, method, scorer.metric, scorer.reference, scores[0], scorer.samples, notes)


@dataclass(frozen=True, slots=True)
class _Trial:
    """A copy of the model to be scored: its quantized layers, and the nodes that differ from what it stands beside."""

    quantized: frozenset[str]
    nodes: tuple[int, ...]
    weight_bytes: int


def _trial(copies: Copies, layer: Layer, start: frozenset[str]) -> _Trial:
    """One layer more, or less, than what it stands beside."""
    return _Trial(start ^ {layer.name}, layer.nodes, 0 if layer.name in start else copies.weight_bytes(layer))


def scores_of(
    copies: Copies,
    scorer: Scorer,
    trials: Sequence[_Trial],
    start: frozenset[str],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> Iterator[float]:
    """Score copies of a model, many in one session.

    Args:
        copies: Writes them.
        scorer: Has the data, and scores.
        trials: What to score.
        start: The layers that are quantized in what the trials share.
        threads: Threads of a run; 0 for all cores.
        progress: Is told how far it is.
    """
    done = 0
    for group in _groups(trials):
        copies.fresh()
        names: Mapping[str, str] = {}
        if start:
            names = copies.write(start, range(len(copies.protos)), {}, "onnxq.start")
        outputs: list[dict[str, str]] = []
        for number, trial in enumerate(group):
            made = {**names, **copies.write(trial.quantized, trial.nodes, names, f"onnxq.{number}")}
            outputs.append({name: made.get(name, name) for name in copies.outputs})
        wanted = list(dict.fromkeys(chain.from_iterable(out.values() for out in outputs)))
        session = make_session(copies.graph, threads=1, outputs=wanted, extra=copies.nodes)
        meters = [scorer.meter() for _ in group]
        for batch, values in _runs(session, wanted, scorer.rounds(), thread_count(threads)):
            found = dict(zip(wanted, values, strict=True))
            for meter, out in zip(meters, outputs, strict=True):
                meter.add(replace(batch, outputs={name: found[copy] for name, copy in out.items()}))
        yield from map(scorer.result, meters)
        done += len(group)
        if progress is not None:
            progress("trying layers", done, len(trials))


def _runs(
    session: Session, names: Sequence[str], batches: Iterator[Batch], workers: int
) -> Iterator[tuple[Batch, list[Any]]]:
    """Run batches side by side, each on one core: so their number changes no bit; in order."""
    with ThreadPoolExecutor(workers) as pool:
        while group := list(islice(batches, workers)):
            yield from zip(group, pool.map(lambda batch: session.run(names, batch.feed), group), strict=True)


def _groups(trials: Sequence[_Trial]) -> Iterator[list[_Trial]]:
    group: list[_Trial] = []
    nodes = weights = 0
    for trial in trials:
        nodes += len(trial.nodes)
        weights += trial.weight_bytes
        if group and (nodes > MOST_NODES or weights > MOST_WEIGHTS):
            yield group
            group, nodes, weights = [], len(trial.nodes), trial.weight_bytes
        group.append(trial)
    if group:
        yield group


def _effect(metric: Metric, score: float, reference: float) -> float:
    """How much worse a score is than the float model's."""
    if metric.name == "sqnr":
        return float(10.0 ** (-score / 10.0))
    return reference - score if metric.higher_is_better else score - reference


def _evaluation(
    measured: Measured, evaluation: Evaluation | str, method: Method, samples: int | None, threads: int
) -> Evaluation:
    few = FEW_SAMPLES if method == "first_order" else None
    if isinstance(evaluation, Evaluation):
        found = replace(evaluation, samples=samples or evaluation.samples or few)
    else:
        reader = measured.context.reader
        if reader is None:
            raise DataError(
                "effects on the output need data, and the model was measured without; give samples (--data)"
            )
        found = Evaluation(reader, metric=evaluation, samples=samples or few or SAMPLES)
    size = 4 * sum(s.count for s in measured.context.stats.values()) // max(measured.context.samples, 1)
    batch = min(found.batch, max(1, MOST_ACTIVATIONS // max(size, 1)))
    return replace(found, threads=threads or found.threads, batch=batch)


def _first_order(chosen: Chosen, copies: Copies, wanted: Evaluation, progress: Progress | None) -> Sensitivity:
    found = estimate(copies, wanted, progress=progress)
    effects = {layer.name: effect for layer, effect in zip(copies.layers, found.effects, strict=True)}
    rest = [layer for layer in copies.layers if effects[layer.name] is None]
    notes = list(chosen.notes)
    name = wanted.metric if isinstance(wanted.metric, str) else "the function"
    if name != found.metric.name:
        notes.append(f"{name} has no slopes: effects are those on {found.metric.name}")
    samples = found.samples
    if rest:
        few = replace(wanted, metric=found.metric.name, samples=min(wanted.samples or FEWEST, FEWEST))
        scorer = few.prepare(copies.graph, progress=progress)
        trials = [_trial(copies, layer, frozenset()) for layer in rest]
        scores = scores_of(copies, scorer, trials, frozenset(), threads=wanted.threads, progress=progress)
        for layer, score in zip(rest, scores, strict=True):
            effects[layer.name] = _effect(scorer.metric, score, scorer.reference)
        ops = ", ".join(found.blocking) or "its operator set"
        notes.append(f"{len(rest)} layers were measured on {scorer.samples} samples: no slopes are known through {ops}")
        samples = max(samples, scorer.samples)
    rows = ranked(
        (layer.name, layer.op_type, effect, _score_of(found.metric, effect))
        for layer in copies.layers
        if (effect := effects[layer.name]) is not None
    )
    reference = math.inf if found.metric.name == "sqnr" else 0.0
    return Sensitivity(rows, "first_order", found.metric, reference, math.nan, samples, tuple(notes))


def _score_of(metric: Metric, effect: float) -> float:
    """The score that an effect stands for."""
    if metric.name != "sqnr":
        return effect
    return -10.0 * math.log10(effect) if effect > 0 else math.inf
