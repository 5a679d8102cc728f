"""Whole conversions of the bundled models."""

import csv
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

import onnxq
from onnxq.dialects.mslite.job import convert_model, output_path, prepare
from onnxq.errors import DataError, ModelError, OnnxqError, RecipeError
from onnxq.runtime import make_session
from tests.dialects.mslite.test_recipe import SAMPLES

ROOT = Path(__file__).parents[3]
CNN = ROOT / "models" / "digits_cnn.onnx"
TRANSFORMER = ROOT / "models" / "digits_transformer.onnx"
CALIB = ROOT / "models" / "data" / "digits_calib.npz"
TEST = ROOT / "models" / "data" / "digits_test.npz"
FULL = "[common_quant_param]\nquant_type=FULL_QUANT\n"
DATA = "[data_preprocess_param]\ncalibrate_path=image:bins\ncalibrate_size=20\ninput_type=BIN\n"
DEVICES = {"NVGPU": "[full_quant_param]\ntarget_device=NVGPU\n", "DSP": "[full_quant_param]\ntarget_device=DSP\n"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bins").mkdir()
    for number, image in enumerate(np.load(CALIB)["image"][:30]):
        image.transpose(1, 2, 0).astype("<f4").tofile(tmp_path / "bins" / f"{number:02}.bin")
    return tmp_path


def config(text: str) -> Path:
    path = Path("quant.cfg")
    path.write_text(text)
    return path


def cosine(a: Path, b: Path) -> float:
    feed = {"image": np.load(TEST)["image"][:100]}
    x, y = (make_session(path).run(None, feed)[0].astype(np.float64).ravel() for path in (a, b))
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize(
    ("sample", "model", "ratio", "least"),
    [
        ("fixed_bit_weight_quant", TRANSFORMER, 0.6, 0.9999),
        ("mixed_bit_weight_quant", TRANSFORMER, 1.0, 0.999),
        ("dynamic_quant", TRANSFORMER, 0.6, 0.999),
    ],
)
def test_samples_of_the_manual_without_data(here, sample, model, ratio, least):
    # the weights of the bundled models have fewer than the 5000 elements of the manual's sample
    text = (SAMPLES / f"{sample}.cfg").read_text().replace("min_quant_weight_size=5000", "min_quant_weight_size=500")
    done = convert_model("ONNX", model, "out", config(text))
    assert done.files == (Path("out.onnx"),)
    assert done.result.changed
    assert done.bytes_after == Path("out.onnx").stat().st_size
    assert done.bytes_after < ratio * done.bytes_before
    assert cosine(model, done.output) > least


@pytest.mark.parametrize("bits", [1, 3, 4, 8, 11, 16])
def test_weights_of_every_width(here, bits):
    done = convert_model(
        "ONNX", TRANSFORMER, "out", config(f"[common_quant_param]\nquant_type=WEIGHT_QUANT\nbit_num={bits}")
    )
    assert {weight.spec.bits for weight in done.result.plan.weights} == {bits}
    assert cosine(TRANSFORMER, done.output) > {1: 0.0, 3: 0.8, 4: 0.98}.get(bits, 0.9999)


def test_the_sample_of_full_quantization_with_real_folders(here):
    """Verbatim but for the paths, the size of the images and their number."""
    text = (SAMPLES / "full_quant.cfg").read_text()
    (here / "images").mkdir()
    rng = np.random.default_rng(1)
    for number in range(6):
        cv2.imwrite(str(here / "images" / f"{number}.png"), rng.integers(0, 256, (12, 10, 3), np.uint8))
    changes = {
        "input_name_1:/mnt/image/input_1_dir,input_name_2:input_2_dir\n# Calib": "image:images\n# Calib",
        "=100": "=5",
        "=224": "=8",
        "=RGB": "=GRAY",
        "[127.5, 127.5, 127.5]": "[127.5]",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    done = convert_model("ONNX", CNN, "out", config(text))
    assert done.result.samples == 5
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators(done.output)


@pytest.mark.parametrize("method", ["MAX_MIN", "KL", "REMOVAL_OUTLIER"])
@pytest.mark.parametrize("per_channel", ["true", "false"])
def test_full_quantization(here, method, per_channel):
    text = f"{FULL}{DATA}[full_quant_param]\nactivation_quant_method={method}\nper_channel={per_channel}\n"
    done = convert_model("ONNX", CNN, "out", config(text))
    assert done.result.samples == 20
    assert done.bytes_after < 0.4 * done.bytes_before
    assert cosine(CNN, done.output) > 0.99


def test_bias_correction_as_the_converter_does_it_brings_the_outputs_closer(here):
    found = [
        convert_model("ONNX", CNN, f"out_{flag}", config(f"{FULL}{DATA}[full_quant_param]\nbias_correction={flag}\n"))
        for flag in ("true", "false")
    ]
    corrected, plain = (cosine(CNN, done.output) for done in found)
    assert corrected > plain


def test_devices(here):
    symmetric = convert_model("ONNX", CNN, "gpu", config(FULL + DATA + DEVICES["NVGPU"])).output
    for tensor in onnx.load(symmetric).graph.initializer:
        if "zero" in tensor.name:
            assert not onnx.numpy_helper.to_array(tensor).any()
    dsp = convert_model("ONNX", CNN, "dsp", config(FULL + DATA + DEVICES["DSP"]))
    assert not dsp.result.plan.left_float()
    kirin = convert_model("ONNX", CNN, "kirin", config(FULL + DATA + "[full_quant_param]\ntarget_device=KIRIN\n"))
    assert {d.op_type for d in kirin.result.plan.decisions if d.role == "quantized"} == {"Conv", "Gemm"}
    for path in (symmetric, dsp.output, kirin.output):
        assert cosine(CNN, path) > 0.98


def test_ascend_gets_a_model_that_runs_and_one_that_is_deployed(here):
    done = convert_model("ONNX", CNN, "net", config(FULL + DATA + "[full_quant_param]\ntarget_device=ASCEND\n"))
    assert [path.name for path in done.files] == [
        "net.onnx", "net_deploy_model.onnx", "net_fake_quant_model.onnx", "net_quant.json", "net_record.txt",
    ]  # fmt: skip
    assert all(path.exists() for path in done.files)
    assert "QuantizeLinear" in operators(done.output)
    assert "AscendQuant" in operators(Path("net_deploy_model.onnx"))
    assert cosine(CNN, done.output) > 0.98


def test_order_of_binary_files(here):
    square = np.load(CALIB)["image"][:4]
    for number, image in enumerate(square):
        (here / "bins" / f"{number:02}.bin").write_bytes(image.astype("<f4").tobytes())
    text = FULL + DATA.replace("=20", "=4")
    nchw = convert_model("ONNX", CNN, "a", config(text), input_data_format="NCHW").result
    straight = onnxq.quantize(CNN, square, recipe=nchw.recipe)
    assert {n: p.scale.tolist() for n, p in nchw.params.items()} == {
        n: p.scale.tolist() for n, p in straight.params.items()
    }


def test_debug_reports_are_those_of_the_rounds(here):
    text = FULL.replace("\n", "\ndebug_info_save_path=debug\n", 1) + DATA.replace("=20", "=3")
    done = convert_model("ONNX", CNN, "out", config(text))
    names = {path.name for path in Path("debug").iterdir()}
    assert names == {"output_summary.csv", "quant_param.csv", "round_0.csv", "round_1.csv", "round_2.csv"}
    assert done.debug.folder == Path("debug")
    with Path("debug/output_summary.csv").open() as file:
        assert [float(row["CosineSimilarity"]) > 0.9 for row in csv.DictReader(file)] == [True] * 3


def test_weights_alone_need_one_round_and_no_data(here):
    text = "[common_quant_param]\nquant_type=WEIGHT_QUANT\ndebug_info_save_path=debug\n"
    convert_model("ONNX", TRANSFORMER, "out", config(text))
    assert (Path("debug") / "round_0.csv").exists()
    assert not (Path("debug") / "round_1.csv").exists()


def test_data_that_are_not_needed_are_not_looked_at(here):
    text = "[common_quant_param]\nquant_type=DYNAMIC_QUANT\n" + DATA.replace("bins", "nowhere")
    done = convert_model("ONNX", TRANSFORMER, "out", config(text))
    assert "DYNAMIC_QUANT needs no calibration data; calibrate_path is not read" in done.notes


@pytest.mark.parametrize("text", ["", "[common_quant_param]\nbit_num=8\n", None])
def test_without_a_type_the_model_passes_through(here, text):
    done = convert_model("ONNX", CNN, "out.onnx", None if text is None else config(text))
    assert done.result is None
    assert done.files == (Path("out.onnx"),)
    assert cosine(CNN, done.output) == pytest.approx(1, abs=1e-12)
    assert any("nothing is quantized" in note for note in done.notes)


def test_shapes_are_fixed(here):
    done = convert_model("ONNX", CNN, "out", config(FULL + DATA), input_shape="image:1,1,8,8")
    (value,) = onnx.load(done.output).graph.input
    assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [1, 1, 8, 8]
    assert done.result.samples == 20
    same = convert_model("ONNX", CNN, "same", input_shape={"image": [2, -1, 8, 8]})
    (value,) = onnx.load(same.output).graph.input
    assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [2, 1, 8, 8]


def test_the_model_does_not_change_and_the_bytes_are_the_same_each_time(here):
    before = CNN.read_bytes()
    for name in ("a", "b"):
        convert_model("ONNX", CNN, name, config(FULL + DATA))
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert CNN.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        (FULL, RecipeError, "quant.cfg: calibrate_path: is missing; FULL_QUANT needs calibration data"),
        (FULL + DATA.replace("image:", "imag:"), DataError,
         "quant.cfg: line 4: calibrate_path: a folder is given for 'imag'"),
        (FULL + DATA.replace("=20", "=31"), DataError, "31 samples are asked for, but there are only 30"),
        (FULL + DATA.replace("bins", "none"), DataError, "quant.cfg: line 4: calibrate_path: none: does not exist"),
        (FULL + "skip_quant_node=head,stem/con\n" + DATA, RecipeError,
         "quant.cfg: line 3: skip_quant_node: 'stem/con' matches nothing in the model; did you mean 'stem/conv'"),
        (FULL + "debug_info_save_path=no/debug\n" + DATA, RecipeError,
         "quant.cfg: line 3: debug_info_save_path: no/debug"),
        (FULL + "bit_num=4\n" + DATA, RecipeError, "quant.cfg: line 3: bit_num: found 4; must be 8"),
    ],
)  # fmt: skip
def test_errors_say_where_and_leave_nothing(here, text, error, told):
    path = config(text)
    before = set(here.iterdir())
    with pytest.raises(error) as caught:
        convert_model("ONNX", CNN, "out", path)
    assert told in str(caught.value)
    assert set(here.iterdir()) == before


def test_nothing_is_left_where_writing_fails(here, monkeypatch):
    from onnxq.dialects.mslite import job

    def fail(*_: object) -> None:
        raise ModelError("the disk is full")

    monkeypatch.setattr(job, "write_companions", fail)
    path = config(FULL + DATA + "[full_quant_param]\ntarget_device=ASCEND\n")
    before = set(here.iterdir())
    with pytest.raises(ModelError, match="the disk is full"):
        convert_model("ONNX", CNN, "net", path)
    assert set(here.iterdir()) == before


@pytest.mark.parametrize(
    ("output", "told"), [("no/out", "there is no folder no"), ("model", "model.onnx is read; give another output")]
)
def test_outputs_that_cannot_be(here, output, told):
    Path("model.onnx").write_bytes(CNN.read_bytes())
    with pytest.raises(OnnxqError, match=told):
        convert_model("ONNX", "model.onnx", output)
    assert Path("model.onnx").read_bytes() == CNN.read_bytes()


@pytest.mark.parametrize(
    ("given", "path"), [("a", "a.onnx"), ("a.onnx", "a.onnx"), ("d.e/a.ONNX", "d.e/a.ONNX"), ("a.ms", "a.ms.onnx")]
)
def test_name_of_the_output(given, path):
    assert output_path(given) == Path(path)


def test_skipped_nodes_stay_float(here):
    found = prepare(config(FULL + "skip_quant_node=head, stem/conv\n" + DATA)).quantize(CNN)
    told = {d.node: d.reason for d in found.plan.left_float()}
    assert told["head"] == told["stem/conv"] == "skip_quant_node names it"
