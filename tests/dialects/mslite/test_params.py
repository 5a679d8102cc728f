"""What the keys mean, their ranges and defaults, and how their faults are told."""

from pathlib import Path

import pytest

from onnxq.dialects.mslite.params import (
    CommonParam,
    DataParam,
    DynamicParam,
    FullParam,
    MixedBitParam,
    MsliteConfig,
    TransformParam,
    WeightParam,
    is_mslite_config,
    load_config,
    parse_config,
)
from onnxq.errors import RecipeError

SAMPLES = Path(__file__).parent / "samples"
IMAGES = DataParam(
    calibrate_path=(("input_name_1", "/mnt/image/input_1_dir"), ("input_name_2", "input_2_dir")),
    calibrate_size=100,
    input_type="IMAGE",
    image_to_format="RGB",
    normalize_mean=(127.5, 127.5, 127.5),
    normalize_std=(127.5, 127.5, 127.5),
    resize_width=224,
    resize_height=224,
    resize_method="LINEAR",
    center_crop_width=224,
    center_crop_height=224,
)
DEBUG = "/home/workspace/mindspore/debug_info_save_path"
FULL = CommonParam(quant_type="FULL_QUANT")
EXPECTED = {
    "common": MsliteConfig(
        common=CommonParam(
            quant_type="WEIGHT_QUANT",
            skip_quant_node=("node_name1", "node_name2", "node_name3"),
            debug_info_save_path=DEBUG,
        )
    ),
    "mixed_bit": MsliteConfig(),
    "full_per_channel": MsliteConfig(),
    "full_per_layer": MsliteConfig(full=FullParam(per_channel=False)),
    "full_nvgpu": MsliteConfig(full=FullParam(target_device="NVGPU")),
    "full_dsp": MsliteConfig(full=FullParam(target_device="DSP", bias_correction=False)),
    "data_preprocess": MsliteConfig(data=IMAGES),
    "mixed_bit_weight_quant": MsliteConfig(
        common=CommonParam(
            quant_type="WEIGHT_QUANT", bit_num=0, min_quant_weight_size=5000, min_quant_weight_channel=5
        ),
        mixed_bit=MixedBitParam(init_scale=0.02),
    ),
    "fixed_bit_weight_quant": MsliteConfig(common=CommonParam(quant_type="WEIGHT_QUANT")),
    "full_quant": MsliteConfig(common=FULL, data=IMAGES),
    "dynamic_quant": MsliteConfig(common=CommonParam(quant_type="DYNAMIC_QUANT")),
    "debug": MsliteConfig(common=CommonParam(debug_info_save_path=DEBUG)),
    "skip": MsliteConfig(
        common=CommonParam(quant_type="FULL_QUANT", skip_quant_node=("conv2d_1", "add_8", "concat_1"))
    ),
}
PARTS = ("common", "mixed_bit", "full", "data", "weight", "transform", "dynamic")


def parts(config: MsliteConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in PARTS}


@pytest.mark.parametrize("name", [path.stem for path in sorted(SAMPLES.glob("*.cfg"))])
def test_the_samples_of_the_manual(name: str) -> None:
    found = load_config(SAMPLES / f"{name}.cfg")
    assert parts(found) == parts(EXPECTED[name])
    assert found.notes == ()
    assert is_mslite_config(SAMPLES / f"{name}.cfg")


def test_every_key_has_the_value_of_its_line() -> None:
    config = parse_config(
        "[common_quant_param]\nquant_type=WEIGHT_QUANT\nbit_num=16\nmin_quant_weight_size=65535\n"
        "enable_encode=FALSE\nmin_quant_weight_channel=0\nskip_quant_node= a , b:0 ,,a\ndebug_info_save_path=d e\n"
        "workspace=w\nthread_num=2\n"
        "[mixed_bit_weight_quant_param]\ninit_scale=1e-1\nauto_tune=True\nuse_cv_data=true\nmax_iterations=41\n"
        "[full_quant_param]\nactivation_quant_method=REMOVAL_OUTLIER\nbias_correction=false\nper_channel=false\n"
        "target_device=KIRIN\nsmooth_alpha=0.6\nenable_smooth_shift=true\nenable_all_ops=true\n"
        "[weight_quant_param]\ndequant_strategy=ON_THE_FLY\nquant_strategy=GPTQ\nupdate_mindir=false\nmax_segments=4\n"
        "per_channel=false\nbias_correction=false\n"
        "[transform_quant_param]\nexport_precision_mode=FLOAT32\n"
        "[dynamic_quant_param]\nquant_strategy=ACWL\n"
        "[data_preprocess_param]\ncalibrate_path=x:0:/d 1,y:'C:\\d'\ncalibrate_size=65535\ninput_type=BIN\n"
        "image_to_format=GRAY\nnormalize_mean=[ 1, .5 ,-3.]\nnormalize_std=[1,2,3,]\nresize_method=CUBIC\n",
        source="all.cfg",
    )
    assert config.common == CommonParam("WEIGHT_QUANT", 16, 65535, 0, ("a", "b:0"), "d e", False, "w", 2)
    assert config.mixed_bit == MixedBitParam(0.1, True, True, 41)
    assert config.full == FullParam("REMOVAL_OUTLIER", False, False, "KIRIN", 0.6, True, True)
    assert config.weight == WeightParam("ON_THE_FLY", "GPTQ", False, 4, False, False)
    assert config.transform == TransformParam("FLOAT32")
    assert config.dynamic == DynamicParam("ACWL")
    assert config.data.calibrate_path == (("x:0", "/d 1"), ("y", "C:\\d"))
    assert config.data.normalize_mean == (1, 0.5, -3)
    assert config.data.normalize_std == (1, 2, 3)
    assert config.where("common_quant_param", "bit_num") == "all.cfg: line 3: bit_num"
    assert config.where("full_quant_param", "nothing") == "all.cfg: nothing"
    told = {note.split(": ")[1] for note in config.notes}
    assert told == {
        "workspace", "thread_num", "use_cv_data", "smooth_alpha", "enable_smooth_shift", "enable_all_ops",
        "quant_strategy", "update_mindir", "max_segments",
    }  # fmt: skip


def test_an_empty_file_asks_for_nothing() -> None:
    assert parts(parse_config("")) == parts(MsliteConfig())


@pytest.mark.parametrize(
    ("section", "line", "told"),
    [
        (
            "common_quant_param",
            "quant_type=weight_quant",
            "found 'weight_quant'; must be one of WEIGHT_QUANT, FULL_QUANT",
        ),
        ("common_quant_param", "quant_type=PTQ", "must be one of"),
        ("common_quant_param", "bit_num=17", "found 17; must be from 0 to 16"),
        ("common_quant_param", "bit_num=8bit", "found '8bit'; must be a whole number from 0 to 16"),
        ("common_quant_param", "bit_num=1_0", "must be a whole number"),
        ("common_quant_param", "min_quant_weight_size=-1", "found -1; must be from 0 to 65535"),
        ("common_quant_param", "min_quant_weight_channel=65536", "found 65536; must be from 0 to 65535"),
        ("common_quant_param", "skip_quant_node=,", "must be names of nodes"),
        ("common_quant_param", "bitnum=8", "unknown key in [common_quant_param]; did you mean 'bit_num'?"),
        ("common_quant_param", "Bit_Num=8", "did you mean 'bit_num'?"),
        ("common_quant_param", "init_scale=0.1", "it belongs to [mixed_bit_weight_quant_param]"),
        ("common_quant_param", "enable_encode=1", "found '1'; must be true or false"),
        ("mixed_bit_weight_quant_param", "init_scale=0", "must be greater than 0 and less than 1"),
        ("mixed_bit_weight_quant_param", "init_scale=1.0", "must be greater than 0 and less than 1"),
        ("mixed_bit_weight_quant_param", "init_scale=nan", "must be a number"),
        ("mixed_bit_weight_quant_param", "max_iterations=39", "must be from 40 to 65535"),
        ("mixed_bit_weight_quant_param", "auto_tune=yes", "must be true or false"),
        ("full_quant_param", "activation_quant_method=RemovalOutlier", "write REMOVAL_OUTLIER"),
        ("full_quant_param", "target_device=GPU", "must be one of NVGPU, DSP, KIRIN, ASCEND"),
        ("full_quant_param", "zzz=1", "known keys: activation_quant_method"),
        ("data_preprocess_param", "calibrate_size=0", "must be from 1 to 65535"),
        ("data_preprocess_param", "calibrate_path=/mnt/images", "is not of the form input:folder"),
        ("data_preprocess_param", "calibrate_path=x:", "is not of the form input:folder"),
        ("data_preprocess_param", "input_type=image", "write IMAGE"),
        ("data_preprocess_param", "normalize_mean=127.5", "must be numbers in brackets"),
        ("data_preprocess_param", "normalize_mean=[]", "must be numbers in brackets"),
        ("data_preprocess_param", "normalize_mean=[1,,2]", "found ''; must be a number"),
        ("data_preprocess_param", "resize_method=NEARST", "did you mean 'NEAREST'?"),
        ("weight_quant_param", "dequant_strategy=LATER", "must be ON_THE_FLY"),
    ],
)
def test_what_is_refused(section: str, line: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_config(f"# header\n[{section}]\n{line}\n", source="x.cfg")
    message = str(caught.value)
    assert message.startswith(f"x.cfg: line 3: {line.split('=')[0]}: ")
    assert told in message


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["quant_type=FULL_QUANT", "bit_num=7"], "line 3: bit_num: found 7; must be 8 for FULL_QUANT"),
        (["quant_type=DYNAMIC_QUANT", "bit_num=4"], "line 3: bit_num: found 4; must be 8 for DYNAMIC_QUANT"),
        (["quant_type=WEIGHT_QUANT", "bit_num=7", "enable_encode=false"], "line 4: enable_encode: must be true"),
        (["[data_preprocess_param]", "input_type=IMAGE", "resize_method=LINEAR", "resize_width=3"],
         "line 4: resize_method: needs resize_height as well"),
        (["[data_preprocess_param]", "input_type=IMAGE", "center_crop_width=3"],
         "line 4: center_crop_width: needs center_crop_height as well"),
        (["[data_preprocess_param]", "input_type=IMAGE", "normalize_std=[1,1,1]"],
         "line 4: normalize_std: needs normalize_mean as well"),
        (["[data_preprocess_param]", "input_type=IMAGE", "normalize_std=[1,0,1]", "normalize_mean=[1,1,1]"],
         "line 4: normalize_std: pixels are divided"),
        (["[data_preprocess_param]", "input_type=IMAGE", "normalize_std=[1,1,1]", "normalize_mean=[1,256,1]"],
         "line 5: normalize_mean: is subtracted from pixels from 0 to 255"),
        (["[data_preprocess_param]", "input_type=IMAGE", "image_to_format=GRAY", "normalize_mean=[1,1,1]",
          "normalize_std=[1]"], "line 5: normalize_mean: has 3 numbers; must be 1"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(lines: list[str], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_config("\n".join(["[common_quant_param]", *lines]), source="x.cfg")
    assert str(caught.value).startswith(f"x.cfg: {told}")


@pytest.mark.parametrize(
    "lines",
    [
        ["quant_type=WEIGHT_QUANT", "bit_num=16", "enable_encode=false"],
        ["bit_num=3"],
        ["[data_preprocess_param]", "input_type=BIN", "normalize_mean=[1]", "resize_width=3"],
        [
            "[data_preprocess_param]",
            "input_type=IMAGE",
            "image_to_format=GRAY",
            "normalize_mean=[1]",
            "normalize_std=[2]",
        ],
    ],
)
def test_what_goes_together(lines: list[str]) -> None:
    parse_config("\n".join(["[common_quant_param]", *lines]))


def test_all_problems_are_told_at_once_in_the_order_of_their_lines() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_config("[full_quant_param]\nper_channel=maybe\nx\n[common_quant_param]\nbit_num=99\n", source="x.cfg")
    lines = str(caught.value).splitlines()
    assert lines[0] == "x.cfg: 3 problems"
    assert [line.split(":")[0] for line in lines[1:]] == ["  line 2", "  line 3", "  line 5"]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (
            "[common_quant_params]\nquant_type=FULL_QUANT",
            "[common_quant_params] is no section of the converter's; ignored; ",
        ),
        ("[acl_option_cfg_param]\ndevice_id=0", "[acl_option_cfg_param] is not about quantization"),
        (
            "quant_type=FULL_QUANT",
            "quant_type: in front of any section, where keys have no effect; put [common_quant_param]",
        ),
    ],
)
def test_what_has_no_effect_is_told(text: str, note: str) -> None:
    config = parse_config(text)
    assert config.common.quant_type is None
    (found,) = config.notes
    assert found.startswith(f"line 1: {note}")


def test_other_files_are_not_mistaken_for_it(tmp_path: Path) -> None:
    for text in ("target: ort\n", "batch_num : 2\n", '{"batch_num": 2}', "# [common_quant_param]\n", ""):
        (tmp_path / "x.cfg").write_text(text)
        assert not is_mslite_config(tmp_path / "x.cfg")
    assert not is_mslite_config(tmp_path / "none.cfg")
    (tmp_path / "x.cfg").write_bytes(b'\xef\xbb\xbf# x\r\n ["full_quant_param"]\r\n')
    assert is_mslite_config(tmp_path / "x.cfg")


def test_a_key_with_its_default_is_no_news() -> None:
    assert (
        parse_config("[weight_quant_param]\nupdate_mindir=true\nmax_segments=1\nquant_strategy=MAX_MIN\n").notes == ()
    )
