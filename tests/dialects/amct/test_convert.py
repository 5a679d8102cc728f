"""convert_qat_model, simulate, deploy_to_qdq: files in, files out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.dialects.amct.convert import convert_qat_model, deploy_to_qdq, simulate
from onnxq.dialects.amct.record import read_record
from onnxq.errors import GraphError, ModelError
from tests.graphs import build, normal, run


def qat_model(zero_of_weight: int = 0) -> onnx.ModelProto:
    w = np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    model = build(
        """g (float[1,3,6,6] x) => (float[1,4,4,4] y) {
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
        wd = DequantizeLinear <axis = 0> (w, ws, wz) c = Conv(xd, wd, b) y = Relu(c) }""",
        s=0.05, z=np.uint8(130), w=w, ws=np.linspace(0.01, 0.04, 4, dtype=np.float32),
        wz=np.full(4, zero_of_weight, np.int8), b=normal(4),
    )  # fmt: skip
    model.graph.node[3].name = "conv"
    return model


def test_files_of_a_conversion(tmp_path: Path) -> None:
    onnx.save(qat_model(), tmp_path / "qat.onnx")
    done = convert_qat_model(tmp_path / "qat.onnx", tmp_path / "net", tmp_path / "record.txt")
    names = {"net_deploy_model.onnx", "net_fake_quant_model.onnx", "net_quant.json", "record.txt"}
    assert {f.name for f in done.files} == names
    assert {f.name for f in tmp_path.iterdir()} == {"qat.onnx", *names}
    assert done.layers == 1
    factors = read_record(tmp_path / "record.txt").layers["conv"]
    assert (factors.scale_d, factors.offset_d, factors.scale_w.size) == (np.float32(0.05), 2, 4)
    simulate(tmp_path / "net_deploy_model.onnx", tmp_path / "simulated.onnx")
    deploy_to_qdq(tmp_path / "net_deploy_model.onnx", tmp_path / "back.onnx")
    x = normal(1, 3, 6, 6, scale=3)
    expected = run(qat_model(), {"x": x})["y"]
    for name in ("net_fake_quant_model", "simulated", "back"):
        found = run(onnx.load(tmp_path / f"{name}.onnx"), {"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.002, err_msg=name)  # the bias has codes now


def test_without_a_record_none_is_written(tmp_path: Path) -> None:
    onnx.save(qat_model(), tmp_path / "qat.onnx")
    done = convert_qat_model(tmp_path / "qat.onnx", f"{tmp_path}/")
    assert {f.name for f in done.files} == {"deploy_model.onnx", "fake_quant_model.onnx", "quant.json"}


def test_nothing_is_left_of_what_fails(tmp_path: Path) -> None:
    onnx.save(qat_model(zero_of_weight=4), tmp_path / "qat.onnx")
    with pytest.raises(GraphError, match="symmetric weights"):
        convert_qat_model(tmp_path / "qat.onnx", tmp_path / "net", tmp_path / "record.txt")
    with pytest.raises(ModelError, match="no Ascend operator"):
        simulate(tmp_path / "qat.onnx", tmp_path / "simulated.onnx")
    with pytest.raises(ModelError, match="no such folder"):
        convert_qat_model(tmp_path / "qat.onnx", tmp_path / "missing" / "net")
    assert [f.name for f in tmp_path.iterdir()] == ["qat.onnx"]


def test_a_prefix_instead_of_a_file_is_pointed_out(tmp_path: Path) -> None:
    onnx.save(qat_model(), tmp_path / "qat.onnx")
    convert_qat_model(tmp_path / "qat.onnx", tmp_path / "net")
    with pytest.raises(ModelError, match="did you mean 'net_deploy_model"):
        simulate(tmp_path / "net", tmp_path / "simulated.onnx")
