"""Types, bounds and parameters refuse what no backend could run."""

import numpy as np
import pytest

from onnxq.errors import RecipeError
from onnxq.spec import PerAxis, PerBlock, QType, QuantParams, QuantSpec, code_bounds


@pytest.mark.parametrize(
    ("qtype", "bounds", "opset"),
    [
        (QType.INT2, (-2, 1), 25),
        (QType.UINT2, (0, 3), 25),
        (QType.INT4, (-8, 7), 21),
        (QType.UINT4, (0, 15), 21),
        (QType.INT8, (-128, 127), 10),
        (QType.UINT8, (0, 255), 10),
        (QType.INT16, (-32768, 32767), 21),
        (QType.UINT16, (0, 65535), 21),
        (QType.INT32, (-(2**31), 2**31 - 1), 10),
    ],
)
def test_types(qtype, bounds, opset):
    assert qtype.bounds == bounds
    assert qtype.min_opset == opset
    assert QType.parse(qtype.label.upper()) is qtype


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("signed", [True, False])
def test_container_is_the_narrowest(bits, signed):
    container = QType.container(bits, signed=signed)
    assert container.bits >= bits
    assert container.signed == signed
    assert not any(bits <= t.bits < container.bits for t in QType)
    assert code_bounds(bits, signed=signed)[1] - code_bounds(bits, signed=signed)[0] == 2**bits - 1


def test_refused_types():
    with pytest.raises(RecipeError, match="17 bits is not supported"):
        QType.container(17, signed=True)
    with pytest.raises(RecipeError, match="unknown type 'int9'"):
        QType.parse("int9")
    with pytest.raises(RecipeError, match="at least one element"):
        PerBlock(0, 0)
    with pytest.raises(RecipeError, match="9 bits do not fit into int8"):
        QuantSpec(QType.INT8, bits=9)


def test_spec_bounds():
    assert QuantSpec(QType.INT8).bits == 8
    assert QuantSpec(QType.INT8, bits=6).bounds == (-32, 31)
    assert QuantSpec(QType.INT8, narrow=True).bounds == (-127, 127)
    assert QuantSpec(QType.INT8).middle == 0
    assert QuantSpec(QType.UINT8).middle == 128
    assert QuantSpec(QType.UINT8, bits=7).middle == 64


def test_params_are_checked_and_private():
    spec = QuantSpec(QType.UINT8, PerAxis(0), symmetric=False)
    scale = np.array([0.5, 2.0], np.float32)
    params = QuantParams(spec, scale, np.array([0, 100]))
    scale[0] = 7
    assert params.scale.tolist() == [0.5, 2.0]
    assert params.low.tolist() == [0.0, -200.0]
    assert params.high.tolist() == [127.5, 310.0]
    assert params.same_as(QuantParams(spec, params.scale, params.zero_point))
    assert not params.same_as(QuantParams(spec, params.scale, np.array([0, 101])))
    with pytest.raises(ValueError, match="read-only"):
        params.scale[0] = 1
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and > 0"):
            QuantParams(spec, np.array([1.0, bad], np.float32), np.array([0, 0]))
    with pytest.raises(ValueError, match="differ"):
        QuantParams(spec, params.scale, np.array([0]))
    with pytest.raises(ValueError, match=r"outside \[0, 255\]"):
        QuantParams(spec, params.scale, np.array([0, 256]))
