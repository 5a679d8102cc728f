"""The command line as a user and as another program sees it."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from typer.testing import CliRunner

from onnxq.cli import options
from onnxq.cli.app import app
from onnxq.recipe import Recipe
from tests.graphs import build, normal

MODELS = Path(__file__).parents[2] / "models"
SEPARATE = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
CONV = """g (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    c = Conv<pads=[1, 1, 1, 1]>(x, W)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm(f, G)
}"""


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model, data and labels; the current one."""
    monkeypatch.chdir(tmp_path)
    model = build(CONV, W=normal(4, 3, 3, 3), G=normal(4, 4))
    for node, name in zip(model.graph.node, ("conv", "relu", "pool", "flat", "head"), strict=True):
        node.name = name
    onnx.save(model, "m.onnx")
    np.savez("d.npz", x=normal(12, 3, 8, 8))
    np.save("labels.npy", np.arange(12) % 4)
    return tmp_path


def run(*args, code=0):
    result = CliRunner(**SEPARATE).invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def document(*args, code=0):
    """Standard output must be one JSON document and nothing else."""
    return json.loads(run(*args, "--json", code=code).stdout)


def fails(*args):
    """The one line on standard error of a command that gets bad input."""
    result = run(*args, code=2)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# ---- quantize ------------------------------------------------------------------------------------


def test_quantize_writes_a_model_that_computes_with_codes(here):
    result = run("quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz")
    written = onnx.load("q.onnx")
    onnx.checker.check_model(written)
    assert any(node.op_type == "QuantizeLinear" for node in written.graph.node)
    assert "q.onnx" in result.stdout
    assert "12 samples" in result.stdout
    assert sorted(p.name for p in here.iterdir()) == ["d.npz", "labels.npy", "m.onnx", "q.onnx"]


def test_quantize_json(here):
    found = document("quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz", "--samples", 5, "--report", "r.html")
    assert (found["model"], found["output"], found["report"], found["target"]) == ("m.onnx", "q.onnx", "r.html", "ort")
    assert found["changed"] is True
    assert found["samples"] == 5
    assert found["bytes_before"] == Path("m.onnx").stat().st_size
    assert found["bytes_after"] == Path("q.onnx").stat().st_size
    assert sum(found["counts"].values()) == 5
    assert found["recipe"]["calibration"]["samples"] == 5
    assert Path("r.html").read_text().startswith("<!DOCTYPE html>")


def test_under_json_the_table_goes_to_standard_error(here):
    result = run("quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz", "--json")
    assert "written" in result.stderr
    assert "quantized" in result.stderr


def test_skip_by_name_glob_and_type_is_told_with_its_reason(here):
    args = (
        "quantize",
        "m.onnx",
        "-o",
        "q.onnx",
        "--data",
        "d.npz",
        "--skip",
        "head",
        "--skip",
        "p*",
        "--skip",
        "Flatten",
    )
    found = {entry["node"]: entry["reason"] for entry in document(*args)["float"]}
    assert found["head"] == "the recipe skips 'head'"
    assert found["pool"] == "the recipe skips 'p*'"
    assert found["flat"] == "the recipe skips 'Flatten'"
    assert "the recipe skips 'p*'" in run(*args).stdout


def test_where_nothing_can_be_quantized_the_model_is_written_unchanged(here):
    onnx.save(build("g (float[N, 3] x) => (float[N, 3] y) { y = Erf(x) }"), "erf.onnx")
    np.savez("e.npz", x=normal(4, 3))
    result = run("quantize", "erf.onnx", "-o", "q.onnx", "--data", "e.npz")
    assert Path("q.onnx").read_bytes() == Path("erf.onnx").read_bytes()
    assert "nothing in this model can be quantized" in result.stderr
    assert document("quantize", "erf.onnx", "-o", "q.onnx", "--data", "e.npz")["changed"] is False


def test_random_data_come_with_a_warning(here):
    result = run("quantize", "m.onnx", "-o", "q.onnx", "--random", 3, "--json")
    assert "warning: calibrated with random data" in result.stderr
    found = json.loads(result.stdout)
    assert found["samples"] == 3
    assert found["recipe"]["calibration"]["random"] is True
    metadata = {entry.key: entry.value for entry in onnx.load("q.onnx").metadata_props}
    assert metadata["onnxq.calibration_data"] == "random"


def test_external_data(here):
    run("quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz")
    assert not Path("q.onnx.data").exists()
    onnx.save(build("g (float[N, 900] x) => (float[N, 9] y) { y = MatMul(x, W) }", W=normal(900, 9)), "big.onnx")
    np.savez("b.npz", x=normal(4, 900))
    found = document("quantize", "big.onnx", "-o", "b.onnx", "--data", "b.npz", "--external-data")
    assert found["bytes_after"] == Path("b.onnx").stat().st_size + Path("b.onnx.data").stat().st_size


@pytest.mark.parametrize(("location", "output"), [("q.onnx.data", "q.onnx"), ("weights.bin", "weights.bin")])
def test_the_weights_of_the_float_model_are_not_overwritten(here, location, output):
    model = onnx.load("m.onnx")
    onnx.save(model, "ext.onnx", save_as_external_data=True, location=location, size_threshold=0)
    before = Path(location).read_bytes()
    line = fails("quantize", "ext.onnx", "-o", output, "--data", "d.npz")
    assert f"{location} holds weights of ext.onnx" in line
    assert Path(location).read_bytes() == before


def test_the_same_command_gives_the_same_bytes(here):
    for name in ("a.onnx", "b.onnx"):
        run("quantize", "m.onnx", "-o", name, "--data", "d.npz", "--seed", 7, "--batch-size", 3)
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_images(here):
    import cv2

    (here / "img").mkdir()
    for index in range(3):
        cv2.imwrite(f"img/{index}.png", np.random.default_rng(index).integers(0, 255, (20, 16, 3), dtype=np.uint8))
    args = ("quantize", "m.onnx", "-o", "q.onnx", "--data", "img")
    assert "--image-size" in fails(*args)
    found = document(
        *args, "--resize-short-side", 9, "--crop", 8, "--mean", "0.5,0.4,0.3", "--std", 0.2, "--color", "BGR"
    )
    assert found["samples"] == 3
    settings = found["recipe"]["calibration"]["preprocess"]
    assert (settings["resize_short_side"], settings["crop"], settings["color"]) == (9, [8, 8], "BGR")
    assert (settings["mean"], settings["std"]) == ([0.5, 0.4, 0.3], [0.2])


def two_inputs(here):
    """A model with an image and a vector, and a folder of data for each."""
    import cv2

    body = """g (float[N, 3, 8, 8] image, float[N, 4] code) => (float[N, 4] y) {
        c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, W)
        r = Relu(c)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        m = MatMul(code, V)
        y = Add(f, m)
    }"""
    onnx.save(build(body, W=normal(4, 3, 3, 3), V=normal(4, 4)), "two.onnx")
    for folder in ("img", "vec"):
        (here / folder).mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        cv2.imwrite(f"img/{index}.png", rng.integers(0, 255, (20, 16, 3), dtype=np.uint8))
        (here / "vec" / f"{index}.bin").write_bytes(rng.standard_normal(4).astype("<f4").tobytes())


def test_one_folder_per_input(here):
    two_inputs(here)
    images = ("--data", "image:img,code:vec", "--scale", 1, "--mean", 127.5, "--std", 60)
    images += ("--normalize", "before_resize", "--interpolation", "cubic", "--bin-layout", "NHWC")
    found = document("quantize", "two.onnx", "-o", "q.onnx", *images)
    assert found["samples"] == 4
    reading = found["recipe"]["calibration"]
    assert (reading["preprocess"]["normalize"], reading["preprocess"]["interpolation"]) == ("before_resize", "cubic")
    assert (reading["preprocess"]["layout"], reading["bin_layout"]) == ("auto", "NHWC")
    Path("l.csv").write_text("file,label\n3.png,3\n0.png,0\n2.png,2\n1.png,1\n")
    compared = document("compare", "two.onnx", "q.onnx", *images, "--labels", "l.csv", "--no-latency")
    assert compared["samples"] == 4
    assert compared["outputs"][0]["sqnr_db"] > 20
    (here / "vec" / "3.bin").unlink()
    assert "'image' 4, 'code' 3" in fails("quantize", "two.onnx", "-o", "q.onnx", *images)


def test_data_are_compared_on_as_a_configuration_of_the_converter_says(here):
    two_inputs(here)
    Path("full.cfg").write_text(
        "[common_quant_param]\nquant_type=FULL_QUANT\n[data_preprocess_param]\ncalibrate_path=image:img,code:vec\n"
        "calibrate_size=4\ninput_type=IMAGE\nimage_to_format=RGB\nresize_method=CUBIC\nresize_width=9\n"
        "resize_height=10\ncenter_crop_width=8\ncenter_crop_height=8\n"
        "normalize_mean=[1.0,2.0,3.0]\nnormalize_std=[64,64,64]\n"
    )
    by_hand = ("--data", "image:img,code:vec", "--interpolation", "cubic", "--image-size", "10x9", "--crop", 8)
    by_hand += ("--normalize", "before_resize", "--scale", 1, "--mean", "1,2,3", "--std", 64)
    document("quantize", "two.onnx", "-o", "q.onnx", *by_hand)
    compare = ("compare", "two.onnx", "q.onnx", "--no-latency", "--data", "image:img,code:vec")
    found = document(*compare, "--config", "full.cfg")["outputs"]
    assert found == document(*compare, *by_hand[2:])["outputs"]
    assert found != document(*compare, "--config", "full.cfg", "--normalize", "after_crop")["outputs"]


def test_bin_files_in_another_layout_give_the_same_model(here):
    x = normal(5, 3, 8, 8)
    for folder, order in (("first", (0, 1, 2, 3)), ("last", (0, 2, 3, 1))):
        (here / folder).mkdir()
        for index, sample in enumerate(x):
            data = np.ascontiguousarray(sample[np.newaxis].transpose(order), "<f4")
            (here / folder / f"{index}.bin").write_bytes(data.tobytes())
    run("quantize", "m.onnx", "-o", "first.onnx", "--data", "first")
    found = document("quantize", "m.onnx", "-o", "last.onnx", "--data", "last", "--bin-layout", "NHWC")
    assert "are transposed to NCHW" in found["notes"][0]
    first, last = onnx.load("first.onnx"), onnx.load("last.onnx")
    assert first.graph == last.graph
    digests = {p.value for model in (first, last) for p in model.metadata_props if p.key == "onnxq.calibration_sha256"}
    assert len(digests) == 1
    compared = document("compare", "m.onnx", "last.onnx", "--data", "last", "--bin-layout", "NHWC", "--no-latency")
    assert "are transposed to NCHW" in compared["notes"][0]


def test_report_and_model_are_not_written_when_interrupted(here, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxq.report.job.quantize", interrupted)
    result = run("quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz", "--report", "r.html", code=130)
    assert result.stderr.strip() == "interrupted"
    assert not list(here.glob("*q.onnx*")) + list(here.glob("*.html*"))


def test_a_full_disk_is_bad_input_not_a_traceback(here, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device", "q.onnx")

    monkeypatch.setattr("onnxq.report.job.quantize", full)
    assert fails("quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz") == "error: q.onnx: No space left on device"


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-o", "no/q.onnx"], ["-o no/q.onnx", "there is no folder no"]),
        (["-o", "d.npz/q.onnx"], ["d.npz is not a folder"]),
        (["-o", "."], ["-o . is a folder"]),
        (["-o", "m.onnx"], ["the same file as MODEL m.onnx"]),
        (["-o", "./d.npz"], ["the same file as --data d.npz"]),
        (["-o", "q.onnx", "--report", "q.onnx"], ["--report q.onnx is the same file as -o q.onnx"]),
        (["-o", "q.onnx", "--report", "no/r.html"], ["--report no/r.html: there is no folder no"]),
    ],
)
def test_outputs_are_checked_before_any_work(here, monkeypatch, args, words):
    monkeypatch.setattr("onnxq.report.job.run_job", lambda *_args, **_options: pytest.fail("too late"))
    line = fails("quantize", "m.onnx", "--data", "d.npz", *args)
    assert all(word in line for word in words)


def test_links_do_not_hide_that_two_files_are_one(here):
    (here / "link.onnx").symlink_to("m.onnx")
    assert "the same file" in fails("quantize", "link.onnx", "-o", "m.onnx", "--data", "d.npz")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["quantize", "x.onnx", "-o", "q.onnx", "--data", "d.npz"], ["no model file x.onnx", "did you mean 'm.onnx'?"]),
        (["quantize", "m.onnx", "-o", "q.onnx"], ["need calibration data", "--data"]),
        (["quantize", "m.onnx", "-o", "q.onnx", "--data", "nope"], ["nope: does not exist"]),
        (["quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz", "--random", "3"], ["exclude each other"]),
        (
            ["quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz", "--skip", "conf"],
            ["'conf'", "did you mean 'conv'"],
        ),
        (["quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz", "--config", "no.yaml"], ["no.yaml: cannot be read"]),
        (
            ["quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz", "--image-size", "ax3"],
            ["--image-size: found 'ax3'"],
        ),
        (["quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz", "--mean", "a"], ["--mean: 'a' is not a number"]),
        (["quantize", "m.onnx", "-o", "q.onnx", "--method", "kll"], ["'--method'", "see 'onnxq quantize --help'"]),
        (["quantize", "m.onnx", "-o", "q.onnx", "--samples", "0"], ["'--samples'"]),
        (["quantize", "m.onnx"], ["Missing option", "-o"]),
        (["quantize"], ["Missing argument"]),
        (["quantize", "m.onnx", "-o", "q.onnx", "--no-such"], ["No such option", "--no-such"]),
        (["quantise"], ["No such command 'quantise'"]),
        (["--nope"], ["--nope", "see 'onnxq --help'"]),
        (["inspect", "d.npz"], ["d.npz is not an ONNX model"]),
        (["inspect", "m.onnx", "--skip", "conf"], ["'conf'"]),
        (["compare", "m.onnx", "m.onnx", "--data", "d.npz", "--max-drop", "1"], ["needs --labels"]),
        (["compare", "m.onnx", "m.onnx"], ["Missing option '--data'"]),
        (["recipe", "show", "no.yaml"], ["no.yaml: cannot be read"]),
        (["demo", "--models", "."], ["does not hold the bundled models"]),
        (["demo"], ["the bundled models were not found", "--models"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(here, args, words):
    line = fails(*args)
    assert all(word in line for word in words), line
    assert not list(here.glob("*q.onnx*"))
    content = json.loads(run(*args, "--json", code=2).stdout)
    assert f"error: {content['error']['message']}" == line


def test_error_types_are_the_public_ones(here):
    assert document("inspect", "x.onnx", code=2)["error"]["type"] == "ModelError"
    assert document("inspect", "m.onnx", "--skip", "conf", code=2)["error"]["type"] == "RecipeError"
    assert document("inspect", code=2)["error"]["type"] == "UsageError"


def test_all_problems_of_a_recipe_are_told_at_once(here):
    Path("r.yaml").write_text("target: orr\nseed: 3\n")
    lines = run("recipe", "show", "r.yaml", code=2).stderr.splitlines()
    assert lines[0] == "error: r.yaml: 2 problems in the recipe"
    assert [line.strip().split(":")[0] for line in lines[1:]] == ["target", "seed"]


# ---- recipes -------------------------------------------------------------------------------------


def test_options_are_laid_over_the_recipe(here):
    Path("r.yaml").write_text(
        "target: qnn\nskip: [Softmax]\nactivations: {bits: 7, method: {name: kl, num_bins: 512}}\n"
        "calibration: {seed: 3, random: true, preprocess: {resize_short_side: 256, mean: [0.1, 0.2, 0.3]}}\n"
    )
    found = options.RecipeOptions(
        config=Path("r.yaml"),
        method=options.Method.KL,
        samples=9,
        skip=("conv",),
        has_data=True,
        images=options.ImageOptions(image_size="32x48", color=options.Color.BGR),
    ).recipe()
    assert found.target == "qnn"
    assert found.skip == ("Softmax", "conv")
    assert found.activations.bits == 7
    assert found.activations.method.num_bins == 512  # the recipe's own parameters of the same method
    assert (found.calibration.samples, found.calibration.seed, found.calibration.random) == (9, 3, False)
    images = found.calibration.preprocess
    assert (images.size, images.resize_short_side, images.color) == ((32, 48), None, "BGR")
    assert images.mean == (0.1, 0.2, 0.3)
    other = options.RecipeOptions(config=Path("r.yaml"), method=options.Method.MSE).recipe()
    assert other.activations.method.name == "mse"
    assert other.activations.bits == 7
    assert options.RecipeOptions().recipe() == Recipe()


def test_scale_may_be_a_fraction():
    images = options.ImageOptions(scale="1/255").over(None)
    assert images.scale == 1 / 255


def test_choices_are_those_of_recipes():
    schema = json.dumps(Recipe.json_schema())
    images = (*options.Layout, *options.BinLayout, *options.Color, *options.Interpolation, *options.Normalize)
    for choice in (*options.Target, *options.Method, *images):
        assert f'"{choice.value}"' in schema
    from onnxq._recipe.methods import _activation_names

    assert [m.value for m in options.Method] == _activation_names()


def test_recipe_schema_and_show_are_what_python_gives(here):
    assert json.loads(run("recipe", "schema").stdout) == Recipe.json_schema()
    assert document("recipe", "schema") == Recipe.json_schema()
    assert Recipe.from_text(run("recipe", "show").stdout) == Recipe()
    changed = run("recipe", "show", "--method", "kl", "--skip", "Add", "--changes").stdout
    assert yaml.safe_load(changed) == {"version": 1, "activations": {"method": {"name": "kl"}}, "skip": ["Add"]}
    assert document("recipe", "show", "--target", "qnn")["target"] == "qnn"


# ---- inspect -------------------------------------------------------------------------------------


def test_inspect(here):
    result = run("inspect", "m.onnx", "--skip", "conv")
    for words in ("opset 17", "x: float32 [N, 3, 8, 8]", "the recipe skips 'conv'", "Gemm x1"):
        assert words in result.stdout
    found = document("inspect", "m.onnx", "--skip", "conv")
    assert found["model"]["parameters"] == 4 * 27 + 16
    assert [node["node"] for node in found["plan"]["nodes"]] == ["conv", "relu", "pool", "flat", "head"]
    assert found["plan"]["nodes"][0]["role"] == "float"
    assert sum(found["plan"]["counts"].values()) == 5
    assert [p.name for p in here.glob("*.onnx")] == ["m.onnx"]


def test_inspect_nodes_lists_every_node(here):
    text = run("inspect", "m.onnx", "--nodes").stdout
    assert all(name in text for name in ("conv", "relu", "pool", "flat", "head"))


def test_names_that_look_like_markup_are_shown_as_they_are(here):
    model = onnx.load("m.onnx")
    model.graph.node[0].name = "[bold]conv[/nope]"
    onnx.save(model, "odd.onnx")
    assert "[bold]conv[/nope]" in run("inspect", "odd.onnx", "--nodes").stdout
    assert "[bold]conv[/nope]" in run("inspect", "odd.onnx", "--skip", "Conv", "--verbose").stdout
    assert "[/nope]" in fails("inspect", "odd.onnx", "--skip", "[bold]conv[/nope]x")


# ---- compare -------------------------------------------------------------------------------------


def test_compare_and_its_gates(here):
    run("quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz")
    args = ("compare", "m.onnx", "q.onnx", "--data", "d.npz", "--labels", "labels.npy", "--no-latency")
    found = document(*args)
    assert found["failed"] == []
    assert found["samples"] == 12
    sqnr = found["outputs"][0]["sqnr_db"]
    assert sqnr > 20
    run(*args, "--min-sqnr", sqnr - 1, "--max-drop", 100)
    failed = run(*args, "--min-sqnr", sqnr + 1, code=1)
    assert "failed: output 'y' has an SQNR" in failed.stderr
    assert len(document(*args, "--min-sqnr", sqnr + 1, "--max-drop", -101, code=1)["failed"]) == 2


def test_compare_layers_are_shown_with_the_worst_marked(here):
    run("quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz")
    args = ("compare", "m.onnx", "q.onnx", "--data", "d.npz", "--layers", "--no-latency")
    found = document(*args)
    assert found["layers"][-1]["tensor"] == "y"
    shown = run(*args).stdout
    worst = min(found["layers"], key=lambda layer: layer["sqnr_db"])
    assert f"> {worst['node']}" in shown


def test_compare_shows_latency(here):
    found = run("compare", "m.onnx", "m.onnx", "--data", "d.npz", "--threads", 1).stdout
    assert "latency" in found
    assert "equal" in found


# ---- demo ----------------------------------------------------------------------------------------


def test_demo(here):
    found = document("demo", "--models", MODELS, "--only", "digits_cnn", "--keep", "kept", "--threads", 1)
    (row,) = found["models"]
    assert row["accuracy"]["reference"] > 0.97
    assert row["accuracy"]["samples"] == 450
    assert row["bytes_quantized"] == Path("kept/digits_cnn.int8.onnx").stat().st_size
    assert fails("demo", "--models", MODELS, "--only", "digits_cn").count("did you mean 'digits_cnn'") == 1


# ---- as a process --------------------------------------------------------------------------------


def process(*args, **options):
    command = [sys.executable, "-c", "from onnxq.cli import main; main()", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_streams_and_exit_codes_of_the_process(here):
    done = process("quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["changed"] is True
    done = process("compare", "m.onnx", "q.onnx", "--data", "d.npz", "--no-latency", "--min-sqnr", "300", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["failed"]
    done = process("quantize", "x.onnx", "-o", "q.onnx", "--data", "d.npz")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_help_needs_nothing_heavy():
    script = (
        "import sys, contextlib\n"
        "from onnxq.cli.app import app\n"
        "with contextlib.suppress(SystemExit): app(['quantize', '--help'])\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'numba', 'cv2', 'jinja2', 'onnx_graphsurgeon'}\n"
        "sys.stderr.write(','.join(sorted(heavy & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "--data" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("args", [[], ["--help"], ["recipe"], ["-h"], ["compare", "-h"]])
def test_help(args):
    assert "Usage:" in run(*args).stdout


def test_version():
    from onnxq import __version__

    assert run("--version").stdout == f"onnxq {__version__}\n"


def test_every_command_takes_json():
    for command in (["quantize"], ["inspect"], ["compare"], ["recipe", "schema"], ["recipe", "show"], ["demo"]):
        assert "--json" in run(*command, "--help").stdout


def test_completion_of_commands(here):
    environment = {
        "_ONNXQ_COMPLETE": "complete_bash",
        "COMP_WORDS": "onnxq qu",
        "COMP_CWORD": "1",
        "PATH": "/usr/bin:/bin",
    }
    script = "import sys; sys.argv[0] = 'onnxq'; from onnxq.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.split() == ["quantize"]
