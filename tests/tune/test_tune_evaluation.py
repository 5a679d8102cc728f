"""What models are worth: each metric against numpy, the user's own, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import DataError, ModelError, OnnxqError, RecipeError
from onnxq.graph import GraphModel
from onnxq.tune import evaluation as evaluation_module
from onnxq.tune.evaluation import Evaluation, Metric
from tests.graphs import build, graph_of, normal, run

LINEAR = "g (float[N,4] x) => (float[N,3] y) { y = MatMul (x, W) }"
X = normal(21, 4)
LABELS = np.arange(21) % 3


def linear(noise: float = 0.0) -> GraphModel:
    return graph_of(LINEAR, W=normal(4, 3) + np.float32(noise) * normal(4, 3, seed=1))


def outputs(graph: GraphModel) -> np.ndarray:
    return run(graph, {"x": X})["y"]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_top1_counts_true_classes() -> None:
    a, b = linear(), linear(0.5)
    scorer = Evaluation(X, "top1", LABELS).prepare(a)
    assert scorer.reference == pytest.approx(100 * (outputs(a).argmax(1) == LABELS).mean())
    assert scorer.score(b) == pytest.approx(100 * (outputs(b).argmax(1) == LABELS).mean())
    assert scorer.metric == Metric("top1", higher_is_better=True, unit="%")
    assert scorer.samples == 21


def test_agreement_counts_equal_classes() -> None:
    scorer = Evaluation(X, "agreement").prepare(linear())
    b = linear(0.8)
    expected = 100 * (outputs(linear()).argmax(1) == outputs(b).argmax(1)).mean()
    assert scorer.reference == 100
    assert scorer.score(b) == pytest.approx(expected)
    assert 0 < expected < 100


def test_sqnr_is_signal_over_noise() -> None:
    a, b = outputs(linear()).astype(np.float64), outputs(linear(0.1))
    scorer = Evaluation(X, "sqnr").prepare(linear())
    assert scorer.reference == math.inf
    assert scorer.score(linear(0.1)) == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), rel=1e-6)


def test_sqnr_is_that_of_the_worst_output() -> None:
    text = "g (float[N,4] x) => (float[N,3] y, float[N,3] z) { y = MatMul (x, W) z = MatMul (x, V) }"
    v = normal(4, 3, seed=2)
    scorer = Evaluation(X, "sqnr").prepare(graph_of(text, W=normal(4, 3), V=v))
    assert scorer.score(graph_of(text, W=normal(4, 3), V=v * np.float32(1.1))) == pytest.approx(20, abs=1e-3)


def test_kl_is_the_divergence_of_probabilities() -> None:
    p, q = softmax(outputs(linear())), softmax(outputs(linear(0.3)))
    scorer = Evaluation(X, "kl").prepare(linear())
    assert scorer.reference == 0
    assert scorer.score(linear(0.3)) == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-5)
    assert not scorer.metric.higher_is_better


def test_kl_takes_probabilities_as_they_are() -> None:
    text = "g (float[N,4] x) => (float[N,3] y) { l = MatMul (x, W) y = Softmax (l) }"
    one, other = (graph_of(text, W=w) for w in (normal(4, 3), normal(4, 3) + np.float32(0.3) * normal(4, 3, seed=1)))
    assert Evaluation(X, "kl").prepare(one).score(other) == pytest.approx(
        Evaluation(X, "kl").prepare(linear()).score(linear(0.3)), rel=1e-5
    )


TOKENS = np.random.default_rng(0).integers(0, 5, (6, 8))
LANGUAGE = "g (int64[N,T] tokens) => (float[N,T,5] logits) { logits = Gather (E, tokens) }"


def language(**more: str) -> GraphModel:
    return graph_of(more.get("text", LANGUAGE), E=normal(5, 5))


def cross_entropy(tokens: np.ndarray) -> np.ndarray:
    p = softmax(normal(5, 5)[tokens[:, :-1]])
    return -np.log(np.take_along_axis(p, tokens[:, 1:, None], axis=2)[..., 0])


def test_perplexity_is_that_of_the_next_token() -> None:
    scorer = Evaluation({"tokens": TOKENS}, "perplexity", batch=4).prepare(language())
    assert scorer.reference == pytest.approx(math.exp(cross_entropy(TOKENS).mean()), rel=1e-6)
    assert not scorer.metric.higher_is_better


def test_perplexity_leaves_out_what_is_masked() -> None:
    text = """g (int64[N,T] input_ids, int64[N,T] attention_mask) => (float[N,T,5] logits) {
        e = Gather (E, input_ids) m = Cast <to=1> (attention_mask) z = Sub (m, m) a = ReduceSum (z)
        logits = Add (e, a) }"""
    mask = (np.arange(8) < 5).astype(np.int64) * np.ones((6, 1), np.int64)
    feeds = {"input_ids": TOKENS, "attention_mask": mask}
    scorer = Evaluation(feeds, "perplexity").prepare(language(text=text))
    assert scorer.reference == pytest.approx(math.exp(cross_entropy(TOKENS[:, :5]).mean()), rel=1e-6)


def test_perplexity_needs_to_know_the_tokens() -> None:
    text = """g (int64[N,T] a, int64[N,T] b) => (float[N,T,5] logits) {
        s = Add (a, b) logits = Gather (E, s) }"""
    with pytest.raises(DataError, match=r"called tokens or input_ids.*candidates are 'a', 'b'"):
        Evaluation({"a": TOKENS, "b": 0 * TOKENS}, "perplexity").prepare(language(text=text))
    with pytest.raises(DataError, match=r"perplexity needs an output \[samples, places, tokens\]"):
        Evaluation(X, "perplexity").prepare(linear())


def test_agreement_of_texts_counts_places() -> None:
    other = graph_of(LANGUAGE, E=normal(5, 5) + normal(5, 5, seed=4))
    same = run(language(), {"tokens": TOKENS})["logits"].argmax(-1) == run(other, {"tokens": TOKENS})["logits"].argmax(
        -1
    )
    scorer = Evaluation({"tokens": TOKENS}, "agreement").prepare(language())
    assert scorer.score(other) == pytest.approx(100 * same.mean())


@pytest.mark.parametrize("metric", ["top1", "agreement", "sqnr", "kl"])
def test_batches_and_memory_do_not_matter(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Evaluation(X, metric, LABELS).prepare(linear())
    score = expected.score(linear(0.4))
    monkeypatch.setattr(evaluation_module, "KEPT_MB", 0)
    for batch in (1, 5):
        scorer = Evaluation(X, metric, LABELS, batch=batch).prepare(linear())
        assert scorer.score(linear(0.4)) == pytest.approx(score, rel=1e-9)
        assert scorer.score(linear(0.4)) == pytest.approx(score, rel=1e-9)  # once more, the data are read again
        assert scorer.reference == expected.reference


def test_the_first_samples_and_their_labels() -> None:
    scorer = Evaluation(X, "top1", LABELS, samples=7).prepare(linear())
    assert scorer.samples == 7
    assert scorer.reference == pytest.approx(100 * (outputs(linear())[:7].argmax(1) == LABELS[:7]).mean())


def test_labels_from_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X)
    (tmp_path / "labels.csv").write_text("label\n" + "\n".join(map(str, LABELS)) + "\n", encoding="utf-8")
    scorer = Evaluation(tmp_path / "x.npz", "top1", tmp_path / "labels.csv").prepare(linear())
    assert scorer.reference == Evaluation(X, "top1", LABELS).prepare(linear()).reference


def test_ratings_add_how_far_outputs_are() -> None:
    scorer = Evaluation(X, "top1", LABELS).prepare(linear(), guided=True)
    assert scorer.rate(linear()) == evaluation_module.Rating(scorer.reference, 0.0)
    near, far = scorer.rate(linear(0.1)), scorer.rate(linear(0.5))
    assert near.score == scorer.score(linear(0.1))
    assert near.damage == pytest.approx(Evaluation(X, "kl").prepare(linear()).score(linear(0.1)))
    assert near.damage < far.damage
    assert scorer.guide == "kl"


def test_where_the_model_is_sure_of_everything_damage_is_noise_too() -> None:
    """Divergences of scores in the hundreds are 0, however much noise there is."""
    sure = graph_of(LINEAR, W=np.float32(1e4) * normal(4, 3))
    scorer = Evaluation(X, "agreement").prepare(sure, guided=True)
    assert scorer.guide == "sqnr"
    assert Evaluation(X, "sqnr").prepare(linear(), guided=True).guide == "sqnr"


def test_without_classes_damage_is_noise_over_signal() -> None:
    text = "g (float[N,1,2,4] x) => (float[N,1,2,1] y) { y = MatMul (x, W) }"
    x, w = normal(6, 1, 2, 4), normal(4, 1)
    scorer = Evaluation(x, "sqnr").prepare(graph_of(text, W=w), guided=True)
    rating = scorer.rate(graph_of(text, W=w * np.float32(1.1)))
    assert (scorer.guide, rating.score) == ("sqnr", pytest.approx(20, abs=1e-3))
    assert rating.damage == pytest.approx(0.01, rel=1e-3)


def test_a_model_that_gives_nan_has_the_worst_score() -> None:
    broken = graph_of(LINEAR, W=np.full((4, 3), np.nan, np.float32))
    assert Evaluation(X, "sqnr").prepare(linear()).score(broken) == -math.inf
    assert Evaluation(X, "kl").prepare(linear()).score(broken) == math.inf
    with pytest.raises(DataError, match="kl of the float model is not a number"):
        Evaluation(X, "kl").prepare(broken)


def test_a_model_that_cannot_be_run_is_told_from_data_that_do_not_fit() -> None:
    wrong = graph_of("g (float[N,5] x) => (float[N,3] y) { y = MatMul (x, W) }", W=normal(5, 3))
    with pytest.raises(ModelError, match="the quantized model: ONNX Runtime failed on this feed"):
        Evaluation(X, "sqnr").prepare(linear()).score(wrong)


def test_digests_tell_evaluations_apart(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    digests = set()
    for source in ("def f(o, l): return 1.0", "def f(o, l): return 2.0"):
        file.write_text(source, encoding="utf-8")
        digests.add(Evaluation(X, f"{file}:f").prepare(linear()).digest)
    digests |= {Evaluation(X, m, LABELS).prepare(linear()).digest for m in ("top1", "kl")}
    digests.add(Evaluation(X, "top1", LABELS[::-1].copy()).prepare(linear()).digest)
    digests.add(Evaluation(X + 1, "kl", LABELS).prepare(linear()).digest)
    assert len(digests) == 6
    assert Evaluation(X, "kl", LABELS).prepare(linear(1)).digest in digests


# ---- functions of the user's --------------------------------------------------------------------


def test_a_function_sees_all_outputs_and_the_labels() -> None:
    seen = {}

    def mine(found: dict[str, np.ndarray], labels: np.ndarray) -> float:
        seen.update(found, labels=labels)
        return -float(found["y"].sum())

    scorer = Evaluation(X, mine, LABELS, batch=4).prepare(linear())
    np.testing.assert_allclose(seen["y"], outputs(linear()), rtol=1e-6)
    np.testing.assert_array_equal(seen["labels"], LABELS)
    assert scorer.reference == pytest.approx(-float(outputs(linear()).sum()), rel=1e-5)
    assert scorer.metric.higher_is_better
    Evaluation(X, mine).prepare(linear())
    assert seen["labels"] is None


SOURCES = {
    "raises": ("def f(o, l):\n    return o['absent']", r"mine\.py:f failed: KeyError: 'absent'"),
    "text": ("def f(o, l): return 'good'", "gave 'good'; it must return one number"),
    "nothing": ("def f(o, l): pass", "gave None; it must return one number"),
    "nan": ("def f(o, l): return float('nan')", r"f of the float model is not a number \(NaN\)"),
    "another": ("def ff(o, l): return 1", r"has no 'f'; did you mean 'ff'\?"),
    "number": ("f = 1", "is a int; must be a function"),
    "syntax": ("def f(:", "cannot be loaded: SyntaxError"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_function_that_does_not_work(case: str, tmp_path: Path) -> None:
    source, message = SOURCES[case]
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    with pytest.raises(OnnxqError, match=message):
        Evaluation(X, f"{tmp_path / 'mine.py'}:f").prepare(linear())


def test_nan_of_a_function_for_another_model_is_the_worst_score(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import math\ndef f(o, l): return 1.0 if abs(o['y']).max() < 50 else math.nan", encoding="utf-8"
    )
    scorer = Evaluation(X, f"{tmp_path / 'mine.py'}:f").prepare(linear())
    assert scorer.score(graph_of(LINEAR, W=100 * normal(4, 3))) == -math.inf


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match=r"metric 'absent\.py:f': there is no file absent\.py"):
        Evaluation(X, "absent.py:f").prepare(linear())


# ---- what is refused ----------------------------------------------------------------------------

REFUSED = {
    "metric": (Evaluation(X, "top2", LABELS), r"no metric 'top2'; known are top1,.*did you mean 'top1'"),
    "no labels": (Evaluation(X, "top1"), "needs labels; give them, or use agreement"),
    "few labels": (Evaluation(X, "top1", LABELS[:9]), "there are 9 labels for at least 16 samples"),
    "many labels": (Evaluation(X[:9], "top1", LABELS), "there are 21 labels for 9 samples"),
    "classes": (Evaluation(X, "top1", LABELS + 1), "labels go from 1 to 3.*do they count from 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    evaluation, message = REFUSED[case]
    with pytest.raises(OnnxqError, match=message):
        evaluation.prepare(linear())


def test_a_model_without_classes() -> None:
    graph = GraphModel.from_proto(build("g (float[N,4] x) => (float[N] y) { y = ReduceSum <keepdims=0> (x, A) }",
                                        A=np.array([1])))  # fmt: skip
    with pytest.raises(DataError, match=r"agreement needs an output of scores.*'y' \[8\].*Use sqnr"):
        Evaluation(X, "agreement").prepare(graph)
