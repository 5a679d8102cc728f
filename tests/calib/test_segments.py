"""Running a model piece by piece: every node once, the same numbers, nothing kept longer than needed."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq.calib.segments as segments
from onnxq.calib.segments import SegmentRunner, piece_session, read_names
from onnxq.errors import DataError
from tests.graphs import build, normal, session

RESIDUAL = """g (float[N,3,6,6] x) => (float[N,4] y) {
    a = Conv <pads=[1,1,1,1]> (x, W1)
    r = Relu (a)
    b = Conv <pads=[1,1,1,1]> (r, W2)
    s = Add (b, r)
    c = Conv <pads=[1,1,1,1]> (s, W3)
    t = Add (c, a)
    u = Add (t, r)
    p = GlobalAveragePool (u)
    f = Flatten (p)
    y = Gemm (f, W4) }"""


def residual() -> onnx.ModelProto:
    return build(
        RESIDUAL, W1=normal(4, 3, 3, 3), W2=normal(4, 4, 3, 3), W3=normal(4, 4, 3, 3, seed=1), W4=normal(4, 4, seed=2)
    )


def runner_of(model: onnx.ModelProto, feeds: list[dict[str, Any]], stops: list[str], workers: int = 1) -> SegmentRunner:
    weights = {t.name: t for t in model.graph.initializer}
    return SegmentRunner(model, weights.__getitem__, feeds, stops, workers)


def whole(model: onnx.ModelProto, feed: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The tensors of one uninterrupted run."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    del wide.graph.output[:]
    wide.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    return dict(zip(names, session(wide).run(names, feed), strict=True))


def assert_close(found: Any, expected: Any) -> None:
    """Equal but for the order of a few dozen additions in float32."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def feeds(count: int = 3, size: int = 2) -> list[dict[str, Any]]:
    return [{"x": normal(size, 3, 6, 6, seed=i)} for i in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stops", [["a", "b", "c", "y"], ["y"], ["r", "u"], ["a", "r", "b", "s", "c", "t", "u", "p"]])
def test_pieces_give_what_a_whole_run_gives(stops: list[str], workers: int) -> None:
    model, data = residual(), feeds()
    runner = runner_of(model, data, stops, workers)
    for stop in stops:
        name, values = runner.advance()
        assert name == stop
        assert len(values) == len(data)
        for feed, value in zip(data, values, strict=True):
            assert_close(value, whole(model, feed, [stop])[stop])
    with pytest.raises(IndexError):
        runner.advance()


def test_what_is_changed_in_place_goes_on_through_every_path() -> None:
    model, data = residual(), feeds(1)
    runner = runner_of(model, data, ["a", "b", "y"])
    _, (a,) = runner.advance()
    a += np.float32(0.5)
    _, (b,) = runner.advance()
    b *= np.float32(-1)
    _, (y,) = runner.advance()

    changed = build(
        RESIDUAL.replace("r = Relu (a)", "a2 = Add (a, half) r = Relu (a2)")
        .replace("s = Add (b, r)", "b2 = Neg (b) s = Add (b2, r)")
        .replace("t = Add (c, a)", "t = Add (c, a2)"),
        half=np.float32(0.5), W1=normal(4, 3, 3, 3), W2=normal(4, 4, 3, 3), W3=normal(4, 4, 3, 3, seed=1),
        W4=normal(4, 4, seed=2),
    )  # fmt: skip
    assert_close(y, whole(changed, data[0], ["y"])["y"])


def test_the_feeds_are_not_changed() -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { a = Identity (x) y = Relu (a) }")
    data = [{"x": normal(2, 4)}]
    kept = data[0]["x"].copy()
    runner = runner_of(model, data, ["a", "y"])
    runner.advance()[1][0][:] = 7
    runner.advance()
    assert list(data[0]) == ["x"]
    np.testing.assert_array_equal(data[0]["x"], kept)


def watch_sessions(monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], Counter[str]]:
    """Counters of the sessions a node was put into, and of its runs."""
    built: Counter[str] = Counter()
    ran: Counter[str] = Counter()
    real = piece_session

    def spy(model: Any, nodes: Any, weights: Any, fed: Any, outputs: Any) -> Any:
        inner = real(model, nodes, weights, fed, outputs)
        names = [n.output[0] for n in nodes]
        built.update(names)

        class Spy:
            def run(self, wanted: Any, feed: Any) -> Any:
                ran.update(names)
                return inner.run(wanted, feed)

        return Spy()

    monkeypatch.setattr(segments, "piece_session", spy)
    return built, ran


def test_every_node_runs_once_for_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    built, ran = watch_sessions(monkeypatch)
    model, stops = residual(), ["a", "b", "c", "y"]
    runner = runner_of(model, feeds(5), stops, workers=2)
    for _ in stops:
        runner.advance()
    outputs = {n.output[0] for n in model.graph.node}
    assert set(built) == outputs
    assert set(built.values()) == {1}
    assert set(ran.values()) == {5}


def test_what_no_stop_needs_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    built, _ = watch_sessions(monkeypatch)
    runner = runner_of(residual(), feeds(1), ["a", "b"])
    runner.advance()
    runner.advance()
    assert set(built) == {"a", "r", "b"}


def test_weights_are_asked_for_when_they_are_needed() -> None:
    model = residual()
    weights = {t.name: t for t in model.graph.initializer}
    asked: list[str] = []

    def weight(name: str) -> onnx.TensorProto:
        asked.append(name)
        return weights[name]

    runner = SegmentRunner(model, weight, feeds(3), ["a", "b", "c", "y"])
    expected = [["W1"], ["W1", "W2"], ["W1", "W2", "W3"], ["W1", "W2", "W3", "W4"]]
    for names in expected:
        runner.advance()
        assert asked == names


class _Held(np.ndarray):
    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return self is other


def test_tensors_are_freed_after_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
    real = piece_session

    def spy(*args: Any) -> Any:
        inner = real(*args)

        class Spy:
            def run(self, wanted: Any, feed: Any) -> Any:
                found = [x.view(_Held) for x in inner.run(wanted, feed)]
                alive.update(zip(wanted, found, strict=True))
                return found

        return Spy()

    monkeypatch.setattr(segments, "piece_session", spy)
    runner = runner_of(residual(), feeds(1), ["a", "b", "c", "y"])
    held = []
    for _ in range(4):
        runner.advance()
        gc.collect()
        held.append(set(alive))
    # `a` is read again in the last piece, `r` in the second (s) and the last (u); a stop lives until the next one
    assert held[0] == {"a"}
    assert held[1] == {"a", "r", "b"}
    assert held[2] == {"a", "r", "c"}
    assert held[3] == {"y"}


# ---- bodies ------------------------------------------------------------------------------------


def conditional() -> onnx.ModelProto:
    """An If whose bodies read `r`, `a` and the weight `K` from outside."""
    helper = onnx.helper

    def body(name: str, source: str, nested: bool = False) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_out", onnx.TensorProto.FLOAT, None)
        nodes = [helper.make_node("Mul", [source, "K"], [f"{name}_m"])]
        if nested:
            inner = body(f"{name}_inner", "a")
            nodes.append(
                helper.make_node("If", ["flag"], [f"{name}_n"], then_branch=inner, else_branch=body(f"{name}_x", "r"))
            )
            nodes.append(helper.make_node("Add", [f"{name}_m", f"{name}_n"], [f"{name}_out"]))
        else:
            nodes.append(helper.make_node("Relu", [f"{name}_m"], [f"{name}_out"]))
        return helper.make_graph(nodes, name, [], [out])

    model = build(
        """g (float[N,3] x, bool flag) => (float[N,3] y) {
            a = MatMul (x, W)
            r = Relu (a)
            b = MatMul (r, W)
            y = Add (b, r) }""",
        W=normal(3, 3),
        K=np.float32(3),
    )
    branch = helper.make_node(
        "If", ["flag"], ["i"], then_branch=body("then", "r", nested=True), else_branch=body("else", "a")
    )
    nodes = list(model.graph.node)
    nodes[3].input[1] = "i"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:3], branch, nodes[3]])
    return model


@pytest.mark.parametrize("flag", [True, False])
def test_bodies_read_tensors_and_weights_from_outside(flag: bool) -> None:
    model = conditional()
    data = [{"x": normal(2, 3, seed=i), "flag": np.array(flag)} for i in range(2)]
    runner = runner_of(model, data, ["a", "b", "y"])
    for stop in ("a", "b", "y"):
        _, values = runner.advance()
        for feed, value in zip(data, values, strict=True):
            assert_close(value, whole(model, feed, [stop])[stop])


def test_names_that_a_node_reads() -> None:
    branch = next(n for n in conditional().graph.node if n.op_type == "If")
    assert read_names(branch) == {"flag", "r", "K", "a"}
    assert read_names(onnx.helper.make_node("Clip", ["x", "", "hi"], ["y"])) == {"x", "hi"}


# ---- the rest ----------------------------------------------------------------------------------


def test_two_stops_of_one_node() -> None:
    model = build(
        "g (float[N,4] x) => (float[N,2] y) { a, b = Split <axis=1> (x, sizes) y = Relu (a) }", sizes=np.array([2, 2])
    )
    data = [{"x": normal(3, 4)}]
    runner = runner_of(model, data, ["a", "b", "y"])
    found = dict(runner.advance() for _ in range(3))
    np.testing.assert_array_equal(found["a"][0], data[0]["x"][:, :2])
    np.testing.assert_array_equal(found["b"][0], data[0]["x"][:, 2:])
    np.testing.assert_array_equal(found["y"][0], np.maximum(data[0]["x"][:, :2], 0))


def test_a_feed_that_fails_is_a_data_error() -> None:
    runner = runner_of(residual(), [{"x": normal(1, 5, 6, 6)}], ["a"])
    with pytest.raises(DataError, match="ONNX Runtime failed on this feed"):
        runner.advance()


def test_feeds_of_different_sizes() -> None:
    model = residual()
    data = [{"x": normal(n, 3, s, s)} for n, s in ((1, 6), (4, 6))]
    runner = runner_of(model, data, ["b", "y"], workers=2)
    runner.advance()
    assert [v.shape for v in runner.advance()[1]] == [(1, 4), (4, 4)]
