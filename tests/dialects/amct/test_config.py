import numpy as np
import pytest

from onnxq.dialects.amct.algorithms import Ada, Arq, Hfmg, Ifmr, Nuq
from onnxq.dialects.amct.config import (
    AmctConfig,
    Calibration,
    Mention,
    NuqConfig,
    Override,
    TensorQuantize,
    parse_config,
    read_config,
)
from onnxq.errors import RecipeError
from tests.dialects.amct import configs

HINT = "'activation_offset', 'fakequant_precision_mode', 'common_config'?"
MODE = "; did you mean 'FORCE_FP16_QUANT'?"
NARROW = Ifmr(search_range=(0.8, 1.2), search_step=0.02, asymmetric=False)


def problems(text: str) -> list[str]:
    """What is wrong with `text`, a line each, without the name of the file."""
    with pytest.raises(RecipeError) as found:
        parse_config(text)
    first, *rest = str(found.value).splitlines()
    return [line.strip() for line in rest] or [first.removeprefix("quant.cfg: ")]


# ---- the samples of the manual -----------------------------------------------------------------


def test_the_full_sample():
    wanted = AmctConfig(
        batch_num=2,
        activation_offset=True,
        skip_layers=(Mention("Opname"),),
        skip_layer_types=(Mention("Optype"),),
        do_fusion=True,
        skip_fusion_layers=(Mention("Opname"),),
        common=Calibration(Ifmr(asymmetric=True), Arq(channel_wise=True, num_bits=7), 0.5),
        types=(Override(Mention("Conv2d"), Calibration(NARROW, Arq(channel_wise=False, num_bits=6), 0.5)),),
        layers=(Override(Mention("Opname"), Calibration(NARROW, Arq(channel_wise=True), 0.5)),),
    )
    found = parse_config(configs.broken(configs.QUANT))
    assert found == wanted
    assert found.warnings == ()
    assert found.skip_layers[0].line == 2


def test_the_other_samples():
    hfmg = parse_config(configs.broken(configs.HFMG))
    assert hfmg == AmctConfig(batch_num=2, common=Calibration(Hfmg(4096, asymmetric=False)))
    assert parse_config(configs.ADA_ROUND).common == Calibration(weight=Ada(channel_wise=False))
    dmq = parse_config(configs.broken(configs.DMQ_BALANCER))
    assert dmq.types[0].match == Mention("Optype")
    assert dmq.common == Calibration(Ifmr(asymmetric=True), Arq(channel_wise=True), 0.5)


@pytest.mark.parametrize("text", [configs.QUANT, configs.DMQ_BALANCER, configs.QUANT + "\n\n"])
def test_a_sample_as_printed_is_read_behind_its_comment_with_a_warning(text):
    found = parse_config(text)
    assert found == parse_config(configs.broken(text))
    assert found.warnings == (
        "quant.cfg: line 1: a comment ends with its line; read from 'batch_num' on, break the line there",
    )


@pytest.mark.parametrize(
    "text",
    [
        "# batch_num : 2 activation_offset : false",
        "# see batch_num : 2",
        "# quantize with batch_num : 2 do_fusion : false\n# nothing else",
        "# no settings at all",
        "# about batch_num and do_fusion",
    ],
)
def test_other_comments_stay_comments(text):
    found = parse_config(text)
    assert found == AmctConfig()
    assert found.warnings == ()


def test_dots_of_an_example_are_pointed_out():
    assert problems(configs.HFMG) == [
        "line 1: found '...', it stands for settings that were left out of an example; delete it"
    ]


# ---- values ------------------------------------------------------------------------------------


def test_nothing_is_all_defaults():
    for text in ("", "\n\n# a comment\n"):
        assert parse_config(text) == AmctConfig()
    assert AmctConfig().batch_num == 1
    assert AmctConfig().activation_offset
    assert AmctConfig().do_fusion


def test_defaults_of_the_algorithms():
    text = """
    common_config { ifmr_quantize {} arq_quantize {} dmq_balancer {} }
    override_layer_types { layer_type: "Conv" calibration_config { hfmg_quantize {} ada_quantize {} } }
    override_layer_types { layer_type: "Gemm" calibration_config { nuq_quantize {} } }
    """
    found = parse_config(text)
    assert found.common == Calibration(Ifmr((0.7, 1.3), 0.01, 0.999999, 0.999999, None, 8), Arq(None, 8), 0.5)
    assert found.types[0].calibration == Calibration(Hfmg(4096, None, 8), Ada(10000, 0.01, (20.0, 2.0), 0.2, None))
    assert found.types[1].calibration == Calibration(weight=Nuq(32, 1))


def test_fields_of_the_other_flavours():
    text = """
    joint_quant: true  version: 1  enable_auto_nuq: true  fakequant_precision_mode: FORCE_FP16_QUANT
    nuq_config { mapping_file: "a.json" nuq_quantize { num_steps: 16 num_of_iteration: 3 } }
    tensor_quantize { layer_name: "pool" input_index: 0 }
    tensor_quantize { layer_name: "sum" input_index: 1 hfmg_quantize { num_of_bins: 1024 } }
    common_config { weight_compress_only: true arq_quantize { asymmetric: true } ifmr_quantize { dst_type: INT16 } }
    skip_layers: ["a", 'b' "c"]
    """
    found = parse_config(text)
    assert (found.joint_quant, found.version, found.enable_auto_nuq, found.fp16_scales) == (True, 1, True, True)
    assert found.nuq == NuqConfig("a.json", Nuq(16, 3))
    assert found.tensors == (TensorQuantize(Mention("pool"), 0), TensorQuantize(Mention("sum"), 1, Hfmg(1024)))
    assert found.common == Calibration(Ifmr(num_bits=16), Arq(asymmetric=True), weight_compress_only=True)
    assert [m.name for m in found.skip_layers] == ["a", "bc"]


def test_numbers_are_the_decimals_that_were_written():
    """The messages hold float32, in which 0.01 is 0.009999999776."""
    found = parse_config("common_config { ada_quantize { reg_param: 0.1 warm_start: 0.3 } }").common.weight
    assert (found.reg_param, found.warm_start) == (0.1, 0.3)
    assert float(np.float32(0.1)) != 0.1


def test_the_last_of_two_algorithms_of_a_kind_wins_with_a_warning():
    text = """common_config {
      arq_quantize { quant_bits: 5 }
      hfmg_quantize {}
      ada_quantize { num_iteration: 7 }
      ifmr_quantize { asymmetric: true }
      nuq_quantize { num_steps: 16 }
    }"""
    found = parse_config(text)
    assert found.common == Calibration(Ifmr(asymmetric=True), Nuq(16))
    why = "has no effect, because {} is written later".format
    assert found.warnings == (
        f"quant.cfg: line 2: common_config: arq_quantize {why('nuq_quantize in line 6')}",
        f"quant.cfg: line 3: common_config: hfmg_quantize {why('ifmr_quantize in line 5')}",
        f"quant.cfg: line 4: common_config: ada_quantize {why('nuq_quantize in line 6')}",
    )


# ---- problems ----------------------------------------------------------------------------------


def test_all_problems_at_once_with_their_lines():
    text = """# comment
batch_num: 0
activation_ofset: true
skip_layers: conv1
common_config {
  arq_quantize { channel_wise: maybe }
  ifmr_quantize { search_step: fast }
}
override_layer_configs { layer_name: "x"
}
do_fusion: true
do_fusion: false
fakequant_precision_mode: FORCE_FP16
override_layer_types: 3
joint_quant { }
"""
    assert problems(text) == [
        "line 3: AMCTConfig has no field 'activation_ofset'; did you mean " + HINT,
        'line 4: skip_layers: found conv1; must be a text in double quotes, "conv1"',
        "line 6: channel_wise: found maybe; must be true or false",
        "line 7: search_step: found fast; must be a number",
        "line 9: override_layer_configs needs calibration_config",
        "line 12: AMCTConfig: do_fusion is already given in line 11; leave one of them",
        "line 13: fakequant_precision_mode: found FORCE_FP16; must be FORCE_FP16_QUANT" + MODE,
        "line 14: override_layer_types: found 3; must be a message, in braces",
        "line 15: joint_quant: found a message; must be true or false",
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("batch_num: 0", "batch_num: found 0; must be at least 1"),
        ("batch_num: -1", "batch_num: found -1; must be a whole number from 0 to 4294967295"),
        ("batch_num: 2.5", "batch_num: found 2.5; must be a whole number from 0 to 4294967295"),
        ("version: x", "version: found x; must be a whole number from -2147483648 to 2147483647"),
        ("nuq_config { }", "nuq_config needs mapping_file"),
        ("quant_bits: 8 common_config { arq_quantise {} }",
         "common_config has no field 'arq_quantise'; did you mean 'arq_quantize', 'nuq_quantize', 'ada_quantize'?"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit(text, wanted):
    assert f"line 1: {wanted}" in problems(text)


RANGES = [
    ("arq_quantize { quant_bits: 5 }", "arq_quantize.quant_bits: found 5; must be 6, 7 or 8"),
    ("arq_quantize { quant_bits: 4 }", "arq_quantize.quant_bits: found 4; must be 6, 7 or 8"),
    ("arq_quantize { asymmetric: true }",
     "arq_quantize.asymmetric: true needs weight_compress_only: true next to arq_quantize"),
    ("ada_quantize { reg_param: 0 }", "ada_quantize.reg_param: found 0; must be in (0, 1), both ends excluded"),
    ("ada_quantize { warm_start: 1 }", "ada_quantize.warm_start: found 1; must be in (0, 1), both ends excluded"),
    ("ada_quantize { reg_param: nan }", "ada_quantize.reg_param: found nan; must be in (0, 1), both ends excluded"),
    ("ada_quantize { beta_range_start: 2 }",
     "ada_quantize.beta_range_start: found 2 to 2; must be start > end > 0"),
    ("ada_quantize { beta_range_end: 0 }", "ada_quantize.beta_range_end: found 20 to 0; must be start > end > 0"),
    ("nuq_quantize { num_steps: 8 }", "nuq_quantize.num_steps: found 8; must be 16 or 32"),
    ("nuq_quantize { num_of_iteration: 6 }", "nuq_quantize.num_of_iteration: found 6; must be in [0, 5]"),
    ("dmq_balancer { migration_strength: 0.19 }",
     "dmq_balancer.migration_strength: found 0.19; must be in [0.2, 0.8]"),
    ("dmq_balancer { migration_strength: 0.81 }",
     "dmq_balancer.migration_strength: found 0.81; must be in [0.2, 0.8]"),
    ("hfmg_quantize { num_of_bins: 512 }",
     "hfmg_quantize.num_of_bins: found 512; must be 1024, 2048, 4096 or 8192"),
    ("hfmg_quantize { dst_type: INT16 }", "hfmg_quantize.dst_type: found 16; HFMG is for 8 bits, use IFMR for 16"),
    ("ifmr_quantize { search_range_start: 0 }",
     "ifmr_quantize.search_range_start: found 0 to 1.3; must be 0 < start < end"),
    ("ifmr_quantize { search_range_start: 1.3 search_range_end: 0.7 }",
     "ifmr_quantize.search_range_start and search_range_end: found 1.3 to 0.7; must be 0 < start < end"),
    ("ifmr_quantize { search_step: 0 }",
     "ifmr_quantize.search_step: found 0; must be > 0 and at most 0.6, end - start"),
    ("ifmr_quantize { search_step: 0.61 }",
     "ifmr_quantize.search_step: found 0.61; must be > 0 and at most 0.6, end - start"),
    ("ifmr_quantize { search_step: 1e-6 }",
     "ifmr_quantize.search_step: found 1e-06; makes more than 10000 ratios to try"),
    ("ifmr_quantize { max_percentile: 0.5 }", "ifmr_quantize.max_percentile: found 0.5; must be in (0.5, 1]"),
    ("ifmr_quantize { min_percentile: 1.01 }", "ifmr_quantize.min_percentile: found 1.01; must be in (0.5, 1]"),
]  # fmt: skip


@pytest.mark.parametrize(("algorithm", "wanted"), RANGES)
def test_values_out_of_range(algorithm, wanted):
    name, rest = algorithm.split("{")
    text = f"\ncommon_config {{\n{name}{{\n{rest}}}"
    assert problems(text) == [f"line 4: {wanted}"]


def test_range_problems_are_told_together_at_every_level():
    text = """batch_num: 0
    common_config { dmq_balancer { migration_strength: 9 } }
    override_layer_types { layer_type: "Conv" calibration_config {
      arq_quantize { quant_bits: 9 } } }
    override_layer_configs { layer_name: "a" calibration_config {
      hfmg_quantize { num_of_bins: 1 } } }
    nuq_config { mapping_file: ""
      nuq_quantize { num_steps: 1 } }
    tensor_quantize { layer_name: "p" input_index: 0
      ifmr_quantize { max_percentile: 2 } }"""
    assert [line.split(":")[0] for line in problems(text)] == [f"line {n}" for n in (1, 2, 4, 6, 8, 10)]


@pytest.mark.parametrize("algorithm", [
    "ifmr_quantize { search_step: 0.6 max_percentile: 1 min_percentile: 0.51 }",
    "ifmr_quantize { search_range_start: 0.8 search_range_end: 1.2 search_step: 0.4 }",
    "arq_quantize { quant_bits: 6 }", "nuq_quantize { num_of_iteration: 0 }", "nuq_quantize { num_of_iteration: 5 }",
    "dmq_balancer { migration_strength: 0.2 }", "dmq_balancer { migration_strength: 0.8 }",
    "hfmg_quantize { num_of_bins: 8192 }", "ada_quantize { num_iteration: 0 }",
])  # fmt: skip
def test_the_ends_of_the_ranges_are_allowed(algorithm):
    assert parse_config(f"common_config {{ {algorithm} }}").common != Calibration()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("batch_num 3", "line 1: found 'batch_num' without ':' and a value, or '{' behind it"),
        ("\nbatch_num: 3 }", "line 2: found a closing } where the name of a field must be"),
        ("common_config {\n", "line 1: found the end of the file where a field or '}' must be"),
        ("common_config {\n arq_quantize <\n}", "line 3: found a closing } where the name of a field must be"),
        ('\nskip_layers: "a', "line 2: found a string that does not end on its line"),
        ("skip_layers: [ 'a' 'b' ; ]", "line 1: found ; where ',' or ']' must be"),
        ("batch_num: : 3", "line 1: found : where the value of 'batch_num' must be"),
        ("batch_num: |", "line 1: found a stray '|'"),
    ],
)
def test_text_that_is_not_in_the_format(text, wanted):
    assert problems(text) == [wanted]


def test_files(tmp_path):
    path = tmp_path / "quant.cfg"
    path.write_bytes(b"\xef\xbb\xbfbatch_num: 3\r\ndo_fusion: false\r\n")
    found = read_config(path)
    assert (found.batch_num, found.do_fusion, found.source) == (3, False, str(path))
    path.write_bytes(b"batch_num: 3\n\xff")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        read_config(path)
    with pytest.raises(RecipeError, match=r"absent\.cfg: cannot be read: No such file"):
        read_config(tmp_path / "absent.cfg")
