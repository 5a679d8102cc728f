"""Debug reports, read by a reader of their own that computes every figure anew."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnxq
from onnxq.errors import DataError, GraphError
from onnxq.graph import GraphModel
from onnxq.report import debug_run
from onnxq.report.debug_reading import read_quantized
from onnxq.report.debug_rows import find_places
from onnxq.report.debug_run import Runs
from tests.graphs import build, normal
from tests.report import debug_reader as reader

MODELS = Path(__file__).resolve().parents[2] / "models"
CALIBRATION = MODELS / "data" / "digits_calib.npz"
ROUNDS = 5


def images(count: int) -> NDArray[np.float32]:
    return np.load(CALIBRATION, allow_pickle=False)["image"][:count]


def quantized(model: str = "digits_cnn", target: str | None = None, **recipe: Any) -> onnxq.Result:
    data = None if "scheme" in recipe else CALIBRATION
    return onnxq.quantize(MODELS / f"{model}.onnx", data, recipe=recipe, target=target)


@pytest.fixture(scope="module")
def static() -> onnxq.Result:
    return quantized()


@pytest.fixture(scope="module")
def written(static: onnxq.Result, tmp_path_factory: pytest.TempPathFactory) -> onnxq.DebugFiles:
    return onnxq.write_debug(static, CALIBRATION, tmp_path_factory.mktemp("debug"), rounds=ROUNDS)


def rows_of(files: onnxq.DebugFiles, number: int = 0) -> list[dict[str, str]]:
    return reader.read(files.rounds[number], reader.ROUND_HEADER)


def by_place(files: onnxq.DebugFiles) -> dict[tuple[str, str, str, str], dict[str, str]]:
    """Rows by node, direction, tensor and kind."""
    return {(r["NodeName"], r["InOutFlag"], r["TensorName"], r["DataTypeFlag"]): r for r in rows_of(files)}


# ---- five rounds of a Q/DQ model ---------------------------------------------------------------


def test_files_of_five_rounds(written: onnxq.DebugFiles) -> None:
    names = {path.name for path in written.folder.iterdir()}
    assert names == {"output_summary.csv", "quant_param.csv", *(f"round_{i}.csv" for i in range(ROUNDS))}
    assert [path.name for path in written.rounds] == [f"round_{i}.csv" for i in range(ROUNDS)]


@pytest.mark.parametrize("number", range(ROUNDS))
def test_every_row_is_what_an_independent_reader_computes(
    static: onnxq.Result, written: onnxq.DebugFiles, number: int
) -> None:
    assert static.prepared is not None
    models = static.prepared.to_proto(), static.model
    feed = {"image": images(ROUNDS)[number : number + 1]}
    places = reader.expected_places(models[1], models[0])
    origins = reader.all_tensors(models[0], feed, [p.origin for p in places])
    codes = [p.dequant for p in places]
    values = reader.all_tensors(models[1], feed, codes)
    rows = rows_of(written, number)
    assert [int(row[""]) for row in rows] == list(range(len(rows)))
    assert len(rows) == 2 * len(places)
    for place, first, second in zip(places, rows[::2], rows[1::2], strict=True):
        origin, dequant = origins[place.origin], values[place.dequant]
        for row, flag, array in ((first, "Origin", origin), (second, "Dequant", dequant)):
            assert (row["NodeName"], row["NodeType"], row["TensorName"]) == (place.node, place.op_type, place.tensor)
            assert row["InOutFlag"] == ("Output" if place.output else "Input")
            assert row["TensorTypeFlag"] == ("Weight" if place.weight else "Activation")
            assert row["DataTypeFlag"] == flag
            for column, value in reader.figures(array).items():
                assert reader.same(row[column], value), (place, flag, column, row[column], value)
        assert (first["Clip"], first["CosineSimilarity"]) == ("0", "1")
        assert reader.same(second["Clip"], reader.clip(origin, dequant)), place
        assert reader.same(second["CosineSimilarity"], reader.cosine(origin, dequant)), place


def test_all_kinds_of_nodes_are_there(written: onnxq.DebugFiles) -> None:
    kinds = {row["NodeType"] for row in rows_of(written)}
    assert {"Conv", "Add", "GlobalAveragePool", "Gemm", "Flatten"} <= kinds
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}


def test_summary_has_the_outputs_round_by_round(static: onnxq.Result, written: onnxq.DebugFiles) -> None:
    assert static.original is not None
    rows = reader.read(written.summary, reader.SUMMARY_HEADER)
    assert [(row["Round"], row["TensorName"]) for row in rows] == [(str(i), "logits") for i in range(ROUNDS)]
    for number, row in enumerate(rows):
        feed = {"image": images(ROUNDS)[number : number + 1]}
        a = reader.all_tensors(static.original.to_proto(), feed, ["logits"])["logits"]
        b = reader.all_tensors(static.model, feed, ["logits"])["logits"]
        assert float(row["CosineSimilarity"]) == pytest.approx(reader.cosine(a, b), abs=2e-6)


def test_params_are_those_of_the_model(static: onnxq.Result, written: onnxq.DebugFiles) -> None:
    assert written.params is not None
    rows = reader.read(written.params, reader.PARAM_HEADER)
    graph = static.model.graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    found = iter(rows)
    assert static.prepared is not None
    for place in reader.expected_places(static.model, static.prepared.to_proto()):
        maker = makers.get(place.dequant)
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        codes, scale, zero = maker.input
        scales, zeros = constants[scale].ravel(), constants[zero].ravel()
        for s, z in zip(scales, np.broadcast_to(zeros, scales.shape), strict=True):
            row = next(found)
            assert (row["NodeName"], row["NodeType"], row["TensorName"]) == (place.node, place.op_type, place.tensor)
            assert reader.same(row["Scale"], float(s))
            assert int(row["ZeroPoint"]) == int(z)
            wide = codes in constants and constants[codes].dtype == np.int32
            assert row["Bits"] == ("32" if wide else "8")
            assert (row["CorrectionVar"], row["CorrectionMean"]) == ("1", "0")
            if codes in constants:
                assert row["Dims"] == "".join(f"{d} " for d in constants[codes].shape)
                assert int(row["ElementsNum"]) == constants[codes].size
    assert next(found, None) is None


# ---- other schemes -----------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["packed", "native", "rounded"])
@pytest.mark.parametrize("bits", [8, 3])
def test_weights_alone(tmp_path: Path, storage: str, bits: int) -> None:
    result = quantized(scheme={"kind": "weight_only", "storage": storage}, weights={"bits": bits})
    files = onnxq.write_debug(result, CALIBRATION, tmp_path / "debug")
    assert len(files.rounds) == 1  # whatever the data
    assert result.prepared is not None
    floats = {t.name: onnx.numpy_helper.to_array(t) for t in result.prepared.to_proto().graph.initializer}
    places = by_place(files)
    assert files.params is not None
    params = iter(reader.read(files.params, reader.PARAM_HEADER))
    for plan in result.plan.weights:
        codes, weight = result.weight_codes[plan.key], floats[plan.tensor]
        shape = [-1 if i == codes.axis else 1 for i in range(weight.ndim)]
        scale, zero, variance, mean = (
            np.float64(v).reshape(shape) for v in (codes.scale, codes.zero_point, codes.variance, codes.mean)
        )
        steps = np.trunc(weight / scale + zero + np.copysign(0.5, weight / scale + zero))
        decoded = (np.clip(steps, codes.low, codes.high) - zero) * scale * variance + mean
        row = places[plan.node, "Input", plan.tensor, "Dequant"]
        for column, value in reader.figures(decoded.astype(np.float32)).items():
            if column in ("Min", "Median", "Max", "Mean", "Var"):
                assert float(row[column]) == pytest.approx(value, rel=1e-4, abs=1e-5), column
        assert float(row["CosineSimilarity"]) == pytest.approx(reader.cosine(weight, decoded), abs=1e-5)
        assert float(row["CosineSimilarity"]) < 1
        for k in range(codes.scale.size):
            line = next(params)
            assert (line["NodeName"], line["TensorName"], line["Bits"]) == (plan.node, plan.tensor, str(bits))
            assert reader.same(line["Scale"], float(codes.scale.ravel()[k]))
            assert int(line["ZeroPoint"]) == codes.zero_point.ravel()[k]
            assert reader.same(line["CorrectionVar"], float(codes.variance.ravel()[k]))
            assert reader.same(line["CorrectionMean"], float(codes.mean.ravel()[k]))
    assert next(params, None) is None
    kinds = {row["NodeType"] for row in rows_of(files)}
    assert kinds == {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}  # nothing that decodes


def test_blocks_are_shown_as_the_products_they_stand_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((192, 128)).astype(np.float32)
    model = build("g (float[N,192] x) => (float[N,128] y) { [fc] y = MatMul (x, W) }", W=weight)
    recipe = {"scheme": {"kind": "weight_only", "storage": "blocks"}, "weights": {"bits": 4}}
    result = onnxq.quantize(model, recipe=recipe)
    assert [node.op_type for node in result.model.graph.node] == ["MatMulNBits"]
    x = rng.standard_normal((1, 192)).astype(np.float32)
    files = onnxq.write_debug(result, {"x": x}, tmp_path / "debug")
    places = by_place(files)
    assert {node for node, *_ in places} == {"fc"}
    assert {row["NodeType"] for row in places.values()} == {"MatMul"}
    identity = np.eye(192, dtype=np.float32)
    decoded = reader.all_tensors(result.model, {"x": identity}, ["y"])["y"]
    row = places["fc", "Input", "W", "Dequant"]
    for column in ("Min", "Median", "Max", "Var"):
        assert float(row[column]) == pytest.approx(reader.figures(decoded)[column], rel=2e-3), column
    assert float(row["CosineSimilarity"]) == pytest.approx(reader.cosine(weight, decoded), abs=1e-4)
    assert files.params is not None
    assert len(reader.read(files.params, reader.PARAM_HEADER)) == 128 * 192 // 32


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("storage", ["blocks", "native", "packed", "rounded"])
def test_chosen_blocks_are_shown_as_what_they_stand_for(tmp_path: Path, storage: str, bits: int) -> None:
    """Symmetric ones, which have no zero points in the file, and a table that is looked up."""
    rng = np.random.default_rng(1)
    weight, table = (rng.standard_normal(shape).astype(np.float32) for shape in ((72, 16), (5, 72)))
    text = "g (int64[N] i) => (float[N,16] y) { [table] x = Gather (E, i) [fc] y = MatMul (x, W) }"
    scheme = {"kind": "weight_only", "method": "rtn", "storage": storage, "compute": "float32"}
    recipe = {"scheme": scheme, "weights": {"bits": bits, "symmetric": True}}
    result = onnxq.quantize(build(text, E=table, W=weight), recipe=recipe)
    places = by_place(onnxq.write_debug(result, {"i": np.zeros(1, np.int64)}, tmp_path / "debug"))
    floats = onnxq.quantize(
        build(text, E=table, W=weight), recipe={**recipe, "scheme": {**scheme, "storage": "rounded"}}
    )
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in floats.model.graph.initializer}
    for node, name, original in (("fc", "W", weight), ("table", "E", table)):
        row = places[node, "Input", name, "Dequant"]
        wanted = reader.cosine(original, stored[f"{name}_rounded"])
        assert float(row["CosineSimilarity"]) == pytest.approx(wanted, abs=1e-4)
        assert wanted < 0.999


@pytest.mark.parametrize("ranges", ["onnx", "exact"])
def test_codes_made_when_the_model_runs(tmp_path: Path, ranges: str) -> None:
    result = quantized("digits_transformer", scheme={"kind": "dynamic", "ranges": ranges})
    files = onnxq.write_debug(result, CALIBRATION, tmp_path / "debug", rounds=1)
    places = by_place(files)
    assert result.prepared is not None
    names = {node.name for node in result.prepared.nodes()}
    assert {node for node, *_ in places} <= names
    assert {n.name for n in result.prepared.nodes("MatMul")} <= {node for node, *_ in places}
    node = result.prepared.node("embed/matmul")
    x = node.inputs[0].name
    feed = {"image": images(1)}
    values = reader.all_tensors(result.prepared.to_proto(), feed, [x])[x].astype(np.float64)
    low, high = (min(values.min(), 0), max(values.max(), 0)) if ranges == "onnx" else (values.min(), values.max())
    scale = np.float32(high - low) / np.float32(255)
    zero = np.round(-low / scale)
    decoded = ((np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)
    row = places["embed/matmul", "Input", x, "Dequant"]
    for column, value in reader.figures(decoded).items():
        assert float(row[column]) == pytest.approx(value, rel=1e-3, abs=1e-6), column
    assert float(places["embed/matmul", "Input", "embed/weight", "Dequant"]["CosineSimilarity"]) < 1
    assert float(places["embed/matmul", "Output", "embed/matmul/out", "Dequant"]["CosineSimilarity"]) > 0.999


@pytest.mark.parametrize("model", ["digits_cnn", "digits_transformer"])
def test_integers_of_the_twin_are_told_in_reals(tmp_path: Path, model: str) -> None:
    result = quantized(model, target="ascend")
    assert result.twin is not None
    files = onnxq.write_debug(result, CALIBRATION, tmp_path / "debug", rounds=1)
    rows = rows_of(files)
    assert not any("fakequant" in row["NodeName"] or "fakedequant" in row["NodeName"] for row in rows)
    assert all(row["CosineSimilarity"] for row in rows)  # all have a tensor of the float model beside them
    layers = {name for name, factors in result.factors.items() if not factors.tensor_quantize}
    seen = [r for r in rows if r["NodeName"] in layers and r["DataTypeFlag"] == "Dequant"]
    assert layers <= {row["NodeName"] for row in seen}
    for row in seen:
        if "bias" not in row["TensorName"]:  # bias correction changes these
            assert float(row["CosineSimilarity"]) > 0.997, row
    origins = {(r["NodeName"], r["TensorName"]): r for r in rows if r["DataTypeFlag"] == "Origin"}
    for row in seen:
        origin = origins[row["NodeName"], row["TensorName"]]
        assert float(row["Var"]) == pytest.approx(float(origin["Var"]), rel=0.1) or "bias" in row["TensorName"]


# ---- data, folders, errors ---------------------------------------------------------------------


def test_without_data_one_round_of_the_values_the_converter_draws(static: onnxq.Result, tmp_path: Path) -> None:
    files = [onnxq.write_debug(static, None, tmp_path / name) for name in ("a", "b")]
    assert [len(f.rounds) for f in files] == [1, 1]
    assert files[0].rounds[0].read_bytes() == files[1].rounds[0].read_bytes()  # the seed is the recipe's
    first = rows_of(files[0])[0]
    assert first["TensorName"] == "image"
    assert 0.1 <= float(first["Min"]) < 0.2
    assert 0.9 < float(first["Max"]) <= 1


def test_one_round_per_sample(static: onnxq.Result, tmp_path: Path) -> None:
    files = onnxq.write_debug(static, {"image": images(3)}, tmp_path / "debug")
    assert len(files.rounds) == 3


def test_small_budgets_change_nothing(static: onnxq.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    assert static.prepared is not None
    reading = read_quantized(static.graph)
    layout = find_places(static.prepared, reading)
    feed = {"image": images(1)}
    whole = Runs(static.prepared, reading, layout.measures)
    parts = Runs(static.prepared, reading, layout.measures, budget=1 << 14)
    monkeypatch.setattr(debug_run, "KEPT", 0)  # sessions are made anew
    found, expected = parts.round(feed), whole.round(feed)
    assert found == parts.round(feed)
    assert found.keys() == expected.keys()
    for measure, comparison in found.items():  # ONNX Runtime fuses differently around what it has to give
        assert comparison.dequant.mean == pytest.approx(expected[measure].dequant.mean, rel=1e-4, abs=1e-4)
        assert comparison.cosine == pytest.approx(expected[measure].cosine, abs=1e-5)
    assert len(parts._groups or ()) > 3
    assert len(whole._groups or ()) == 1
    assert not parts._kept


def test_memory_does_not_grow_with_the_rounds(static: onnxq.Result, tmp_path: Path) -> None:
    def peak(rounds: int) -> int:
        def feeds() -> Iterator[dict[str, NDArray[np.float32]]]:
            for number in range(rounds):
                yield {"image": np.full((1, 1, 8, 8), number / rounds, np.float32)}

        tracemalloc.start()
        onnxq.write_debug(static, feeds, tmp_path / "debug")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)
    few, many = peak(3), peak(30)
    assert many < 1.1 * few + 30_000, (few, many)


def test_a_run_that_fails_leaves_whole_files_only(static: onnxq.Result, tmp_path: Path) -> None:
    def feeds() -> Iterator[dict[str, NDArray[np.float32]]]:
        yield {"image": images(1)}
        yield {"image": np.zeros((1, 1, 9, 9), np.float32)}

    folder = tmp_path / "debug"
    onnxq.write_debug(static, CALIBRATION, folder, rounds=1)
    before = (folder / "round_0.csv").read_bytes()
    with pytest.raises(DataError, match="image"):
        onnxq.write_debug(static, feeds, folder)
    names = {path.name for path in folder.iterdir()}
    assert "output_summary.csv" not in names  # it would say that the report is complete
    assert not any(name.endswith(".tmp") for name in names)
    assert (folder / "round_0.csv").read_bytes() == before


def test_folder_is_made_in_one_that_exists(static: onnxq.Result, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        onnxq.write_debug(static, None, tmp_path / "missing" / "debug")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is a file"):
        onnxq.write_debug(static, None, tmp_path / "file")
    with pytest.raises(DataError, match="0 rounds"):
        onnxq.write_debug(static, None, tmp_path / "debug", rounds=0)


def test_nothing_quantized_is_nothing_to_report(tmp_path: Path) -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { [e] y = Erf (x) }")
    result = onnxq.quantize(model, {"x": normal(2, 4)})
    with pytest.raises(GraphError, match="nothing was quantized"):
        onnxq.write_debug(result, {"x": normal(2, 4)}, tmp_path / "debug")


def test_nodes_that_the_float_model_lacks_have_no_origin(static: onnxq.Result) -> None:
    assert static.original is not None
    reading = read_quantized(static.graph)
    layout = find_places(GraphModel.from_proto(build("g (float[1] x) => (float[1] y) { [e] y = Erf (x) }")), reading)
    assert layout.places
    assert all(place.measure.origin is None for place in layout.places)
