"""Record files: what is written is read back, what is wrong is told with line and layer."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.dialects.amct.proto.scale_offset_record_pb2 import ScaleOffsetRecord, SingleLayerRecord
from onnxq.dialects.amct.record import Record, format_record, parse_record, read_record, write_record
from onnxq.errors import RecordError
from onnxq.factors import LayerFactors

GOLDEN = """\
record {
  key: "layer.name"
  value {
    scale_d: 0.0145
    offset_d: -128
    scale_w: 0.0021
    scale_w: 0.0018
    offset_w: 0
    offset_w: 0
    skip_fusion: true
    dst_type: "INT8"
  }
}
"""
WRITTEN = (
    GOLDEN.replace("0.0145", "0.01449999958").replace("0.0021", "0.002099999925").replace("0.0018", "0.001799999969")
)


def one(body: str, key: str = "conv", act: str = "scale_d: 0.5 offset_d: 3", weight: str = "scale_w: 1 offset_w: 0"):
    return f'record {{ key: "{key}" value {{ {act} {weight}\n{body} }} }}\n'


def same(a: LayerFactors, b: LayerFactors) -> None:
    for name in LayerFactors.__slots__:
        found, wanted = getattr(a, name), getattr(b, name)
        if isinstance(wanted, np.ndarray):
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
        else:
            assert found == wanted, name


class TestGolden:
    def test_is_read(self):
        record = parse_record(GOLDEN)
        assert list(record.layers) == ["layer.name"]
        wanted = LayerFactors(0.0145, -128, np.array([0.0021, 0.0018], np.float32), skip_fusion=True)
        same(record.layers["layer.name"], wanted)
        assert record.notes == ()

    def test_is_written_with_ten_digits_and_read_again(self):
        assert format_record(parse_record(GOLDEN)) == WRITTEN
        assert format_record(parse_record(WRITTEN)) == WRITTEN

    def test_skip_fusion_is_written_where_it_was_not_given(self):
        record = parse_record(one(""))
        assert record.layers["conv"].skip_fusion is False
        assert "    skip_fusion: false\n" in format_record(record)


positive = st.floats(2.0**-60, 2.0**60, width=32)
factors = st.builds(
    lambda scale_d, offset_d, scale_w, bits, balance, cluster, skip, tensor: LayerFactors(
        scale_d,
        offset_d,
        np.array([] if tensor else scale_w, np.float32),
        act_bits=bits[0],
        wts_bits=bits[1],
        balance=np.array(balance, np.float32) if balance else None,
        cluster=np.array(cluster, np.int8) if cluster else None,
        skip_fusion=skip,
        tensor_quantize=tensor,
    ),
    st.floats(2.0**-140, 2.0**120, width=32),
    st.integers(-8, 7),
    st.lists(positive, min_size=1, max_size=5),
    st.tuples(st.sampled_from([4, 8, 16]), st.sampled_from([4, 6, 7, 8])),
    st.lists(st.floats(2.0**-20, 2.0**20, width=32), max_size=3),
    st.none() | st.lists(st.integers(-128, 127), min_size=16, max_size=16),
    st.booleans(),
    st.booleans(),
)


@given(st.dictionaries(st.text(min_size=1), factors, max_size=3))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back_exactly(layers):
    layers = {f"{key}:0" if one.tensor_quantize else key: one for key, one in layers.items()}
    if any("\n" in key for key in layers):  # the key of a tensor is one line
        layers = {key.replace("\n", "n"): one for key, one in layers.items()}
    record = parse_record(format_record(Record(layers)))
    assert list(record.layers) == list(layers)
    for key, wanted in layers.items():
        if wanted.tensor_quantize and wanted.act_bits == 8:  # there is no weight to have a width
            assert record.layers[key].wts_bits == 8
            wanted = LayerFactors(**{n: getattr(wanted, n) for n in wanted.__slots__} | {"wts_bits": 8})
        same(record.layers[key], wanted)
    assert record.notes == ()


@given(st.text(alphabet='record {}key:"av\\scale_d1.5-#\n<>[],;', max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_record_or_a_record_error(text):
    with contextlib.suppress(RecordError):
        parse_record(text)


class TestWidths:
    @pytest.mark.parametrize(
        ("body", "bits"),
        [
            ("", (8, 8)),
            ('dst_type: "INT8"', (8, 8)),
            ('dst_type: "INT4"', (4, 4)),
            ('act_type: "INT16"', (16, 8)),
            ('wts_type: "INT6"', (8, 6)),
            ('act_type: "INT16" wts_type: "INT7"', (16, 7)),
            ('dst_type: "INT4" act_type: "INT16"', (16, 4)),
        ],
    )
    def test_the_explicit_type_counts_and_dst_type_fills_in(self, body, bits):
        layer = parse_record(one(body)).layers["conv"]
        assert (layer.act_bits, layer.wts_bits) == bits

    def test_a_contradiction_is_noted(self):
        (note,) = parse_record(one('dst_type: "INT8" act_type: "INT16"')).notes
        assert note == "line 1: layer 'conv': dst_type is INT8, but act_type says otherwise and counts"

    def test_other_widths_are_written_without_a_dst_type_that_would_hide_them(self):
        text = format_record(Record({"conv": LayerFactors(0.5, 300, np.ones(1, np.float32), act_bits=16)}))
        assert 'act_type: "INT16"\n    wts_type: "INT8"' in text
        assert "dst_type" not in text

    def test_the_range_of_the_offset_follows(self):
        act = "scale_d: 1 offset_d: 300"
        assert parse_record(one('act_type: "INT16"', act=act)).layers["conv"].offset_d == 300
        with pytest.raises(RecordError, match=r"offset_d is 300; must be within \[-128, 127\], the codes of INT8"):
            parse_record(one("", act=act))


class TestProblems:
    @pytest.mark.parametrize(
        ("act", "weight", "body", "problem"),
        [
            ("scale_d: 0 offset_d: 0", "scale_w: 1 offset_w: 0", "", "scale_d is 0; must be > 0 and finite"),
            ("scale_d: 1e39 offset_d: 0", "scale_w: 1 offset_w: 0", "", "scale_d is inf; must be > 0 and finite"),
            ("scale_d: 1e-50 offset_d: 0", "scale_w: 1 offset_w: 0", "", "scale_d is 0; must be > 0 and finite"),
            ("scale_d: 1 offset_d: 0", "scale_w: nan offset_w: 0", "", "scale_w is nan"),
            ("scale_d: 1 offset_d: 0", "scale_w: -1 offset_w: 0", "", "scale_w is -1"),
            ("scale_d: 1 offset_d: -129", "scale_w: 1 offset_w: 0", "", "offset_d is -129"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 2", "", "offset_w is 2; must be 0"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1", "", "there are 1 scale_w and 0 offset_w"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 scale_w: 1 offset_w: 0", "", "there are 2 scale_w and 1 offset_w"),
            ("scale_d: 1 offset_d: 0", "", "", "scale_w is missing; give one per channel"),
            ("", "scale_w: 1 offset_w: 0", "", "scale_d and offset_d are missing: calibration did not finish"),
            ("scale_d: 1", "scale_w: 1 offset_w: 0", "", "offset_d is missing: calibration did not finish"),
            ("offset_d: 1", "scale_w: 1 offset_w: 0", "", "scale_d is missing: calibration did not finish"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", "shift_bit: 17", "shift_bit is 17; must be 0"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", "shift_bit: [1, 2]", "1 scale_w and 2 shift_bit"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", "cluster: [1, 2]", "cluster has 2 codes"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", f"cluster: {[*range(15), 128]}", "cluster is 128"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", "tensor_balance_factor: 1e-8",
             "tensor_balance_factor is 1e-08; must lie between 1.19209e-07 and"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", "tensor_balance_factor: 1e7", "is 1e+07"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", 'act_type: "INT6"', "act_type is 'INT6'; must be one"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", 'wts_type: "INT16"', "wts_type is 'INT16'; must be"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", 'dst_type: "INT16"', "dst_type is 'INT16'; must be"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", 'op_data_type: "BF16"', "op_data_type is 'BF16'"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", 'fakequant_precision_mode: "F"', "one of DEFAULT"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", "scale_h: 1", "offset_h is missing"),
            ("scale_d: 1 offset_d: 0", "scale_w: 1 offset_w: 0", "scale_r: 0", "scale_r is 0"),
            ("scale_d: 1 offset_d: 0", "", "is_tensor_quantize: true", "the key must name an input of the node"),
        ],
    )  # fmt: skip
    def test_is_told_with_line_and_layer(self, act, weight, body, problem):
        text = "\n\n" + one("\n" + body, act=act, weight=weight)
        with pytest.raises(RecordError) as caught:
            parse_record(text, source="r.txt")
        message = str(caught.value)
        line = 5 if body else 3
        assert message.startswith(f"r.txt: line {line if 'missing' not in problem else 3}: layer 'conv': ")
        assert problem in message

    def test_the_line_is_that_of_the_number(self):
        lines = "\n".join(["scale_w: 1"] * 4 + ["scale_w: -2"] + ["offset_w: 0"] * 5)
        with pytest.raises(RecordError, match="line 8: layer 'conv': scale_w is -2"):
            parse_record(f'record {{\n key: "conv"\n value {{ scale_d: 1 offset_d: 0\n{lines}\n}} }}')

    def test_all_are_told_at_once(self):
        text = one("", act="scale_d: 0 offset_d: 0") + one("", key="other", weight="scale_w: 0 offset_w: 1")
        with pytest.raises(RecordError) as caught:
            parse_record(text, source="r.txt")
        assert str(caught.value).splitlines() == [
            "r.txt: 3 problems",
            "  line 1: layer 'conv': scale_d is 0; must be > 0 and finite in float32",
            "  line 3: layer 'other': offset_w is 1; must be 0: weights are symmetric",
            "  line 3: layer 'other': scale_w is 0; must be > 0 and finite in float32",
        ]

    def test_but_not_a_thousand(self):
        text = "".join(one("", key=f"k{i}", act="scale_d: 0 offset_d: 0") for i in range(30))
        with pytest.raises(RecordError, match=r"30 problems(.|\n)*and 10 more$"):
            parse_record(text)

    def test_weights_of_a_tensor(self):
        with pytest.raises(RecordError, match="there is no weight; take scale_w out"):
            parse_record(one("is_tensor_quantize: true", key="pool:0"))

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("record { value { scale_d: 1 } }", "line 1: a record has no key"),
            ('\nrecord { key: "conv" }', "line 2: layer 'conv' has no value"),
            ("record {\n  key: 3 }", "line 2: "),
            ("record {", 'Expected "}"'),
            ("prune_record { producer { } }", r"prune_record\[0\].producer\[0\].name"),
            ("x {" * 5000, "recursion"),
        ],
    )
    def test_no_record(self, text, problem):
        with pytest.raises(RecordError, match=problem):
            parse_record(text)

    def test_fields_between_entries_do_not_shift_lines(self):
        text = one("foo: 1") + "prune_record { producer { name: 'a' } }\n" + one("", act="scale_d: 0 offset_d: 0")
        with pytest.raises(RecordError, match="line 4: layer 'conv': scale_d is 0"):
            parse_record(text)


class TestNotes:
    def test_unknown_fields(self):
        record = parse_record('version: 3\nrecord { key: "a" value { scale_d: 1 offset_d: 0 scale_w: 1 offset_w: 0\n'
                              'newer { deep: [1, 2] [ext.x]: "#{" } newer: 5\nlast: -1 } }')  # fmt: skip
        assert record.notes == (
            "line 1: version is not a field of a record and was ignored",
            "line 3: newer is not a field of a record and was ignored",
            "line 4: last is not a field of a record and was ignored",
        )
        assert record.layers["a"].scale_d == 1

    def test_the_last_of_two_entries_counts(self):
        record = parse_record(one("") + one("", act="scale_d: 0.25 offset_d: -4") + one("", key="b"))
        assert record.layers["conv"].scale_d == 0.25
        assert record.notes == ("layer 'conv' is given twice, in line 1 and in line 3: the last one counts",)

    def test_an_entry_that_does_not_count_need_not_be_right(self):
        assert parse_record(one("", weight="") + one("")).layers["conv"].offset_d == 3

    def test_shift_bits_are_kept(self):
        record = parse_record(one("shift_bit: 4"))
        assert "shift_bit is for hardware" in record.notes[0]
        assert "    shift_bit: 4\n" in format_record(record)
        assert parse_record(one("shift_bit: 0")).notes == ()


class TestKept:
    def test_what_factors_have_no_place_for_comes_back(self):
        body = 'op_data_type: "FLOAT16" channels: 3 height: 4 width: 5 scale_h: 0.5 offset_h: 1 scale_r: 2 offset_r: 0'
        first = parse_record(one(body))
        again = parse_record(format_record(first))
        assert again.extras["conv"] == first.extras["conv"]
        extra = again.extras["conv"]
        assert (extra.op_data_type, extra.channels, extra.scale_h) == ("FLOAT16", 3, 0.5)
        assert list(extra.scale_r) == [2]
        assert not extra.HasField("scale_d")

    def test_nothing_else_is_kept(self):
        assert parse_record(GOLDEN).extras == {}

    def test_float16_scales(self):
        record = parse_record(one('fakequant_precision_mode: "FORCE_FP16_QUANT"') + one("", key="b"))
        assert record.fp16 == {"conv"}
        assert parse_record(format_record(record)).fp16 == {"conv"}

    def test_prune_records_and_key_value_caches(self):
        text = """
record { key: "kv" kv_cache_value { scale: [0.5, 0.25] offset: -3 offset: 4 } }
prune_record {
  producer { name: "conv" attr { name: "type" type: STRING s: "Conv\\001\\"" } attr { name: "begin" type: INT i: 3 } }
  consumer { name: "next" attr { name: "x" type: FLOATS floats: 0.1 floats: 1e-20 } attr { name: "y" ints: [1, -2] } }
  selective_prune { name: "s" attr { name: "z" type: STRINGS strings: "a" strings: "" } }
}
"""
        first = parse_record(text)
        assert first.layers == {}
        written = format_record(first)
        again = parse_record(written)
        assert again.prune == first.prune
        assert again.prune[0].producer[0].attr[0].s == b'Conv\x01"'
        assert list(again.kv["kv"].scale) == [0.5, 0.25]
        assert format_record(again) == written
        assert text_format.Parse(written, ScaleOffsetRecord()) == text_format.Parse(text, ScaleOffsetRecord())

    def test_a_layer_with_both(self):
        text = one("").rstrip()[:-1] + "kv_cache_value { scale: 2 } }"
        record = parse_record(text)
        assert record.layers["conv"].offset_d == 3
        assert parse_record(format_record(record)).kv["conv"].scale == [2]


class TestByHand:
    def test_every_way_of_writing_the_format(self):
        text = """
# a comment { with braces
record: < key: 'con' "v" ; value: { scale_d: 0.5f, offset_d: -0x10; scale_w: [1.5, 2] offset_w: [0, 0]
  tensor_balance_factor: [2, 4] } >
record { key: "pool:0" value { is_tensor_quantize: true scale_d: 1 offset_d: 0 } }  # and one more
"""
        record = parse_record(text)
        assert (record.layers["conv"].scale_d, record.layers["conv"].offset_d) == (0.5, -16)
        assert record.layers["conv"].scale_w.tolist() == [1.5, 2]
        assert record.layers["conv"].balance.tolist() == [2, 4]
        assert record.layers["pool:0"].tensor_quantize
        assert record.layers["pool:0"].scale_w.shape == (0,)
        assert record.notes == ()

    def test_clusters(self):
        codes = sorted({-128, 127, *range(-15, 15)})
        layer = parse_record(one(f"cluster: {codes}")).layers["conv"]
        assert layer.cluster.tolist() == codes
        assert layer.cluster.dtype == np.int8

    def test_an_empty_record(self):
        assert parse_record("").layers == {}
        assert format_record(Record({})) == ""


class TestFiles:
    def test_written_and_read(self, tmp_path):
        path = tmp_path / "record.txt"
        assert write_record(parse_record(GOLDEN), path) == path
        assert path.read_bytes() == WRITTEN.encode()
        assert format_record(read_record(path)) == WRITTEN
        assert [p.name for p in tmp_path.iterdir()] == ["record.txt"]

    def test_an_error_names_the_file(self, tmp_path):
        path = tmp_path / "record.txt"
        path.write_text(one("", act="scale_d: 0 offset_d: 0"), encoding="utf-8")
        with pytest.raises(RecordError, match=r"record\.txt: line 1: layer 'conv'"):
            read_record(path)

    def test_a_missing_file(self, tmp_path):
        (tmp_path / "record.txt").write_text("")
        with pytest.raises(RecordError, match=r"there is no record file .*did you mean 'record.txt'\?"):
            read_record(tmp_path / "recod.txt")
        with pytest.raises(RecordError, match="there is no record file"):
            read_record(tmp_path / "no" / "record.txt")

    def test_a_folder_and_bytes(self, tmp_path):
        with pytest.raises(RecordError, match="cannot be read"):
            read_record(tmp_path)
        (tmp_path / "model.onnx").write_bytes(b"\x08\xff\xfe")
        with pytest.raises(RecordError, match="is not a record file: it is not UTF-8"):
            read_record(tmp_path / "model.onnx")

    def test_a_file_that_cannot_be_written_leaves_nothing(self, tmp_path):
        (tmp_path / "taken").mkdir()
        with pytest.raises(RecordError, match="cannot be written"):
            write_record(parse_record(GOLDEN), tmp_path / "taken")
        with pytest.raises(RecordError, match="cannot be written"):
            write_record(parse_record(GOLDEN), tmp_path / "no" / "record.txt")
        assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_names_and_numbers_are_those_of_the_pytorch_flavour():
    """Numbers from 100 are ours."""
    fields = {f.name: f.number for f in SingleLayerRecord.DESCRIPTOR.fields}
    assert fields == {
        "scale_d": 1, "offset_d": 2, "scale_w": 3, "offset_w": 4, "shift_bit": 5, "tensor_balance_factor": 6,
        "skip_fusion": 9, "dst_type": 10, "act_type": 11, "wts_type": 12, "fakequant_precision_mode": 13,
        "op_data_type": 15, "scale_h": 21, "offset_h": 22, "scale_r": 23, "offset_r": 24,
        "is_tensor_quantize": 100, "channels": 101, "height": 102, "width": 103, "cluster": 104,
    }  # fmt: skip
    module = importlib.import_module("onnxq.dialects.amct.proto.scale_offset_record_pb2")
    assert Path(module.__file__).with_name("scale_offset_record.proto").is_file()
