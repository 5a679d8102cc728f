"""The options of the command line."""

import pytest

from onnxq.dialects.mslite.flags import EXPORTS, Flags, parse_shapes
from onnxq.errors import OnnxqError


@pytest.mark.parametrize("fmk", ["TF", "TFLITE", "CAFFE", "MINDIR", "PYTORCH", "MSLITE", "OM"])
def test_other_frameworks_are_told_how_to_export(fmk):
    with pytest.raises(OnnxqError, match=f"^--fmk={fmk}: only ONNX models are read; export it first: ") as caught:
        Flags(fmk=fmk).check()
    assert EXPORTS[fmk] in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (Flags(fmk="onnx"), "--fmk=onnx: must be ONNX"),
        (Flags(input_data_format="NCWH"), "--inputDataFormat=NCWH: must be NHWC or NCHW"),
        (Flags(fp16="yes"), "--fp16=yes: must be on or off"),
        (Flags(save_type="ONNX"), "--saveType=ONNX: must be MINDIR or MINDIR_LITE"),
        (Flags(input_data_type="FLOAT64"), "--inputDataType=FLOAT64: must be FLOAT16 or FLOAT or"),
        (Flags(infer="1"), "--infer=1: must be true or false"),
        (Flags(optimize="all"), "--optimize=all: must be none, general"),
    ],
)
def test_values_that_cannot_be(flags, told):
    with pytest.raises(OnnxqError) as caught:
        flags.check()
    assert str(caught.value).startswith(told)


def test_all_problems_at_once():
    with pytest.raises(OnnxqError, match=r"--fmk=TF: .*--fp16=x: "):
        Flags(fmk="TF", fp16="x").check()


def test_what_has_no_effect_is_told():
    Flags().check()
    assert Flags().notes() == ()
    given = Flags(fp16="on", weight_file="w", optimize="ascend_oriented:310", input_data_format="NCHW", device="Ascend")
    given.check()
    assert [note.split("=")[0] for note in given.notes()] == ["--weightFile", "--fp16", "--optimize", "--device"]


@pytest.mark.parametrize(("text", "layout"), [("", None), ("NHWC", "NHWC"), ("NCHW", "NCHW")])
def test_layout(text, layout):
    assert Flags(input_data_format=text).layout == layout


def test_shapes():
    assert parse_shapes("") == {}
    assert parse_shapes(" a:1,3,224,224 ; b:0:1, -1;") == {"a": (1, 3, 224, 224), "b:0": (1, -1)}


@pytest.mark.parametrize("text", ["a", "a=1,2", ":1,2", "a:", "a:1,,2", "a:1,n", "a:1;a:2"])
def test_shapes_that_cannot_be_read(text):
    with pytest.raises(OnnxqError, match="--inputShape: "):
        parse_shapes(text)
