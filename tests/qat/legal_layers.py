"""Small graphs of layers and activations, one per way of using them that makes a difference to their gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.graphs import normal, positive
from tests.qat.legal_case import F32, Case, case, coarse, spread


def windows() -> Iterator[Case]:
    x, w = normal(2, 4, 7, 6), normal(5, 4, 3, 2)
    for name, attrs in {
        "plain": "kernel_shape=[3,2]", "strides": "strides=[2,2]", "dilations": "dilations=[2,1]",
        "pads": "pads=[1,0,2,1]", "VALID": 'auto_pad="VALID",strides=[2,2]',
    }.items():  # fmt: skip
        yield case(f"Conv {name}", f"y = Conv<{attrs}>(x, w, b)", x, w=w, b=normal(5))
    for mode in ("SAME_UPPER", "SAME_LOWER"):
        for strides, dilations in (([1, 1], [1, 1]), ([2, 3], [1, 1])):
            attrs = f'auto_pad="{mode}",strides={strides},dilations={dilations}'
            yield case(f"Conv {mode} {strides} {dilations}", f"y = Conv<{attrs}>(x, w)", x, w=w)
    yield case("Conv SAME any size", 'y = Conv<auto_pad="SAME_UPPER">(x, w)', x, w=w, symbolic=(0, 2, 3))
    yield case("Conv groups", "y = Conv<group=2,pads=[1,1,1,1]>(x, w)", x, w=normal(6, 2, 3, 3))
    yield case("Conv depthwise", "y = Conv<group=4,strides=[2,2]>(x, w, b)", x, w=normal(4, 1, 3, 3), b=normal(4))
    yield case("Conv 1-D", "y = Conv<pads=[1,2],dilations=[2]>(x, w)", normal(2, 3, 9), w=normal(5, 3, 3))
    yield case("Conv 3-D", "y = Conv<pads=[1,0,1,1,0,1]>(x, w)", normal(2, 2, 4, 4, 5), w=normal(3, 2, 3, 2, 3))
    yield case("Conv opset 21", "y = Conv(x, w)", x, w=w, opset=21)
    pools = {
        "plain": "", "strides": "strides=[2,2],", "pads": "pads=[1,1,1,0],", "VALID": 'auto_pad="VALID",',
        "ceil": "ceil_mode=1,strides=[2,2],", "ceil and pads": "ceil_mode=1,strides=[2,2],pads=[1,1,1,1],",
        "SAME_UPPER": 'auto_pad="SAME_UPPER",strides=[2,2],', "SAME_LOWER": 'auto_pad="SAME_LOWER",strides=[2,2],',
    }  # fmt: skip
    distinct = spread(2, 4, 7, 6)
    for name, attrs in pools.items():
        yield case(f"MaxPool {name}", f"y = MaxPool<{attrs}kernel_shape=[3,2]>(x)", distinct)
        yield case(f"AveragePool {name}", f"y = AveragePool<{attrs}kernel_shape=[3,2]>(x)", x)
    for name in ("pads", "ceil and pads"):
        attrs = f"{pools[name]}count_include_pad=1,kernel_shape=[3,2]"
        yield case(f"AveragePool {name} counted", f"y = AveragePool<{attrs}>(x)", x)
    for name in ("plain", "strides", "pads", "SAME_UPPER"):
        body = f"y = AveragePool<{pools[name]}kernel_shape=[3,2]>(x)"
        yield case(f"AveragePool {name} any batch", body, x, symbolic=(0,))
    yield case("AveragePool 1-D any batch", "y = AveragePool<kernel_shape=[3]>(x)", normal(2, 3, 8), symbolic=(0,))
    yield case("MaxPool dilations", "y = MaxPool<dilations=[2,2],kernel_shape=[3,2]>(x)", distinct)
    yield case("MaxPool 1-D", "y = MaxPool<kernel_shape=[3]>(x)", spread(2, 3, 8))
    yield case("MaxPool 3-D", "y = MaxPool<kernel_shape=[2,2,2],strides=[2,2,2]>(x)", spread(2, 2, 4, 4, 4))
    yield case("MaxPool indexes", "y, i = MaxPool<kernel_shape=[3,2]>(x)", distinct)
    yield case("AveragePool 1-D", "y = AveragePool<kernel_shape=[3]>(x)", normal(2, 3, 8))
    yield case("AveragePool 3-D", "y = AveragePool<kernel_shape=[2,2,2]>(x)", normal(2, 2, 4, 4, 4))
    yield case(
        "AveragePool 3-D counted",
        "y = AveragePool<kernel_shape=[2,3,2],pads=[1,1,0,0,1,1],count_include_pad=1>(x)",
        normal(2, 2, 4, 4, 4),
    )
    yield case(
        "AveragePool 3-D apart", "y = AveragePool<kernel_shape=[2,2,2],strides=[2,2,2]>(x)", normal(2, 2, 4, 4, 4)
    )
    yield case("AveragePool dilations", "y = AveragePool<dilations=[2,1],kernel_shape=[3,2]>(x)", x, opset=19)
    yield case(
        "MaxPool 3-D overlapping", "y = MaxPool<kernel_shape=[2,3,2],pads=[1,1,0,0,1,1]>(x)", spread(2, 2, 4, 4, 4)
    )
    yield case("GlobalAveragePool 3-D", "y = GlobalAveragePool(x)", normal(2, 3, 2, 3, 4))
    yield case("GlobalAveragePool", "y = GlobalAveragePool(x)", x)
    yield case("GlobalAveragePool 1-D", "y = GlobalAveragePool(x)", normal(2, 3, 5))
    yield case("GlobalMaxPool", "y = GlobalMaxPool(x)", distinct, symbolic=(0,))
    yield case("GlobalMaxPool any size", "y = GlobalMaxPool(x)", distinct, symbolic=(0, 2, 3))
    yield case("GlobalMaxPool 1-D", "y = GlobalMaxPool(x)", spread(2, 3, 8))


def transposed() -> Iterator[Case]:
    x = normal(2, 4, 4, 3)
    forms = {
        "plain": ("group=1", (4, 3, 3, 2)),
        "k2 s2": ("strides=[2,2],kernel_shape=[2,2]", (4, 3, 2, 2)),
        "k2x3 s2x3 groups": ("strides=[2,3],group=2", (4, 3, 2, 3)),
        "strides": ("strides=[2,3]", (4, 3, 3, 2)),
        "pads": ("strides=[2,2],pads=[1,0,2,1]", (4, 3, 3, 3)),
        "large pads": ("strides=[2,2],pads=[3,2,2,3]", (4, 3, 2, 2)),
        "output_padding": ("strides=[2,2],output_padding=[1,1],pads=[1,1,1,1]", (4, 3, 3, 3)),
        "dilations": ("strides=[2,1],dilations=[2,2],pads=[1,1,0,0]", (4, 3, 3, 2)),
        "groups": ("strides=[2,2],group=2,pads=[1,1,1,1]", (4, 3, 3, 3)),
        "SAME_UPPER": ('strides=[2,2],auto_pad="SAME_UPPER"', (4, 3, 3, 3)),
        "SAME_LOWER": ('strides=[2,2],auto_pad="SAME_LOWER"', (4, 3, 3, 3)),
        "output_shape": ("strides=[2,2],output_shape=[8,6]", (4, 3, 3, 3)),
    }
    for name, (attrs, shape) in forms.items():
        b = normal(shape[1] * (2 if "group=2" in attrs else 1))
        yield case(f"ConvTranspose {name}", f"y = ConvTranspose<{attrs}>(x, w, b)", x, w=normal(*shape), b=b)
    for name in ("k2 s2", "output_padding"):
        attrs, shape = forms[name]
        body = f"y = ConvTranspose<{attrs}>(x, w)"
        yield case(f"ConvTranspose {name} any size", body, x, w=normal(*shape), symbolic=(0, 2, 3))
    yield case(
        "ConvTranspose 1-D", "y = ConvTranspose<strides=[2],pads=[1,1]>(x, w)", normal(2, 3, 5), w=normal(3, 2, 4)
    )
    yield case("ConvTranspose 1-D k3 s3", "y = ConvTranspose<strides=[3]>(x, w)", normal(2, 3, 5), w=normal(3, 2, 3))


def resized() -> Iterator[Case]:
    x, roi = normal(2, 3, 4, 5), {"r": np.zeros(0, F32)}
    modes = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    rounding = ["floor", "round_prefer_floor", "ceil", "round_prefer_ceil"]
    for mode, near in zip(modes, rounding, strict=True):
        for scale in ([1, 1, 2, 2], [1, 1, 1.5, 0.6]):
            attrs = f'mode="nearest",coordinate_transformation_mode="{mode}",nearest_mode="{near}"'
            yield case(
                f"Resize nearest {mode} {near} {scale}",
                f"y = Resize<{attrs}>(x, r, s)",
                x,
                names=("x",),
                s=F32(scale),
                **roi,
            )
    for kind in ("linear", "cubic"):
        for mode in modes:
            attrs = f'mode="{kind}",coordinate_transformation_mode="{mode}"'
            body = f"y = Resize<{attrs}>(x, r, s)"
            yield case(f"Resize {kind} {mode}", body, x, names=("x",), s=F32([1, 1, 1.5, 0.6]), **roi)
    sizes = {"z": np.int64([2, 3, 7, 9])}
    yield case("Resize sizes", 'y = Resize<mode="linear">(x, r, , z)', x, names=("x",), **roi, **sizes)
    yield case("Resize nearest sizes", "y = Resize(x, r, , z)", x, names=("x",), **roi, **sizes)
    yield case(
        "Resize any batch",
        'y = Resize<mode="linear">(x, r, s)',
        x,
        names=("x",),
        symbolic=(0,),
        s=F32([1, 1, 2, 3]),
        **roi,
    )
    body = 'y = Resize<mode="nearest",coordinate_transformation_mode="asymmetric",nearest_mode="floor">(x, r, s)'
    yield case("Resize any size", body, x, names=("x",), symbolic=(0, 2, 3), s=F32([1, 1, 2, 3]), **roi)
    yield case("Resize axes", "y = Resize<axes=[3,2]>(x, , s)", x, names=("x",), opset=18, s=F32([2, 3]))
    yield case("Resize axes sizes", "y = Resize<axes=[3]>(x, , , z)", x, names=("x",), opset=18, z=np.int64([7]))
    yield case(
        "Resize antialias",
        'y = Resize<mode="linear",antialias=1>(x, , s)',
        x,
        names=("x",),
        opset=18,
        s=F32([1, 1, 0.5, 0.6]),
    )
    yield case(
        "Resize 1-D", 'y = Resize<mode="linear">(x, r, s)', normal(2, 3, 5), names=("x",), s=F32([1, 1, 2]), **roi
    )
    yield case(
        "Resize 3-D", "y = Resize(x, r, s)", normal(1, 2, 3, 2, 3), names=("x",), s=F32([1, 1, 2, 1.5, 3]), **roi
    )
    yield case("Resize opset 10", 'y = Resize<mode="linear">(x, s)', x, names=("x",), opset=10, s=F32([1, 1, 2, 1.5]))
    yield case("Upsample", 'y = Upsample<mode="nearest">(x, s)', x, names=("x",), opset=9, s=F32([1, 1, 2, 2]))


def activations() -> Iterator[Case]:
    x = coarse(3, 8)
    for op in (
        "Relu",
        "Sigmoid",
        "Tanh",
        "Erf",
        "Exp",
        "Neg",
        "Abs",
        "Sin",
        "Cos",
        "Identity",
        "Softplus",
        "Softsign",
        "Mish",
    ):
        yield case(op, f"y = {op}(x)", x, opset=18)
    for op in ("Log", "Sqrt", "Reciprocal"):
        yield case(op, f"y = {op}(x)", positive(3, 4))
    yield case("LeakyRelu", "y = LeakyRelu<alpha=0.2>(x)", x)
    for kind in ("none", "tanh"):
        yield case(f"Gelu {kind}", f'y = Gelu<approximate="{kind}">(x)', x, opset=20)
    for op, attrs in {"Elu": "alpha=0.7", "Selu": "", "Celu": "alpha=0.7", "HardSigmoid": "alpha=1.0,beta=0.3"}.items():
        yield case(op, f"y = {op}<{attrs}>(x)" if attrs else f"y = {op}(x)", x)
    yield case("HardSwish", "y = HardSwish(x)", coarse(3, 8) * 5)
    yield case("ThresholdedRelu", "y = ThresholdedRelu<alpha=0.3>(x)", x)
    yield case("PRelu", "y = PRelu(x, w)", coarse(2, 3, 4, 2), w=normal(3, 1, 1))
    yield case("PRelu one", "y = PRelu(x, w)", coarse(2, 3, 4), w=normal(1))
    for op in ("Round", "Floor", "Ceil", "Sign"):
        yield case(op, f"r = {op}(x) y = Add(r, x)", coarse(3, 8, shift=0.003))
    for op in ("Softmax", "LogSoftmax"):
        for opset in (11, 13, 17):
            for axis in (0, 1, -1):
                yield case(f"{op} {axis} opset {opset}", f"y = {op}<axis={axis}>(x)", normal(2, 3, 4), opset=opset)
    yield case("Dropout", "y = Dropout(x, r)", x, names=("x",), r=np.asarray(0.5, F32))
