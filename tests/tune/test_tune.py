"""Tuning tiny models: what is found, that it can be made again, and that it goes on where it stopped."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import DataError, RecipeError
from onnxq.graph import GraphModel
from onnxq.plan import Plan
from onnxq.recipe import Recipe
from onnxq.tune import Constraint, Evaluation, Scorer, Tuned, prober, tune
from onnxq.tune.costs import Edge, LayerCosts
from onnxq.tune.history import Trial
from onnxq.tune.page import tune_page
from onnxq.tune.search import Search
from tests.graphs import build, normal

NET = """g (float[N,3,8,8] x) => (float[N,4] y) {
    [c1] a = Conv<pads=[1,1,1,1]>(x, W1) [r1] b = Relu(a)
    [c2] c = Conv<pads=[1,1,1,1]>(b, W2) [r2] d = Relu(c)
    [c3] e = Conv(d, W3) [r3] f = Relu(e)
    [pool] h = GlobalAveragePool(f) [flat] i = Flatten(h) [head] y = Gemm(i, G) }"""
CALIB = {"x": normal(12, 3, 8, 8)}
EVALUATION = Evaluation({"x": normal(20, 3, 8, 8, seed=7)}, "sqnr")
QUICK = Search(focus=2, single=1, repairs=4, returns=4)


def net() -> onnx.ModelProto:
    """One channel behind c1 is 300 times as large as the others, and c2 next to ignores it."""
    first, second = normal(6, 3, 3, 3, seed=1), normal(6, 6, 3, 3, seed=2)
    first[0] *= 300
    second[:, 0] *= 1e-3
    return build(NET, W1=first, W2=second, W3=normal(8, 6, 1, 1, seed=3), G=normal(8, 4, seed=4))


class Costs:
    """Layers cost 1 with codes and 4 in float, or what is told; models are faster the later they are named."""

    def __init__(self, **floats: float) -> None:
        self._floats = floats

    def costs(self, prepared: GraphModel, quantized: GraphModel, plan: Plan, feed: Any) -> LayerCosts:
        names = [d.node for d in plan.decisions if d.role == "quantized"]
        floats = {name: self._floats.get(name, 4.0) for name in names}
        edges = tuple(Edge(a, b, 0.1) for a, b in itertools.pairwise(names))
        return LayerCosts(floats, dict.fromkeys(names, 1.0), edges)

    def times(self, graphs: Sequence[GraphModel], feed: Any) -> Sequence[float]:
        return [float(len(graphs) - i) for i in range(len(graphs))]


def tuned(score: float, **options: Any) -> Tuned:
    options = {"machine": Costs(), "search": QUICK, **options}
    return tune(net(), CALIB, options.pop("evaluation", EVALUATION), Constraint(min_score=score), **options)


@pytest.fixture
def only_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that can only leave layers float."""
    monkeypatch.setattr(prober, "ladder", lambda plan, target: ())
    monkeypatch.setattr(prober, "repairs_for", lambda layer, plan, target: ())


def content(result: Tuned) -> bytes:
    return result.result.model.SerializeToString(deterministic=True)


def test_a_change_that_costs_nothing_is_enough() -> None:
    found = tuned(30.0)
    assert found.met
    assert found.quantized
    assert found.left_float == ()
    assert found.recipe.equalize.enabled
    assert found.first.outcome.score < 30 <= found.score
    assert found.score == pytest.approx(EVALUATION.prepare(GraphModel.from_proto(net())).score(found.result.graph))
    assert (found.evaluations, found.resumed, found.out_of_time) == (len(found.history) + 2, 0, False)
    assert found.times is not None
    assert (found.times.float_ms, found.times.default_ms, found.times.tuned_ms) == (3.0, 2.0, 1.0)


def test_a_model_that_is_good_as_it_is_has_one_latency() -> None:
    found = tuned(0.0)
    assert found.chosen is not None
    assert found.chosen.digest == found.first.digest
    assert found.times is not None
    assert (found.times.float_ms, found.times.default_ms, found.times.tuned_ms) == (2.0, 1.0, 1.0)


@pytest.mark.usefixtures("only_float")
def test_only_the_layers_that_hurt_stay_float() -> None:
    found = tuned(30.0)
    assert found.met
    assert set(found.left_float) <= {"c1", "c2"}
    assert found.left_float
    assert all(rule.note == "tuning left it float" for rule in found.recipe.rules)


def test_the_recipe_makes_the_same_bytes(tmp_path: Path) -> None:
    found = tuned(40.0)
    (tmp_path / "recipe.yaml").write_text(found.recipe.to_yaml(defaults=False), encoding="utf-8")
    again = onnxq.quantize(net(), CALIB, recipe=Recipe.from_file(tmp_path / "recipe.yaml"))
    assert again.model.SerializeToString(deterministic=True) == content(found)


def test_an_interrupted_search_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tuned(40.0)
    rated: list[GraphModel] = []
    rate = Scorer.rate
    monkeypatch.setattr(Scorer, "rate", lambda self, graph: rated.append(graph) or rate(self, graph))

    def interrupt(trial: Trial) -> None:
        if trial.number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(40.0, state=tmp_path / "state.json", on_trial=interrupt)
    assert len(rated) == 4
    found = tuned(40.0, state=tmp_path / "state.json")
    assert len(rated) == len(whole.history)
    assert found.resumed == 4
    assert [t.digest for t in found.history] == [t.digest for t in whole.history]
    assert content(found) == content(whole)
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_a_state_of_other_data_is_refused(tmp_path: Path) -> None:
    tuned(0.0, state=tmp_path / "state.json")
    other = Evaluation({"x": normal(20, 3, 8, 8, seed=8)}, "sqnr")
    with pytest.raises(DataError, match="with another evaluation; name another file"):
        tuned(0.0, state=tmp_path / "state.json", evaluation=other)
    with pytest.raises(DataError, match="with another recipe"):
        tuned(0.0, state=tmp_path / "state.json", recipe={"skip": ["head"]})


def test_the_budget_gives_the_best_so_far() -> None:
    clock = itertools.count().__next__
    found = tuned(60.0, budget=14.0, clock=lambda: float(clock()))
    assert found.out_of_time
    assert found.quantized
    assert not found.met
    assert 1 < len(found.history) < 12
    assert found.score == max(trial.outcome.score for trial in found.history)
    assert found.missing == pytest.approx(60.0 - found.score)


@pytest.mark.usefixtures("only_float")
def test_if_nothing_is_good_enough_the_float_model_is_the_result(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "net.onnx")
    constraint = Constraint(min_score=500.0)
    found = tune(tmp_path / "net.onnx", CALIB, EVALUATION, constraint, machine=Costs(), search=QUICK)
    assert not found.quantized
    assert found.met
    assert found.score == found.reference == math.inf
    assert set(found.left_float) >= {"c1", "c2", "c3", "head"}
    assert "no quantized model keeps to a score of 500" in found.notes[0]
    found.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()


def test_a_layer_that_is_faster_in_float_stays_so_unless_size_counts() -> None:
    machine = Costs(c3=0.5)
    assert tuned(0.0, machine=machine).left_float == ("c3",)
    assert tuned(0.0, machine=machine, objective="size").left_float == ()


@pytest.mark.usefixtures("only_float")
def test_for_size_the_smaller_layer_is_given_up() -> None:
    found = tuned(30.0, objective="size")
    assert found.met
    assert found.chosen is not None
    met = [trial.outcome.size for trial in found.history if trial.met]
    assert found.chosen.outcome.size == min(met)


def test_targets_that_do_not_run_here_are_counted_and_run_by_their_twin() -> None:
    evaluation = Evaluation(EVALUATION.data, "sqnr")
    found = tune(net(), CALIB, evaluation, Constraint(min_score=5.0), recipe={"target": "ascend"}, search=QUICK)
    assert found.met
    assert found.result.twin is not None
    assert found.times is None
    assert found.costs.unit == "operations"
    assert any("does not run here: costs of layers are counted" in note for note in found.notes)


def test_a_model_without_anything_to_quantize() -> None:
    model = build("g (float[N,3] x) => (float[N,3] y) { y = Erf (x) }")
    data = {"x": normal(8, 3)}
    found = tune(model, data, Evaluation(data, "agreement"), "0.5%", machine=Costs())
    assert (found.met, found.quantized, found.left_float) == (True, False, ())
    assert "nothing in this model can be quantized: it stays as it is" in found.notes


def test_a_metric_that_fails_ends_the_search_and_what_is_known_is_kept(tmp_path: Path) -> None:
    source = "calls = []\ndef f(o, l):\n    calls.append(1)\n    return 1 / len(calls) if len(calls) < 4 else absent\n"
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    evaluation = Evaluation(EVALUATION.data, f"{tmp_path / 'mine.py'}:f")
    with pytest.raises(DataError, match=r"mine\.py:f failed: NameError"):
        tune(net(), CALIB, evaluation, "0.5%", machine=Costs(), state=tmp_path / "s")
    assert len(json.loads((tmp_path / "s").read_text(encoding="utf-8"))["evaluations"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": {"scheme": "weight_only"}}, "tuning searches recipes of scheme static, not weight_only"),
        ({"recipe": {"skip": ["absent"]}}, "absent"),
        ({"constraint": "1%"}, "sqnr is infinite, a drop from it has no meaning"),
        ({"evaluation": Evaluation(np.zeros((4, 5), np.float32), "sqnr")}, "the model wants"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    evaluation, constraint = options.pop("evaluation", EVALUATION), options.pop("constraint", Constraint(min_score=1.0))
    with pytest.raises((RecipeError, DataError), match=message):
        tune(net(), CALIB, evaluation, constraint, machine=Costs(), **options)


def test_the_report_has_the_search_the_front_and_the_layers() -> None:
    found = tuned(40.0)
    page = tune_page(found, "net.onnx")
    titles = {section.title: section for section in page.sections}
    assert list(titles) == ["Front", "Search", "Layers", "Recipe"]
    assert len(titles["Search"].blocks[0].rows) == len(found.history)
    assert {row[0] for row in titles["Layers"].blocks[0].rows} == set(found.costs.integer_cost)
    assert "net.onnx: the fastest model for target ort with a score of 40" in page.subtitle
