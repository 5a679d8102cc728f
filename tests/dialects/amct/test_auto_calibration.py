"""The search for what stays in float, on models whose losses are known by layer."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.dialects.amct.auto_calibration import (
    AS_CONFIGURED,
    FINAL_CONFIG,
    HISTORY,
    RANKING,
    ROLLED_BACK,
    BinarySearch,
    Choice,
    Fix,
    Repair,
    apply_settings,
    auto_calibrate,
    strategy_of,
    write_files,
)
from onnxq.errors import CalibrationError, RecipeError


class Synthetic:
    """A model whose metric is 100 minus what its layers cost.

    Args:
        cost: What each layer costs, the one that is ranked as most sensitive first.
        fixes: What remains of a layer's cost, as a factor, by layer and fix.
        pairs: What two quantized layers cost together.
    """

    def __init__(self, cost, fixes=None, pairs=None):
        self.cost = cost
        self.factors = fixes or {}
        self.pairs = pairs or {}
        self.probed: list[dict[str, Choice]] = []
        self.calibrations = 1

    def original(self):
        return 100.0

    def sensitivities(self):
        return {name: 0.5 + i / 1000 for i, name in reversed(list(enumerate(self.cost)))}

    def fixes(self, layer):
        return self.factors.get(layer, {}).keys()

    def probe(self, settings):
        self.probed.append(dict(settings))
        return self.metric(settings)

    def metric(self, settings):
        total = 0.0
        left = [name for name in self.cost if settings.get(name, AS_CONFIGURED).quantize]
        for name in left:
            value = self.cost[name]
            for fix in settings.get(name, AS_CONFIGURED).fixes:
                value *= self.factors[name][fix]
            total += value
        return 100.0 - total - sum(v for (a, b), v in self.pairs.items() if a in left and b in left)


def within(allowed: float):
    def metric_eval(original: Any, new: Any):
        return original - new <= allowed + 1e-9, original - new

    return metric_eval


def prefixes(prober: Synthetic) -> list[int]:
    """How many layers each probe rolled back; they must be the first ones of the ranking."""
    lengths = []
    for probed in prober.probed:
        count = len(probed)
        assert probed == dict.fromkeys(list(prober.cost)[:count], ROLLED_BACK)
        lengths.append(count)
    return lengths


class TestBinarySearch:
    @pytest.mark.parametrize(
        ("layers", "needed", "probes", "rolled_back"),
        [
            (8, 0, [0], 0),
            (8, 1, [0, 4, 2, 1], 1),
            (8, 2, [0, 4, 2, 1, 2], 2),
            (8, 3, [0, 4, 2, 3], 3),
            (8, 4, [0, 4, 2, 3, 4], 4),
            (8, 5, [0, 4, 6, 5], 5),
            (8, 6, [0, 4, 6, 5, 6], 6),
            (8, 7, [0, 4, 6, 7], 7),
            (8, 8, [0, 4, 6, 7], None),
            (1, 0, [0], 0),
            (1, 1, [0], None),
            (2, 1, [0, 1], 1),
            (2, 2, [0, 1], None),
            (3, 1, [0, 2, 1], 1),
            (3, 2, [0, 2, 1, 2], 2),
            (3, 3, [0, 2], None),
            (5, 4, [0, 3, 4], 4),
        ],
    )
    def test_probes_are_those_of_amct(self, layers, needed, probes, rolled_back):
        """Prefix lengths worked out by hand; where the last probe failed, the best is run again."""
        names = [f"l{i}" for i in range(layers)]
        prober = Synthetic(dict.fromkeys(names, 0.0) | ({names[needed - 1]: 1.0} if needed else {}))
        result = auto_calibrate(prober, within(0), BinarySearch())
        assert prefixes(prober) == probes
        assert result.evaluations == 1 + len(probes)
        assert result.calibrations == 1
        assert result.found == (rolled_back is not None)
        assert len(result.rolled_back) == (layers if rolled_back is None else rolled_back)
        assert list(result.rolled_back) == names[: len(result.rolled_back)]

    def test_the_last_run_is_that_of_the_result(self):
        for needed in range(1, 8):
            prober = Synthetic({f"l{i}": float(i == needed - 1) for i in range(8)})
            result = auto_calibrate(prober, within(0), BinarySearch())
            assert prober.probed[-1] == dict(result.trial.settings)

    def test_without_layers_there_is_nothing_to_roll_back(self):
        prober = Synthetic({})
        prober.metric = lambda settings: 0.0
        result = auto_calibrate(prober, within(0), BinarySearch())
        assert not result.found
        assert result.settings == {}

    def test_all_rolled_back_is_in_the_history_and_not_probed(self):
        prober = Synthetic({"a": 0.0, "b": 1.0})
        result = auto_calibrate(prober, within(0), BinarySearch())
        assert result.trial is None
        assert [trial.rolled_back for trial in result.history] == [(), ("a",), ("a", "b")]
        assert [trial.ok for trial in result.history] == [False, False, True]
        assert len(prober.probed) == 2


class TestRepair:
    def test_one_fix_everywhere_can_be_enough(self):
        fixes = {name: {Fix.HFMG: 2.0, Fix.TWO_SIDED: 0.1} for name in "abcd"}
        prober = Synthetic(dict.fromkeys("abcd", 1.0), fixes)
        result = auto_calibrate(prober, within(0.5), Repair())
        assert result.found
        assert result.rolled_back == ()
        assert set(result.fixed.values()) == {frozenset({Fix.TWO_SIDED})}
        assert result.evaluations == 2 + 2  # HFMG made it worse
        plain = auto_calibrate(Synthetic(dict.fromkeys("abcd", 1.0), fixes), within(0.5), BinarySearch())
        assert not plain.found

    def test_fixes_of_different_parts_add_up_and_of_one_part_replace_each_other(self):
        fixes = {"a": {Fix.HFMG: 0.8, Fix.MAX_RANGE: 0.5, Fix.BIAS_CORRECTION: 0.5, Fix.ADAROUND: 0.5}}
        prober = Synthetic({"a": 8.0, "b": 0.0}, fixes)
        result = auto_calibrate(prober, within(1.0), Repair())
        assert result.fixed == {"a": frozenset({Fix.MAX_RANGE, Fix.BIAS_CORRECTION, Fix.ADAROUND})}
        assert result.rolled_back == ()

    def test_a_fix_that_helps_one_layer_and_harms_others_is_found_for_it(self):
        names = [f"l{i}" for i in range(6)]
        fixes = {name: {Fix.HFMG: 20.0} for name in names} | {"l4": {Fix.HFMG: 0.0}}
        prober = Synthetic(dict.fromkeys(names, 0.1) | {"l4": 1.0}, fixes)
        result = auto_calibrate(prober, within(0.6), Repair())
        assert result.fixed == {"l4": frozenset({Fix.HFMG})}
        assert result.rolled_back == ()

    def test_the_layer_that_matters_is_found_though_it_is_ranked_low(self):
        cost = {f"l{i}": 0.01 for i in range(8)} | {"l6": 3.0}
        result = auto_calibrate(prober := Synthetic(cost), within(0.5), Repair())
        assert result.rolled_back == ("l6",)
        assert auto_calibrate(Synthetic(cost), within(0.5), BinarySearch()).rolled_back == tuple(cost)[:7]
        assert len(prober.probed) <= 1 + 8

    def test_several_layers_are_rolled_back_by_what_they_are_worth(self):
        cost = {f"l{i}": 0.01 for i in range(8)} | {"l2": 3.0, "l5": 2.0, "l7": 1.0}
        result = auto_calibrate(Synthetic(cost), within(0.2), Repair())
        assert set(result.rolled_back) == {"l2", "l5", "l7"}

    def test_beyond_the_focus_the_ranking_decides(self):
        cost = {f"l{i}": 0.0 for i in range(20)} | {"l12": 3.0, "l13": 3.0}
        prober = Synthetic(cost)
        result = auto_calibrate(prober, within(0), Repair(focus=4))
        assert set(result.rolled_back) == {"l12", "l13"}, "what was rolled back needlessly is quantized again"

    def test_what_is_quantized_again_keeps_its_fix(self):
        """Behind the focus everything up to the costly layer is rolled back, and then given back."""
        names = [f"l{i}" for i in range(6)]
        cost = dict.fromkeys(names, 1.0) | {"l4": 9.0}
        fixes = {name: {Fix.BIAS_CORRECTION: 0.0} for name in names if name != "l4"}
        result = auto_calibrate(Synthetic(cost, fixes), within(0.5), Repair(focus=2))
        assert result.rolled_back == ("l4",)
        assert result.fixed == {name: frozenset({Fix.BIAS_CORRECTION}) for name in names if name != "l4"}

    def test_nothing_is_measured_twice(self):
        cost = {f"l{i}": 0.3 * (i % 4) for i in range(12)}
        fixes = {f"l{i}": {Fix.HFMG: 0.9, Fix.PER_CHANNEL: 0.8, Fix.MAX_RANGE: 1.1} for i in range(0, 12, 2)}
        prober = Synthetic(cost, fixes)
        result = auto_calibrate(prober, within(0.7), Repair())
        assert len({frozenset(s.items()) for s in prober.probed}) == len(prober.probed)
        assert result.evaluations == 1 + len(prober.probed)
        assert result.calibrations == 1

    def test_the_budget_holds_and_leaves_room_for_the_plain_search(self):
        names = [f"l{i}" for i in range(64)]
        fixes = {name: {Fix.HFMG: 0.99, Fix.BIAS_CORRECTION: 0.99} for name in names}
        prober = Synthetic(dict.fromkeys(names, 1.0), fixes)
        result = auto_calibrate(prober, within(10), Repair(probes=5))
        assert result.found
        assert len(prober.probed) <= 1 + 5 + 2 * 7

    def test_a_loss_that_counts_the_other_way(self):
        def metric_eval(original, new):
            return original - new <= 0.2, new - original

        cost = {f"l{i}": 0.01 for i in range(8)} | {"l2": 3.0, "l5": 2.0, "l7": 1.0}
        usual, other = Synthetic(cost), Synthetic(cost)
        auto_calibrate(usual, within(0.2), Repair())
        auto_calibrate(other, metric_eval, Repair())
        assert other.probed == usual.probed

    def test_a_loss_that_tells_nothing(self):
        def metric_eval(original, new):
            return original - new <= 0.5, 0.0

        cost = {f"l{i}": 0.01 for i in range(8)} | {"l6": 3.0}
        assert auto_calibrate(prober := Synthetic(cost), metric_eval, Repair()).rolled_back == ("l6",)
        assert len(prober.probed) == 1 + 8

    def test_out_of_nan_every_number_is_better(self):
        def metric(settings):
            fixes = settings.get("a", AS_CONFIGURED).fixes
            return {frozenset({Fix.MAX_RANGE}): 98.0, frozenset({Fix.MAX_RANGE, Fix.BIAS_CORRECTION}): 99.9}.get(
                fixes, math.nan
            )

        prober = Synthetic({"a": 1.0, "b": 0.0}, {"a": {Fix.MAX_RANGE: 0.1, Fix.BIAS_CORRECTION: 0.1}})
        prober.metric = metric
        result = auto_calibrate(prober, within(0.5), Repair())
        assert result.fixed == {"a": frozenset({Fix.MAX_RANGE, Fix.BIAS_CORRECTION})}
        assert len(prober.probed) == 3

    def test_what_takes_long_is_tried_on_few_layers(self):
        names = [f"l{i}" for i in range(6)]
        prober = Synthetic(dict.fromkeys(names, 1.0), {name: {Fix.ADAROUND: 0.5} for name in names})
        auto_calibrate(prober, within(1), Repair(focus=2))
        rounded = [{name for name, choice in s.items() if Fix.ADAROUND in choice.fixes} for s in prober.probed]
        assert set().union(*rounded) == {"l0", "l1"}

    def test_nan_is_never_good_enough_and_infinitely_bad(self):
        prober = Synthetic({"a": 1.0, "b": 0.0, "c": 0.0}, {"a": {Fix.HFMG: math.nan, Fix.MAX_RANGE: 0.1}})
        result = auto_calibrate(prober, lambda a, b: (not a - b > 0.5, a - b), Repair())
        assert result.fixed == {"a": frozenset({Fix.MAX_RANGE})}
        assert [t.ok for t in result.history] == [False, False, True]

    def test_if_nothing_helps_there_is_no_model(self):
        prober = Synthetic({"a": 0.0, "b": 0.0})
        prober.metric = lambda settings: 0.0
        result = auto_calibrate(prober, within(0), Repair())
        assert not result.found
        assert result.rolled_back == ("a", "b")

    def test_one_layer(self):
        prober = Synthetic({"a": 1.0}, {"a": {Fix.HFMG: 0.5}})
        assert not auto_calibrate(prober, within(0), Repair()).found
        assert all(choice.quantize for s in prober.probed for choice in s.values())


values = st.floats(0, 4).map(lambda v: round(v, 2))


@st.composite
def synthetic(draw):
    names = [f"l{i}" for i in range(draw(st.integers(1, 14)))]
    cost = {name: draw(values) for name in names}
    factors = st.floats(0, 2).map(lambda v: round(v, 2))
    fixes = {name: draw(st.dictionaries(st.sampled_from(Fix), factors, max_size=3)) for name in names}
    pairs = {pair: draw(st.floats(-1, 1)) for pair in pairwise(names)} if draw(st.booleans()) else {}
    return cost, fixes, pairs


@given(synthetic(), st.floats(0, 8), st.integers(1, 6), st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_repair_never_leaves_more_in_float_and_what_it_finds_is_good_enough(model, allowed, focus, probes):
    prober = Synthetic(*model)
    result = auto_calibrate(prober, within(allowed), Repair(focus=focus, probes=probes))
    plain = auto_calibrate(Synthetic(*model), within(allowed), BinarySearch())
    assert result.found or not plain.found
    if result.found:
        assert len(result.rolled_back) <= len(plain.rolled_back)
        assert within(allowed)(100.0, prober.metric(result.settings))[0]
        assert len(result.rolled_back) < len(model[0])
    for probed in prober.probed:
        assert any(probed.get(name, AS_CONFIGURED).quantize for name in model[0])
        for layer, choice in probed.items():
            assert choice.fixes <= set(prober.fixes(layer))
            assert len({fix.part for fix in choice.fixes}) == len(choice.fixes)


class TestUsersFunctions:
    @pytest.mark.parametrize("strategy", [BinarySearch(), Repair()])
    def test_the_original_must_be_good_enough(self, strategy):
        with pytest.raises(CalibrationError, match=r"metric_eval\(original, original\) is not satisfied \(loss 0\)"):
            auto_calibrate(Synthetic({"a": 1.0}), lambda a, b: (False, a - b), strategy)

    def test_and_its_loss_a_number(self):
        prober = Synthetic({"a": 1.0})
        prober.original = lambda: math.nan
        with pytest.raises(CalibrationError, match="a loss of NaN"):
            auto_calibrate(prober, within(1), BinarySearch())
        prober.original = lambda: None
        with pytest.raises(CalibrationError, match=r"evaluate\(\) gave None"):
            auto_calibrate(prober, within(1), BinarySearch())
        assert prober.probed == []

    @pytest.mark.parametrize(
        ("verdict", "problem"),
        [
            (True, "must return two values"),
            ((True,), "must return two values"),
            (None, "must return two values"),
            ((True, "much"), "the loss 'much', which is no number"),
            ((True, None), "the loss None, which is no number"),
        ],
    )
    def test_a_verdict_is_two_values(self, verdict, problem):
        with pytest.raises(CalibrationError, match=problem):
            auto_calibrate(Synthetic({"a": 1.0}), lambda a, b: verdict, BinarySearch())

    def test_values_of_numpy(self):
        result = auto_calibrate(
            Synthetic({"a": 1.0, "b": 0.0}), lambda a, b: (np.bool_(a - b < 0.5), np.float32(a - b)), BinarySearch()
        )
        assert result.rolled_back == ("a",)
        assert result.history[0].loss == 1.0
        assert result.history[0].ok is False

    def test_metrics_may_be_anything(self):
        class Metrics(Synthetic):
            def original(self):
                return {"top1": 100.0}

            def metric(self, settings):
                return {"top1": super().metric(settings)}

        result = auto_calibrate(
            Metrics({"a": 1.0, "b": 0.0}), lambda a, b: (a["top1"] - b["top1"] < 0.5, a["top1"] - b["top1"]), Repair()
        )
        assert result.rolled_back == ("a",)
        assert result.trial.metric == {"top1": 100.0}

    def test_trials_are_told_as_they_come(self):
        told: list = []
        result = auto_calibrate(Synthetic({"a": 1.0, "b": 0.0}), within(0), BinarySearch(), on_trial=told.append)
        assert tuple(told) == result.history


def test_strategies_by_name():
    assert strategy_of("BinarySearch") == BinarySearch()
    assert strategy_of("Repair") == Repair()
    assert strategy_of(own := Repair(focus=2)) is own
    with pytest.raises(RecipeError, match=r"there is no strategy 'binary_search'; .* did you mean 'BinarySearch'"):
        strategy_of("binary_search")


CONFIG = {
    "version": 1,
    "batch_num": 2,
    "a": {
        "quant_enable": True,
        "activation_quant_params": {"num_bits": 8, "max_percentile": 0.999999, "act_algo": "ifmr", "asymmetric": True},
        "weight_quant_params": {"num_bits": 8, "wts_algo": "arq_quantize", "channel_wise": False},
    },
    "b": {"quant_enable": True},
}


class TestFiles:
    def test_names_places_and_content(self, tmp_path):
        result = auto_calibrate(Synthetic({"a": 1.0, "b": 0.25}), within(0.5), BinarySearch())
        files = write_files(result, CONFIG, tmp_path / "out" / "net")
        folder = tmp_path / "out"
        assert files == (folder / FINAL_CONFIG, folder / RANKING, folder / "amct_log" / HISTORY)
        config, ranking, history = (json.loads(path.read_text(encoding="utf-8")) for path in files)
        assert config == {**CONFIG, "a": {**CONFIG["a"], "quant_enable": False}}
        assert ranking == [["a", 0.5], ["b", 0.501]]
        assert history == [
            {"roll_back_config": {"a": True, "b": True}, "metric_eval": [False, 1.25]},
            {"roll_back_config": {"a": False, "b": True}, "metric_eval": [True, 0.25]},
        ]
        assert files[0].read_text(encoding="utf-8").startswith('{\n    "version":1,\n')
        assert CONFIG["a"]["quant_enable"] is True

    def test_no_model_no_configuration(self, tmp_path):
        (tmp_path / FINAL_CONFIG).write_text("old")
        result = auto_calibrate(Synthetic({"a": 1.0, "b": 1.0}), within(0), BinarySearch())
        files = write_files(result, CONFIG, f"{tmp_path}/", log_dir=tmp_path / "logs")
        assert files == (tmp_path / RANKING, tmp_path / "logs" / HISTORY)
        assert not (tmp_path / FINAL_CONFIG).exists()
        history = json.loads(files[1].read_text(encoding="utf-8"))
        assert history[-1] == {"roll_back_config": {"a": False, "b": False}, "metric_eval": [True, 0.0]}

    def test_fixes_and_what_is_no_number(self, tmp_path):
        prober = Synthetic({"a": 1.0, "b": 0.0}, {"a": {Fix.HFMG: math.nan, Fix.MAX_RANGE: 0.1}})
        result = auto_calibrate(prober, within(0.5), Repair())
        *_, history = write_files(result, CONFIG, tmp_path / "net")
        entries = json.loads(history.read_text(encoding="utf-8"), parse_constant=pytest.fail)
        assert [(entry["metric_eval"][0], entry.get("fixes")) for entry in entries] == [
            (False, None),
            (False, {"a": ["hfmg"]}),
            (True, {"a": ["max_range"]}),
        ]
        assert entries[1]["metric_eval"] == [False, None]

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        result = auto_calibrate(Synthetic({"a": 0.0}), within(0), BinarySearch())
        with pytest.raises(CalibrationError, match="cannot write into"):
            write_files(result, CONFIG, tmp_path / "file" / "net")


class TestApplySettings:
    def applied(self, *fixes: Fix) -> dict:
        return apply_settings(CONFIG, {"a": Choice(fixes=frozenset(fixes))})["a"]

    def test_hfmg_takes_the_place_of_ifmr(self):
        found = self.applied(Fix.HFMG)["activation_quant_params"]
        assert found == {"num_bits": 8, "asymmetric": True, "act_algo": "hfmg", "num_of_bins": 4096}

    def test_the_whole_range_is_the_only_candidate(self):
        found = self.applied(Fix.MAX_RANGE)["activation_quant_params"]
        start, end = found.pop("search_range")
        assert np.arange(start, end, found["search_step"]).tolist() == [1.0]
        assert (found["max_percentile"], found["min_percentile"], found["act_algo"]) == (1.0, 1.0, "ifmr")

    def test_weights(self):
        found = self.applied(Fix.PER_CHANNEL, Fix.ADAROUND)["weight_quant_params"]
        assert found == {
            "num_bits": 8, "wts_algo": "ada_quantize", "channel_wise": True, "num_iteration": 200,
            "reg_param": 0.01, "beta_range": [20, 2], "warm_start": 0.2,
        }  # fmt: skip

    def test_what_has_no_place_changes_nothing(self):
        assert self.applied(Fix.TWO_SIDED, Fix.BIAS_CORRECTION) == CONFIG["a"]

    def test_what_is_not_in_it_is_added(self):
        assert apply_settings(CONFIG, {"c": ROLLED_BACK})["c"] == {"quant_enable": False}
