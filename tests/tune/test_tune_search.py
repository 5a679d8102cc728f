"""The search on a model that is only told about: which layers hurt, what helps, what costs what."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from onnxq.errors import DataError, RecipeError
from onnxq.recipe import ActivationConfig, MinMax, Recipe, WeightConfig, WeightMSE
from onnxq.tune.constraint import Constraint
from onnxq.tune.costs import OUTSIDE, Edge, LayerCosts
from onnxq.tune.evaluation import Metric
from onnxq.tune.history import Outcome, State, Trial, pareto
from onnxq.tune.repairs import Change, Repair, Variant
from onnxq.tune.search import Search
from onnxq.tune.trials import Trials

WIDE = Repair("16 bits", "width", activations=ActivationConfig(type="uint16"))
BY_MINMAX = Repair("range by minmax", "range", activations=ActivationConfig(method=MinMax()))
BY_MSE = Repair("weight scale by mse", "weights", weights=WeightConfig(method=WeightMSE()))
POINTS = Metric("points", higher_is_better=True)


@dataclass
class Told:
    """A prober that computes scores from a table: 100 minus the damage of all layers.

    A layer's damage is 0 in float and a hundredth with 16 bits; a change of the recipe or a repair multiplies it.
    """

    damage: Mapping[str, float]
    costs: LayerCosts
    helps: Mapping[str, float] = field(default_factory=dict)
    available: tuple[Change, ...] = ()
    repairs_of: Mapping[str, tuple[Repair, ...]] = field(default_factory=dict)
    wide_repair: Repair | None = None
    measured: Sequence[float] | None = None
    seconds: float = 1.0
    recipe: Recipe = field(default_factory=Recipe)
    metric: Metric = POINTS
    reference: float = 100.0
    evaluated: list[Recipe] = field(default_factory=list)
    now: float = 0.0

    @property
    def layers(self) -> Sequence[str]:
        return tuple(self.damage)

    @property
    def weight_bytes(self) -> Mapping[str, int]:
        return dict.fromkeys(self.damage, 1000)

    def evaluate(self, recipe: Recipe) -> Outcome:
        self.evaluated.append(recipe)
        self.now += self.seconds
        if recipe.fp16_scales:
            return Outcome(math.nan, math.inf, 0, self.seconds, "not for this backend")
        rules = {rule.match.node: rule for rule in recipe.rules}
        lost, size = 0.0, 1000
        for name, damage in self.damage.items():
            rule = rules.get(name)
            if rule is not None and rule.skip:
                size += 1000
                continue
            lost += damage * self._factor(recipe, rule)
        return Outcome(100.0 - lost, lost, size, self.seconds)

    def _factor(self, recipe: Recipe, rule: object) -> float:
        factor = self.helps["equalize"] if recipe.equalize.enabled and "equalize" in self.helps else 1.0
        activations, weights = getattr(rule, "activations", None), getattr(rule, "weights", None)
        if activations is not None and activations.type == "uint16":
            factor *= 0.01
        if activations is not None and activations.method == MinMax():
            factor *= self.helps.get("minmax", 1.0)
        if weights is not None:
            factor *= self.helps.get("mse", 1.0)
        return factor

    def rank(self, recipe: Recipe) -> Mapping[str, float]:
        self.now += self.seconds
        return self.damage

    def times(self, recipes: Sequence[Recipe]) -> Sequence[float] | None:
        return self.measured

    def changes(self) -> Sequence[Change]:
        return self.available

    def repairs(self, layer: str) -> Sequence[Repair]:
        return self.repairs_of.get(layer, ())

    def wide(self) -> Repair | None:
        return self.wide_repair


EQUALIZE = Change("equalization", "equalize", lambda r: r.replace(equalize=r.equalize.replace(enabled=True)))
REFUSED = Change("fp16", "fp16", lambda r: r.replace(fp16_scales=True))
IMPOSSIBLE = Change("impossible", "x", lambda r: r.replace(fp16_scales="yes"))


def costs(names: Sequence[str], **changes: tuple[float, float]) -> LayerCosts:
    """Float costs 4, integers 1; an edge of 0.5 between neighbours."""
    edges = [Edge(a, b, 0.5) for a, b in zip([OUTSIDE, *names], [*names, OUTSIDE], strict=True)]
    table = {name: changes.get(name, (4.0, 1.0)) for name in names}
    return LayerCosts({n: f for n, (f, _) in table.items()}, {n: i for n, (_, i) in table.items()}, tuple(edges))


def layers(count: int, **special: float) -> dict[str, float]:
    return {f"l{i}": special.get(f"l{i}", 0.01) for i in range(count)}


def search(prober: Told, drop: str = "0.5", path: Path | None = None, **options: object) -> Trials:
    state = State({"model": "m"}, path)
    clock = options.pop("clock", lambda: prober.now)
    trials = Trials(prober, state, Constraint.parse(drop), clock=clock, **options)  # type: ignore[arg-type]
    Search().run(trials)
    return trials


def told(damage: dict[str, float], **changes: object) -> Told:
    return Told(damage, changes.pop("costs", costs(list(damage))), **changes)  # type: ignore[arg-type]


def floats(trials: Trials) -> set[str]:
    best = trials.best()
    assert best is not None
    return set(best.variant.floats)


def test_what_is_good_enough_needs_no_search() -> None:
    prober = told(layers(8))
    trials = search(prober)
    assert [t.what for t in trials.history] == ["as configured"]
    assert floats(trials) == set()


def test_one_bad_layer_is_found_and_it_alone_stays_float() -> None:
    prober = told(layers(40, l17=5.0))
    trials = search(prober)
    assert floats(trials) == {"l17"}
    assert len(prober.evaluated) <= 3


def test_many_bad_layers_take_a_logarithm_of_evaluations() -> None:
    bad = {f"l{i}": 1.0 for i in range(0, 120, 4)}
    prober = told(layers(120, **bad))
    trials = search(prober, "2")
    best = trials.best()
    assert best is not None
    assert best.met
    assert floats(trials) < set(bad)
    assert len(bad) - len(floats(trials)) == 1  # two points may go, one is lost by a layer, one by all the others
    assert len(prober.evaluated) <= 2 + 2 * math.log2(120) + Search().returns


def test_layers_that_turn_out_not_to_be_needed_get_their_codes_back() -> None:
    """The ranking puts harmless layers first."""

    class Misled(Told):
        def rank(self, recipe: Recipe) -> Mapping[str, float]:
            return {name: float(10 - i) for i, name in enumerate(self.damage)}

    damage = layers(10, l5=5.0)
    trials = search(Misled(damage, costs(list(damage))))
    assert floats(trials) == {"l5"}


def test_free_changes_come_before_float() -> None:
    prober = told(layers(10, l3=1.0), available=(EQUALIZE,), helps={"equalize": 0.2})
    trials = search(prober)
    best = trials.best()
    assert best is not None
    assert (best.what, best.variant.floats) == ("equalization", frozenset())
    assert len(trials.history) == 2


def test_a_change_that_helps_is_kept_and_one_that_does_not_is_not() -> None:
    for helps, kept in ((0.5, True), (1.5, False)):
        prober = told(layers(10, l3=8.0), available=(EQUALIZE,), helps={"equalize": helps})
        best = search(prober).best()
        assert best is not None
        assert bool(best.variant.changes) == kept
        assert best.variant.floats == {"l3"}


def test_what_the_backend_refuses_is_noted_and_passed_over() -> None:
    prober = told(layers(10, l3=8.0), available=(REFUSED, IMPOSSIBLE))
    trials = search(prober)
    assert floats(trials) == {"l3"}
    refused = {t.what: t.outcome.refused for t in trials.history if t.outcome.refused}
    assert refused["fp16"] == "not for this backend"
    assert "fp16_scales" in refused["impossible"]
    assert not any(t.met for t in trials.history if t.outcome.refused)


def test_the_worst_layers_are_repaired_in_8_bits_before_any_stays_float() -> None:
    damage = layers(10, l3=2.0, l6=1.0)
    repairs = {"l3": (BY_MINMAX, BY_MSE), "l6": (BY_MINMAX,)}
    prober = told(damage, repairs_of=repairs, helps={"minmax": 0.1})
    trials = search(prober)
    best = trials.best()
    assert best is not None
    assert best.variant.floats == frozenset()
    assert best.variant.repairs == {"l3": (BY_MINMAX,), "l6": (BY_MINMAX,)}
    assert [t.what for t in trials.history] == ["as configured", "range by minmax: 2 layers"]


def test_repairs_of_different_parts_are_made_together() -> None:
    damage = layers(10, l3=20.0)
    prober = told(damage, repairs_of={"l3": (BY_MINMAX, BY_MSE)}, helps={"minmax": 0.1, "mse": 0.1})
    best = search(prober).best()
    assert best is not None
    assert set(best.variant.repairs["l3"]) == {BY_MINMAX, BY_MSE}
    (rule,) = best.variant.recipe(Recipe(), prober.layers).rules
    assert rule.activations == ActivationConfig(method=MinMax())
    assert rule.weights == WeightConfig(method=WeightMSE())


@pytest.mark.parametrize(("wide", "floats"), [(2.0, set()), (None, {"l3"})])
def test_16_bits_are_taken_where_they_cost_less_than_float(wide: float | None, floats: set[str]) -> None:
    damage = layers(10, l3=8.0)
    table = costs(list(damage))
    native = LayerCosts(table.float_cost, table.integer_cost, table.edges, wide=wide)
    best = search(told(damage, costs=native, wide_repair=WIDE)).best()
    assert best is not None
    assert best.variant.floats == floats
    assert best.variant.wide == {"l3"} - floats


# ---- cost ---------------------------------------------------------------------------------------

FAST_FLOAT = costs([f"l{i}" for i in range(6)], l1=(2.0, 5.0), l2=(2.0, 2.5))


def test_what_is_faster_in_float_stays_float() -> None:
    trials = search(told(layers(6), costs=FAST_FLOAT, measured=(10.0, 9.0)))
    assert floats(trials) == {"l1", "l2"}
    best = trials.best()
    assert best is not None
    assert best.cost == FAST_FLOAT.total({"l1", "l2"}) < FAST_FLOAT.total(())


def test_what_only_the_costs_call_faster_is_not_taken() -> None:
    trials = search(told(layers(6), costs=FAST_FLOAT, measured=(10.0, 10.5)))
    assert floats(trials) == set()
    assert len(trials.history) == 2


def test_for_size_speed_does_not_matter() -> None:
    assert floats(search(told(layers(6), costs=FAST_FLOAT, measured=(10.0, 9.0)), objective="size")) == set()


def test_where_all_layers_are_faster_in_float_the_model_is_quantized_all_the_same() -> None:
    names = [f"l{i}" for i in range(4)]
    slow = costs(names, **dict.fromkeys(names, (1.0, 9.0)))
    assert floats(search(told(layers(4), costs=slow, measured=(10.0, 1.0)))) == set()


def test_of_equally_bad_layers_the_cheaper_one_stays_float() -> None:
    damage = layers(6, l1=2.0, l4=2.0)
    uneven = costs(list(damage), l1=(50.0, 1.0))
    assert floats(search(told(damage, costs=uneven), "3")) == {"l4"}


def test_neighbours_follow_where_that_is_cheaper() -> None:
    """Between two float layers an integer one only costs conversions."""
    damage = layers(5, l1=9.0, l3=9.0)
    table = costs(list(damage), l2=(1.5, 1.0), l0=(1.0, 9.0))
    assert floats(search(told(damage, costs=table, measured=(10.0, 9.0)))) == {"l0", "l1", "l2", "l3"}


# ---- no model -----------------------------------------------------------------------------------


def test_if_only_float_is_good_enough_nothing_is_found() -> None:
    trials = search(told(layers(6, **{f"l{i}": 9.0 for i in range(6)})))
    assert trials.best() is None
    assert not trials.out_of_time
    closest = trials.closest()
    assert closest is not None
    assert closest.outcome.score == max(t.outcome.score for t in trials.history)


def test_more_than_the_float_model_cannot_be_asked_for() -> None:
    with pytest.raises(RecipeError, match=r"the float model itself has a points of 100.00, 1 short of a score of 101"):
        Trials(told(layers(3)), State({}), Constraint(min_score=101))


# ---- time ---------------------------------------------------------------------------------------


def test_the_budget_ends_the_search_before_it_is_over() -> None:
    bad = {f"l{i}": 1.0 for i in range(0, 60, 2)}
    for budget in (1.0, 3.0, 5.5):
        prober = told(layers(60, **bad))
        trials = search(prober, "2", budget=budget)
        assert trials.out_of_time
        assert trials.best() is None
        assert prober.now <= max(1.0, budget - 1.0)  # what is left is for making the result
        assert trials.history
    prober = told(layers(60, **bad))
    assert not search(prober, "2", budget=1000.0).out_of_time


def test_slow_recipes_leave_time_to_find_out_what_must_stay_float() -> None:
    slow = Change("slow", "equalize", EQUALIZE.apply, slow=6.0)
    trials = search(told(layers(4, l0=9.0), available=(slow,)), budget=12.0)
    assert floats(trials) == {"l0"}
    assert "slow" not in [t.what for t in trials.history]
    assert trials.out_of_time
    trials = search(told(layers(4, l0=9.0), available=(slow,)), budget=100.0)
    assert "slow" in [t.what for t in trials.history]
    assert not trials.out_of_time


# ---- state --------------------------------------------------------------------------------------


def hard() -> Told:
    bad = {f"l{i}": 1.0 for i in range(0, 30, 3)}
    return told(layers(30, **bad), available=(EQUALIZE,), helps={"equalize": 0.9}, measured=(2.0, 1.0))


def test_a_search_that_goes_on_repeats_nothing_and_ends_the_same(tmp_path: Path) -> None:
    whole = search(hard(), "1")
    for stop in (1, 3, len(whole.history) - 1):
        path = tmp_path / f"{stop}.json"
        first = hard()

        def interrupt(trial: Trial, stop: int = stop) -> None:
            if trial.number == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            search(first, "1", path, on_trial=interrupt)
        second = hard()
        resumed = search(second, "1", path)
        assert [t.digest for t in resumed.history] == [t.digest for t in whole.history]
        assert resumed.best() == whole.best()
        assert len(first.evaluated) + len(second.evaluated) == len(whole.history)


def test_another_constraint_starts_from_what_is_known(tmp_path: Path) -> None:
    search(hard(), "1", tmp_path / "state")
    again = hard()
    trials = search(again, "9", tmp_path / "state")
    assert trials.best() is not None
    assert not again.evaluated[2:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not the state of a search"),
        ("[]", "is not the state of a search of this version"),
        (json.dumps({"version": 1, "key": {"model": "other"}, "evaluations": {}}), "of a search with another model"),
        (json.dumps({"version": 1, "key": {"model": "m"}, "evaluations": {"d": {}}}), "is damaged.*remove it"),
    ],
)
def test_states_that_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        State({"model": "m"}, path)
    assert path.read_text(encoding="utf-8") == content


def test_scores_without_end_survive_the_file(tmp_path: Path) -> None:
    state = State({}, tmp_path / "s")
    kept = {"a": Outcome(math.inf, 0.0, 7, 1.0), "b": Outcome(-math.inf, math.inf, 7, 1.0)}
    for digest, outcome in kept.items():
        state.add_outcome(digest, outcome)
    again = State({}, tmp_path / "s")
    assert {digest: again.outcome(digest) for digest in kept} == kept
    assert again.resumed == 2
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def trial(number: int, cost: float, score: float, refused: str = "") -> Trial:
    return Trial(
        number, "", Variant(), str(number), Outcome(score, 0.0, 0, 0.0, refused), met=True, cost=cost, latency=cost
    )


def test_numbers_that_are_not_finite_are_null_in_documents() -> None:
    found = trial(1, 5.0, math.inf).to_dict()
    assert (found["score"], found["damage"], found["latency"]) == (None, 0.0, 5.0)
    json.dumps(found, allow_nan=False)


def test_the_front_is_what_nothing_beats() -> None:
    tried = [trial(1, 5, 90), trial(2, 3, 80), trial(3, 4, 80), trial(4, 9, 90), trial(5, 9, 95), trial(6, 1, 99, "no")]
    assert [t.number for t in pareto(tried, higher_is_better=True)] == [2, 1, 5]
    assert [t.number for t in pareto(tried, higher_is_better=False)] == [2]


def test_where_time_is_short_slow_changes_are_given_up_for_float() -> None:
    """There is time to try the slow change, but not to carry it through all trials that follow."""
    slow = Change("slow", "equalize", EQUALIZE.apply, slow=6.0)
    bad = {f"l{i}": 3.0 for i in range(0, 16, 2)}
    prober = told(layers(16, **bad), available=(slow,), helps={"equalize": 0.9})
    trials = search(prober, budget=45.0)
    best = trials.best()
    assert "slow" in [t.what for t in trials.history]
    assert best is not None
    assert best.variant.changes == ()
    assert best.variant.floats <= set(bad)
