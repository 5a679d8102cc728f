"""Sessions: what they take, what they give, and errors of ONNX Runtime in our words."""

from __future__ import annotations

import gc
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq.runtime as runtime
from onnxq.errors import DataError, ModelError
from onnxq.graph import GraphModel
from onnxq.runtime import make_session, optimized, thread_count, version
from tests.graphs import build, normal, run


def model() -> onnx.ModelProto:
    return build(
        "g (float[N,4] x) => (float[N,3] y) { a = MatMul (x, W) b = Add (a, B) y = Relu (b) }",
        W=normal(4, 3),
        B=normal(3),
    )


@pytest.mark.parametrize("form", ["proto", "bytes", "path", "string", "graph"])
@pytest.mark.parametrize("optimize", [True, False])
def test_a_model_may_be_given_in_any_form(form: str, optimize: bool, tmp_path: Path) -> None:
    proto, feed = model(), {"x": normal(5, 4)}
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    forms = {
        "proto": proto, "bytes": proto.SerializeToString(), "path": path, "string": str(path),
        "graph": GraphModel.from_proto(proto),
    }  # fmt: skip
    session = make_session(forms[form], threads=1, optimize=optimize)
    assert session.output_names == ("y",)
    np.testing.assert_allclose(session.run(None, feed)[0], run(proto, feed)["y"], rtol=1e-6)


@pytest.mark.parametrize("form", ["proto", "bytes", "path", "graph"])
def test_other_outputs(form: str, tmp_path: Path) -> None:
    proto, feed = model(), {"x": normal(5, 4)}
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    before = proto.SerializeToString()
    forms = {"proto": proto, "bytes": before, "path": path, "graph": GraphModel.from_proto(proto)}
    session = make_session(forms[form], threads=1, outputs=["b", "a", "y"])
    assert session.output_names == ("b", "a", "y")
    b, a, y = session.run(None, feed)
    np.testing.assert_allclose(a, feed["x"] @ normal(4, 3), rtol=1e-5)
    np.testing.assert_array_equal(y, np.maximum(b, 0))
    assert [o.shape for o in session.run(["y"], feed)] == [(5, 3)]
    assert proto.SerializeToString() == before


def test_what_an_output_does_not_need_is_not_run() -> None:
    failing = build(
        "g (float[N,4] x, int64[2] shape) => (float[?,?] y) { a = Relu (x) y = Reshape (a, shape) }"
    )  # fmt: skip
    feed = {"x": normal(2, 4), "shape": np.array([3, 3])}
    with pytest.raises(DataError):
        make_session(failing).run(None, feed)
    assert make_session(failing, outputs=["a"]).run(["a"], feed)[0].shape == (2, 4)


def test_inputs_as_the_readers_want_them() -> None:
    many = build(
        """g (float[N,3,H,8] x, int64[2] i, bool[1] b, double s)
            => (float[N,3,H,8] y, int64[2] j, bool[1] c, double t) {
            y = Relu (x) j = Identity (i) c = Not (b) t = Neg (s) }"""
    )
    infos = {i.name: (i.dtype, i.shape) for i in make_session(many).inputs}
    assert infos == {
        "x": (np.dtype("float32"), ("N", 3, "H", 8)),
        "i": (np.dtype("int64"), (2,)),
        "b": (np.dtype("bool"), (1,)),
        "s": (np.dtype("float64"), ()),
    }


def test_an_input_that_is_no_plain_tensor() -> None:
    value = onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [])
    graph = onnx.helper.make_graph([onnx.helper.make_node("SequenceLength", ["s"], ["y"])], "g", [value], [out])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match=r"input 's' is a seq\(tensor\(float\)\); onnxq feeds plain tensors only"):
        _ = make_session(proto).inputs


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "feed",
    [
        {"x": normal(2, 5)},
        {"x": normal(2, 4).astype(np.float64)},
        {},
        {"x": normal(2, 4), "z": normal(1)},
        {"x": normal(4)},
    ],
)
def test_a_feed_that_does_not_fit_is_a_data_error_of_one_line(feed: Any) -> None:
    with pytest.raises(DataError) as caught:
        make_session(model(), source="net.onnx").run(None, feed)
    assert str(caught.value).startswith("net.onnx: ")
    assert len(str(caught.value).splitlines()) == 1


def test_an_output_that_does_not_exist() -> None:
    with pytest.raises(DataError, match="nowhere"):
        make_session(model()).run(["nowhere"], {"x": normal(2, 4)})
    with pytest.raises(ModelError, match="cannot load it"):
        make_session(model(), outputs=["nowhere"])


@pytest.mark.parametrize("content", [b"", b"no model at all"])
def test_bytes_that_are_no_model(content: bytes) -> None:
    with pytest.raises(ModelError, match=rf"^the model: ONNX Runtime {version()} cannot load it: "):
        make_session(content)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing\.onnx"):
        make_session(tmp_path / "missing.onnx", source="missing.onnx")


def test_a_model_that_cannot_run() -> None:
    proto = model()
    proto.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="NoSuchOperator"):
        make_session(proto)
    with pytest.raises(ModelError, match="NoSuchOperator"):
        optimized(proto)


# ---- the rest ----------------------------------------------------------------------------------


def test_optimized_is_what_is_executed() -> None:
    proto = build("g (float[N,4] x) => (float[N,4] y) { a = Identity (x) b = Identity (a) y = Relu (b) }")
    assert [n.op_type for n in optimized(proto).graph.node] == ["Relu"]
    assert [n.op_type for n in optimized(GraphModel.from_proto(proto)).graph.node] == ["Relu"]
    assert len(proto.graph.node) == 3


def test_large_graphs_go_through_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "INLINE_LIMIT", 16)
    proto, feed = model(), {"x": normal(5, 4)}
    graph = GraphModel.from_proto(proto)
    expected = run(proto, feed)
    session = make_session(graph, threads=1)
    np.testing.assert_allclose(session.run(None, feed)[0], expected["y"], rtol=1e-6)
    taps = make_session(graph, threads=1, outputs=["a"])
    np.testing.assert_allclose(taps.run(None, feed)[0], feed["x"] @ normal(4, 3), rtol=1e-5)
    assert {n.op_type for n in optimized(graph).graph.node} <= {"Gemm", "MatMul", "Add", "Relu", "FusedGemm"}


def test_the_folder_of_a_large_graph_goes_with_its_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runtime, "INLINE_LIMIT", 16)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    graph = GraphModel.from_proto(model())
    session = make_session(graph, threads=1)
    assert [p.name[:6] for p in tmp_path.iterdir()] == ["onnxq-"]
    del session
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError):
        make_session(graph, outputs=["nowhere"])
    optimized(graph)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_threads() -> None:
    assert thread_count(3) == 3
    assert thread_count(0) >= 1


def test_calls_from_several_threads_do_not_disturb_each_other() -> None:
    session = make_session(model(), threads=1)
    wrong: list[int] = []

    def work(seed: int) -> None:
        feed = {"x": normal(50, 4, seed=seed)}
        expected = run(model(), feed)["y"]
        found = [session.run(None, feed)[0] for _ in range(20)]
        wrong.extend(seed for y in found if not np.allclose(y, expected, rtol=1e-5, atol=1e-6))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_sequences_come_out_as_lists() -> None:
    proto = build("g (float[N,4] x) => (seq(float[N,4]) y) { y = SequenceConstruct (x, x) }", check=False)
    found = make_session(proto).run(None, {"x": normal(2, 4)})[0]
    assert isinstance(found, list)
    assert len(found) == 2
