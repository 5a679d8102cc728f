"""Loading and saving: every bad file is a ModelError that helps, and nothing half-written is left."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxq import modelio
from onnxq._graph import wire
from onnxq.errors import GraphError, ModelError
from onnxq.graph import GraphModel, LazyArray
from onnxq.modelio import file_sha256, load_model, save_model
from onnxq.spec import QType
from tests.graphs import build, feeds_for, graph_of, normal

MLP = "g (float[N,40] x) => (float[N,40] y) { a = MatMul(x, W) b = Relu(a) y = MatMul(b, V) }"


@pytest.fixture
def model() -> onnx.ModelProto:
    return build(MLP, W=normal(40, 40), V=normal(40, 40, seed=1))


def to_bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def saved_outside(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "m.onnx"
    save_model(GraphModel.from_proto(model), path, external_data=True)
    return path


# ---- bad files ---------------------------------------------------------------------------------


def test_missing_files_and_folders(tmp_path: Path, model: onnx.ModelProto) -> None:
    (tmp_path / "resnet.onnx").write_bytes(to_bytes(model))
    with pytest.raises(ModelError, match=r"no model file .*resnt\.onnx; did you mean 'resnet\.onnx'\?"):
        load_model(tmp_path / "resnt.onnx")
    with pytest.raises(ModelError, match="no model file"):
        load_model(tmp_path / "no" / "such.onnx")
    with pytest.raises(ModelError, match=r"is a folder; name the \.onnx file in it"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(50), "zip archive .*PyTorch"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(50), "TensorFlow Lite"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"just some text, not a model at all\n", "not an ONNX model, or it is damaged"),
        (bytes(range(1, 256)) * 20, "not an ONNX model"),
        (b"\x08\x08", "no IR version or no graph"),
    ],
)
@pytest.mark.parametrize("scan_from", [0, 1 << 30], ids=["scanned", "parsed"])
def test_files_that_are_no_models(
    tmp_path: Path, content: bytes, message: str, scan_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelio, "_SCAN_FROM", scan_from)
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("opset", "ir_version", "message"),
    [
        (999, 8, "opset 999, the installed onnx .* knows up to"),
        (6, 8, "opset 6, the oldest"),
        (17, 99, "IR version 99"),
    ],
)
def test_versions_that_are_too_new_or_too_old(tmp_path: Path, opset: int, ir_version: int, message: str) -> None:
    model = build(MLP, W=normal(40, 40), V=normal(40, 40))
    model.opset_import[0].version = opset
    model.ir_version = ir_version
    path = tmp_path / "m.onnx"
    path.write_bytes(to_bytes(model))
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ModelError, match=message):
        GraphModel.from_proto(model)


def test_a_model_without_an_opset(model: onnx.ModelProto) -> None:
    model.ClearField("opset_import")
    with pytest.raises(ModelError, match="which opset"):
        GraphModel.from_proto(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[2] x) => (float[2] y) { y = Add(x, nowhere) }", "reads 'nowhere', which nothing computes"),
        ("g (float[2] x) => (float[2] y) { y = Relu(x) y = Neg(x) }", "'y' is computed twice"),
        ("g (float[2] x) => (float[2] z) { y = Relu(x) }", "nothing computes the graph output 'z'"),
        ("g (float[2] x) => (float[2] y) { a = Relu(y) y = Neg(a) }", "cycle"),
    ],
)
def test_graphs_that_are_not_valid(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(to_bytes(build(text, check=False)))
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("scan_from", [0, 1 << 30], ids=["scanned", "parsed"])
def test_damage_never_gives_anything_but_a_model_error(
    tmp_path: Path, model: onnx.ModelProto, scan_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelio, "_SCAN_FROM", scan_from)
    monkeypatch.setattr(wire, "_BIG", 1000)
    good = to_bytes(model)
    path = tmp_path / "m.onnx"
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(300):
        data = bytearray(good[: rng.integers(1, len(good))] if trial % 2 else good)
        for position in rng.integers(0, min(len(data), 200), 3 if trial % 2 == 0 else 0):
            data[position] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            graph = load_model(path)
            for tensor in graph.constants():
                graph.value(tensor)
        except ModelError as err:
            assert "m.onnx" in str(err) or "tensor" in str(err)  # noqa: PT017 - not every damage is found
            refused += 1
    assert refused > 200


# ---- external data -----------------------------------------------------------------------------


def test_external_data_that_are_missing_or_cut_short(tmp_path: Path, model: onnx.ModelProto) -> None:
    path = saved_outside(model, tmp_path)
    data = tmp_path / "m.onnx.data"
    os.truncate(data, data.stat().st_size - 1)
    with pytest.raises(ModelError, match=r"'V' is at bytes .* which has only .* cut short"):
        load_model(path)
    data.unlink()
    with pytest.raises(ModelError, match=r"weight 'W' is in .*m\.onnx\.data, which cannot be read: No such file"):
        load_model(path)
    with pytest.raises(ModelError, match=r"say in which folder \(base_dir\)"):
        GraphModel.from_proto(onnx.load(path, load_external_data=False))


@pytest.mark.parametrize("where", ["absolute", "parent", "link", "nothing", "length"])
def test_external_data_outside_the_folder_are_refused(tmp_path: Path, model: onnx.ModelProto, where: str) -> None:
    (tmp_path / "inside").mkdir()
    path = saved_outside(model, tmp_path / "inside")
    data = tmp_path / "inside" / "m.onnx.data"
    outside = data.rename(tmp_path / "secret.data")
    location = {"absolute": str(outside), "parent": "../secret.data", "link": "m.onnx.data", "nothing": ""}.get(where)
    if where == "link":
        data.symlink_to(outside)
    elif where == "length":
        outside.rename(data)
    raw = onnx.load(path, load_external_data=False)
    for entry in raw.graph.initializer[0].external_data:
        if entry.key == "location" and location is not None:
            entry.value = location
        if entry.key == "length" and where == "length":
            entry.value = "17"
    path.write_bytes(to_bytes(raw))
    with pytest.raises(ModelError, match="takes 6400 bytes" if where == "length" else "outside the model's folder"):
        load_model(path)


def test_external_data_inside_bodies_are_brought_in(tmp_path: Path) -> None:
    text = """g (float[2] x, bool c) => (float[2] y) {
        y = If(c) <then_branch = t () => (float[2] p) { k = Constant <value = float[2] {1, 2}> () p = Add(x, k) },
                   else_branch = e () => (float[2] q) { q = Neg(x) }> }"""
    model = build(text)
    tensor = model.graph.node[0].attribute[0].g.node[0].attribute[0].t
    raw = np.array([1, 2], np.float32).tobytes()
    tensor.CopyFrom(TensorProto(dims=[2], data_type=1, data_location=TensorProto.EXTERNAL))
    tensor.external_data.add(key="location", value="k.bin")
    (tmp_path / "k.bin").write_bytes(raw)
    exported = GraphModel.from_proto(model, base_dir=tmp_path).to_proto()
    found = exported.graph.node[0].attribute[0].g.node[0].attribute[0].t
    assert (found.raw_data, found.data_location) == (raw, TensorProto.DEFAULT)


# ---- reading without copying -------------------------------------------------------------------


def test_a_scanned_file_gives_the_same_model(
    tmp_path: Path, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelio, "_SCAN_FROM", 0)
    monkeypatch.setattr(wire, "_BIG", 1000)
    weight = onnx.numpy_helper.from_array(normal(40, 40, seed=2), "hidden")
    weight.doc_string = "kept"
    weight.metadata_props.add(key="a", value="b")
    model.graph.node.append(helper.make_node("Constant", [], ["unread"], value=weight))
    model.graph.initializer[0].metadata_props.add(key="a", value="b")
    path = tmp_path / "m.onnx"
    path.write_bytes(to_bytes(model))
    graph = load_model(path)
    assert graph.skeleton().ByteSize() < 9000, "the weights of W and V are not in it"
    assert isinstance(graph.value(graph.tensor("V")), np.ndarray)
    assert not graph.value(graph.tensor("V")).flags.writeable
    assert to_bytes(graph.to_proto()) == to_bytes(model)
    save_model(graph, path)
    assert path.read_bytes() == to_bytes(model)
    assert np.array_equal(graph.value(graph.tensor("V")), normal(40, 40, seed=1)), "still the file it was read from"


# ---- writing -----------------------------------------------------------------------------------


def test_the_file_is_what_protobuf_would_write(tmp_path: Path, model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="k", value="v")
    model.graph.doc_string = "doc"
    path = tmp_path / "m.onnx"
    assert save_model(GraphModel.from_proto(model), path) == (path,)
    assert path.read_bytes() == to_bytes(model)
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert file_sha256(path) == hashlib.sha256(to_bytes(model)).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_external_data_are_aligned_and_run(tmp_path: Path, model: onnx.ModelProto) -> None:
    graph = GraphModel.from_proto(model)
    small = graph.add_constant("small", np.ones(3, np.float32))
    graph.add_node("Identity", [small], name="reader")
    path, data = save_model(graph, tmp_path / "m.onnx", external_data=True)
    onnx.checker.check_model(str(path))
    raw = onnx.load(path, load_external_data=False)
    entries = [{e.key: e.value for e in t.external_data} for t in raw.graph.initializer]
    assert [e.get("location") for e in entries] == ["m.onnx.data", "m.onnx.data", None]
    assert [int(e["offset"]) for e in entries[:2]] == [0, 8192]
    assert data.stat().st_size == 8192 + 6400
    x = feeds_for(model)
    got = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, x)[0]
    want = ort.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"]).run(None, x)[0]
    assert np.array_equal(got, want)
    again = load_model(path)
    assert again.external_data
    assert to_bytes(again.to_proto()) == to_bytes(graph.to_proto())
    assert save_model(again, path) == (path, data), "over itself"
    assert to_bytes(load_model(path).to_proto()) == to_bytes(graph.to_proto())
    assert save_model(again, tmp_path / "one.onnx", external_data=False) == (tmp_path / "one.onnx",)


def test_a_model_too_big_for_one_file_gets_external_data(
    tmp_path: Path, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LIMIT", 10_000)
    graph = GraphModel.from_proto(model)
    assert len(save_model(graph, tmp_path / "m.onnx")) == 2
    with pytest.raises(ModelError, match="more than 2 GiB; save it with external data"):
        save_model(graph, tmp_path / "n.onnx", external_data=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]


@pytest.mark.parametrize("external", [False, True])
def test_nothing_half_written_is_left(tmp_path: Path, model: onnx.ModelProto, external: bool) -> None:
    path = tmp_path / "m.onnx"
    save_model(GraphModel.from_proto(model), path, external_data=external)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    graph = load_model(path)
    wrong = LazyArray((40, 40), np.dtype(np.float32), lambda: np.zeros((40, 41), np.float32))
    graph.replace_uses(graph.tensor("V"), graph.add_constant("V2", wrong))
    with pytest.raises(GraphError, match=r"a lazy array made float32 \(40, 41\), promised float32 \(40, 40\)"):
        save_model(graph, path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_full_disk_is_a_model_error(tmp_path: Path, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match=r"cannot write .*m\.onnx: No space left on device"):
        save_model(GraphModel.from_proto(model), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path, model: onnx.ModelProto) -> None:
    graph = GraphModel.from_proto(model)
    with pytest.raises(ModelError, match="is a folder; name a file"):
        save_model(graph, tmp_path)
    with pytest.raises(ModelError, match="its folder does not exist"):
        save_model(graph, tmp_path / "no" / "m.onnx")
    with pytest.raises(ModelError, match="cannot read"):
        file_sha256(tmp_path / "no")


def test_an_invalid_graph_is_not_saved(tmp_path: Path) -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }")
    graph.remove_node(graph.nodes("Relu")[0])
    with pytest.raises(GraphError, match=r"node '' \(Neg\) reads 'a', which nothing computes"):
        save_model(graph, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_new_constants_beyond_the_budget_go_to_a_temporary_file(model: onnx.ModelProto) -> None:
    graph = GraphModel.from_proto(model)
    graph._spill.budget = 0
    array = normal(200, 200)
    constant = graph.add_constant("big", array)
    array[:] = 0
    assert isinstance(graph.value(constant), np.memmap)
    assert np.array_equal(graph.value(constant), normal(200, 200))
    codes = np.arange(-8, 8).repeat(20_001)
    packed = graph.add_constant("packed", codes.astype(np.int8), qtype=QType.INT4)
    assert np.array_equal(graph.value(packed).astype(int), codes)


BIG = """
import resource, sys
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper
from onnxq.graph import GraphModel
from onnxq.modelio import load_model, save_model
from onnxq.spec import QType

folder, rows, count = Path(sys.argv[1]), 4096, 48
tensors, nodes = [], []
for i in range(count):
    tensor = TensorProto(name=f"w{i}", data_type=1, dims=[rows, rows], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "w.bin"), ("offset", i * rows * rows * 4), ("length", rows * rows * 4)):
        tensor.external_data.add(key=key, value=str(value))
    tensors.append(tensor)
    nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"m{i}"))
ends = [helper.make_tensor_value_info(n, 1, ["N", rows]) for n in ("x0", f"x{count}")]
model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors), ir_version=10,
                          opset_imports=[helper.make_opsetid("", 21)])
with (folder / "w.bin").open("wb") as file:
    file.truncate(count * rows * rows * 4)
graph = GraphModel.from_proto(model, base_dir=folder)
for node in graph.nodes():
    weight = node.inputs[1]
    codes = np.rint(graph.value(weight) + 3).astype(np.int8)
    scale = graph.add_constant(f"{weight.name}_scale", np.float32(0.1))
    packed = graph.add_constant(f"{weight.name}_q", codes, qtype=QType.INT8)
    back = graph.add_node("DequantizeLinear", [packed, scale], name=f"{weight.name}_dq")
    graph.replace_uses(weight, back.outputs[0])
graph.sweep()
save_model(graph, folder / "out.onnx")
again = load_model(folder / "out.onnx")
assert (again.value(again.tensor("w47_q"))[7] == 3).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_three_gigabytes_are_quantized_in_little_memory(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BIG, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1e6 <= 1.5, "GB of resident memory at the most"
    assert 800e6 < (tmp_path / "out.onnx.data").stat().st_size < 810e6
