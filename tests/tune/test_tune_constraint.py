"""What may be lost, and how long a search may take, as users write it."""

from __future__ import annotations

import math

import pytest

from onnxq.errors import RecipeError
from onnxq.tune.constraint import Constraint, parse_budget
from onnxq.tune.evaluation import Metric

TOP1 = Metric("top1", higher_is_better=True, unit="%")
PERPLEXITY = Metric("perplexity", higher_is_better=False)
SQNR = Metric("sqnr", higher_is_better=True, unit="dB")


@pytest.mark.parametrize(
    ("text", "metric", "reference", "threshold"),
    [
        ("0.5%", TOP1, 80.0, 79.6),
        ("0.5", TOP1, 80.0, 79.5),
        (" 2 % ", TOP1, 50.0, 49.0),
        ("0", TOP1, 80.0, 80.0),
        ("1%", PERPLEXITY, 3.0, 3.03),
        ("0.1", PERPLEXITY, 3.0, 3.1),
        ("10%", TOP1, -4.0, -4.4),
    ],
)
def test_the_worst_score_that_is_good_enough(text: str, metric: Metric, reference: float, threshold: float) -> None:
    constraint = Constraint.parse(text)
    assert constraint.threshold(reference, metric) == pytest.approx(threshold)
    worse = -1e-3 if metric.higher_is_better else 1e-3
    assert constraint.met(threshold, reference, metric)
    assert not constraint.met(threshold + worse, reference, metric)
    assert constraint.missing(threshold + worse, reference, metric) == pytest.approx(1e-3, rel=1e-3)
    assert constraint.missing(threshold - worse, reference, metric) == 0


def test_a_score_that_must_be_reached() -> None:
    constraint = Constraint.parse(None, 30.0)
    assert constraint.met(30.0, math.inf, SQNR)
    assert constraint.missing(27.5, math.inf, SQNR) == pytest.approx(2.5)
    assert constraint.missing(-math.inf, math.inf, SQNR) == math.inf
    both = Constraint.parse("1%", 79.5)
    assert both.threshold(80.0, TOP1) == 79.5
    assert both.threshold(90.0, TOP1) == pytest.approx(89.1)
    assert (str(constraint), str(both)) == ("a score of 30", "a drop of 1 % and a score of 79.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("much", "max-drop 'much': write a part of the float model's score such as 0.5%, or points such as 0.5"),
        ("5 points", "write a part"),
        ("-1", "the largest drop is -1; it must be a finite number, 0 or more"),
        ("nan", "the largest drop is nan"),
        ("inf%", "the largest drop is inf"),
        ("", "write a part"),
    ],
)
def test_drops_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Constraint.parse(text)


def test_drops_that_the_metric_has_no_meaning_for() -> None:
    with pytest.raises(RecipeError, match=r"sqnr is infinite, a drop from it has no meaning.*--min-score 30"):
        Constraint.parse("1%").threshold(math.inf, SQNR)
    with pytest.raises(RecipeError, match="kl is 0, so there is no part of it to lose; give the drop in points"):
        Constraint.parse("1%").threshold(0.0, Metric("kl", higher_is_better=False))
    assert Constraint.parse("0.1").threshold(0.0, Metric("kl", higher_is_better=False)) == 0.1
    with pytest.raises(RecipeError, match="needs the largest drop, or the score"):
        Constraint.parse(None)
    with pytest.raises(RecipeError, match="must be reached is inf"):
        Constraint(min_score=math.inf)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("0.5m", 30), ("1h5s", 3605)]
)
def test_budgets(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "ten", "10 m", "5d", "-1", "1m1h"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError, match="write a time such as 10m, 90s or 1h30m"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("metric", "score", "text"),
    [
        (TOP1, 81.256, "81.26 %"),
        (SQNR, math.inf, "equal"),
        (SQNR, -math.inf, "unusable"),
        (PERPLEXITY, 0.01234, "0.01234"),
    ],
)
def test_scores_for_people(metric: Metric, score: float, text: str) -> None:
    assert metric.text(score) == text
