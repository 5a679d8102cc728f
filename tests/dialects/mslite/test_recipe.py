"""What each configuration means as a recipe."""

from pathlib import Path

import pytest

from onnxq.calib.readers import Folders
from onnxq.dialects.mslite.params import load_config, parse_config
from onnxq.dialects.mslite.recipe import needs_data, notes_of, to_data, to_recipe
from onnxq.recipe import (
    KL,
    AbsMax,
    BiasCorrection,
    Dynamic,
    ImagePreprocess,
    MinMax,
    MixedBits,
    Recipe,
    RemovalOutlier,
    Static,
    WeightOnly,
)

SAMPLES = Path(__file__).parent / "samples"


def recipe(quant_type: str, *lines: str) -> Recipe:
    found = to_recipe(parse_config("\n".join(["[common_quant_param]", f"quant_type={quant_type}", *lines])))
    assert found is not None
    return found


def test_without_a_type_nothing_is_wanted():
    config = load_config(SAMPLES / "debug.cfg")
    assert to_recipe(config) is None
    assert any("no quant_type in [common_quant_param]: nothing is quantized" in note for note in notes_of(config))


def test_fixed_bits_of_the_manual():
    found = to_recipe(load_config(SAMPLES / "fixed_bit_weight_quant.cfg"))
    assert found.scheme == WeightOnly(min_size=0, min_channels=16, gain_rule=True, correction=True)
    assert (found.weights.bits, found.weights.symmetric, found.weights.granularity) == (8, False, "per_axis")
    assert found.weights.method == AbsMax()
    assert (found.target, found.refine) == ("ort", ())


def test_mixed_bits_of_the_manual():
    found = to_recipe(load_config(SAMPLES / "mixed_bit_weight_quant.cfg"))
    assert isinstance(found.scheme, WeightOnly)
    assert found.scheme.mixed == MixedBits(init_scale=0.02, auto_tune=False, max_iterations=40)
    assert (found.scheme.min_size, found.scheme.min_channels) == (5000, 5)
    assert found.weights.bits is None


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_width(bits):
    assert recipe("WEIGHT_QUANT", f"bit_num={bits}").weights.bits == bits


@pytest.mark.parametrize(
    ("lines", "storage"),
    [
        ([], "packed"),
        (["enable_encode=false"], "native"),
        (["[weight_quant_param]", "dequant_strategy=ON_THE_FLY"], "native"),
        (["bit_num=3", "[weight_quant_param]", "dequant_strategy=ON_THE_FLY"], "packed"),
        (["[transform_quant_param]", "export_precision_mode=FLOAT32"], "rounded"),
    ],
)
def test_storage(lines, storage):
    assert recipe("WEIGHT_QUANT", *lines).scheme.storage == storage


def test_weights_with_one_scale_and_without_correction():
    found = recipe("WEIGHT_QUANT", "[weight_quant_param]", "per_channel=false", "bias_correction=false")
    assert found.weights.granularity == "per_tensor"
    assert not found.scheme.correction


@pytest.mark.parametrize(
    ("name", "method"), [("MAX_MIN", MinMax()), ("KL", KL()), ("REMOVAL_OUTLIER", RemovalOutlier())]
)
def test_full_quantization(name, method):
    found = recipe("FULL_QUANT", "[full_quant_param]", f"activation_quant_method={name}")
    assert found.scheme == Static()
    assert found.activations.method == method
    assert found.refine == (BiasCorrection(inputs="float"),)
    assert not found.equalize.enabled


@pytest.mark.parametrize(
    ("device", "target", "equalized", "symmetric", "corrected"),
    [
        (None, "ort", True, False, True),
        ("NVGPU", "tensorrt", True, True, False),
        ("DSP", "qnn", False, False, True),
        ("KIRIN", "kirin", True, False, False),
        ("ASCEND", "ascend", True, True, True),
    ],
)
def test_devices(device, target, equalized, symmetric, corrected):
    lines = ["[full_quant_param]", *([] if device is None else [f"target_device={device}"])]
    by_channel, by_layer = recipe("FULL_QUANT", *lines), recipe("FULL_QUANT", *lines, "per_channel=false")
    assert (by_channel.target, by_layer.target) == (target, target)
    assert (by_channel.equalize.enabled, by_layer.equalize.enabled) == (False, equalized)
    assert (by_channel.weights.granularity, by_channel.weights.symmetric) == (None, True)
    assert (by_layer.weights.granularity, by_layer.weights.symmetric) == ("per_tensor", symmetric)
    assert bool(by_channel.refine) is corrected
    assert recipe("FULL_QUANT", *lines, "bias_correction=false").refine == ()


def test_a_correction_that_is_asked_for_and_not_done_is_told():
    asked = parse_config(
        "[common_quant_param]\nquant_type=FULL_QUANT\n[full_quant_param]\ntarget_device=NVGPU\nbias_correction=true"
    )
    assert notes_of(asked) == ("line 5: bias_correction: is not done for NVGPU, as the converter has it",)
    silent = parse_config("[common_quant_param]\nquant_type=FULL_QUANT\n[full_quant_param]\ntarget_device=NVGPU")
    assert notes_of(silent) == ()


def test_dynamic_quantization():
    found = to_recipe(load_config(SAMPLES / "dynamic_quant.cfg"))
    assert found.scheme == Dynamic()
    assert found.refine == ()
    one_scale = recipe("DYNAMIC_QUANT", "[dynamic_quant_param]", "quant_strategy=ACWL")
    assert (found.weights.granularity, one_scale.weights.granularity) == (None, "per_tensor")


@pytest.mark.parametrize("quant_type", ["WEIGHT_QUANT", "FULL_QUANT", "DYNAMIC_QUANT"])
def test_skipped_nodes_are_named_exactly(quant_type):
    found = recipe(quant_type, "skip_quant_node=conv*,MatMul")
    assert found.resolve("conv*", "Conv").skip
    assert found.resolve("MatMul", "Add").skip
    assert not found.resolve("conv1", "Conv").skip
    assert not found.resolve("x", "MatMul").skip


def test_images_are_normalized_and_then_resized():
    data = to_data(load_config(SAMPLES / "full_quant.cfg"))
    assert data == Folders(
        folders={"input_name_1": "/mnt/image/input_1_dir", "input_name_2": "input_2_dir"},
        kind="image",
        preprocess=ImagePreprocess(
            size=(224, 224),
            crop=(224, 224),
            interpolation="linear",
            scale=1.0,
            mean=(127.5, 127.5, 127.5),
            std=(127.5, 127.5, 127.5),
            normalize="before_resize",
            color="RGB",
            orientation=True,
        ),
        layouts="NHWC",
        samples=100,
    )


def test_images_as_they_are_decoded():
    lines = "[data_preprocess_param]\ncalibrate_path=x:d\ninput_type=IMAGE\nresize_width=8\nresize_height=9\n"
    config = parse_config(lines)
    assert to_data(config).preprocess == ImagePreprocess(
        scale=1.0, normalize="before_resize", color="BGR", orientation=True
    )
    assert any("only where resize_method says how" in note for note in notes_of(config))
    gray = to_data(parse_config(lines + "resize_method=NEAREST\nimage_to_format=GRAY\n")).preprocess
    assert (gray.size, gray.interpolation, gray.color) == ((9, 8), "nearest", "GRAY")


def test_binary_files():
    config = parse_config("[data_preprocess_param]\ncalibrate_path=x:d\ncalibrate_size=3\ninput_type=BIN\n")
    found = to_data(config, "NCHW")
    assert (found.kind, found.layouts, found.samples) == ("bin", "NCHW", 3)
    assert found.preprocess is None
    full = parse_config("[common_quant_param]\nquant_type=FULL_QUANT\n[data_preprocess_param]\ncalibrate_size=3\n")
    assert to_recipe(full).calibration.samples == 3
    assert to_data(config).layouts == "NHWC"
    assert to_data(parse_config("")) is None


@pytest.mark.parametrize(
    ("lines", "needed"),
    [
        (["quant_type=FULL_QUANT"], True),
        (["quant_type=DYNAMIC_QUANT"], False),
        (["quant_type=WEIGHT_QUANT"], False),
        (["quant_type=WEIGHT_QUANT", "bit_num=0"], False),
        (["quant_type=WEIGHT_QUANT", "bit_num=0", "[mixed_bit_weight_quant_param]", "auto_tune=true"], True),
        (["quant_type=WEIGHT_QUANT", "[mixed_bit_weight_quant_param]", "auto_tune=true"], False),
    ],
)
def test_who_needs_data(lines, needed):
    config = parse_config("\n".join(["[common_quant_param]", *lines]))
    assert needs_data(config) is needed
