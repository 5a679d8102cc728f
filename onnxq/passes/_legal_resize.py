"""Resize, axis by axis: it is linear, so its numbers come from ONNX Runtime itself.

What an axis is multiplied by is found by resizing an identity matrix along that axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxq.graph import Tensor
from onnxq.passes._legal_site import LegalChain, Rewrite, Site, Size
from onnxq.runtime import make_session

_PROBE = 8
"""Length of the axis that says how an axis of unknown length is repeated."""
_IR_VERSION = 8


def resize(site: Site) -> Tensor:
    """Repetition, Gather or a product with a constant matrix, for one axis after the other."""
    rank, chain, y = site.rank(), site.chain, site.input()
    mode = str(site.attr("mode", "nearest"))
    if str(site.attr("coordinate_transformation_mode", "half_pixel")) == "tf_crop_and_resize":
        site.refuse("it crops (tf_crop_and_resize)", "export it as a Slice and a Resize")
    if str(site.attr("keep_aspect_ratio_policy", "stretch")) != "stretch":
        site.refuse("it keeps the aspect ratio", "export it with scales")
    scales, sizes = _wanted(site, rank)
    lengths = chain.sizes(y)
    for axis in range(rank):
        scale = None if scales is None else float(scales[axis])
        size = None if sizes is None else int(sizes[axis])
        same = size is not None and (axis == 0 or (isinstance(lengths[axis], int) and size == lengths[axis]))
        if scale == 1 or same:
            continue
        if axis == 0:
            site.refuse("it resizes the batch", "export it with a Transpose")
        factor = None if scale is None or mode != "nearest" else _repeats(site, scale)
        if factor is not None:
            y = _repeated(chain, y, axis, lengths, factor)
            continue
        matrix = _matrix(site, site.length(axis, "how it is resized"), scale, size)
        y = _applied(chain, y, axis, rank, matrix, mode)
        lengths[axis] = len(matrix)
    return chain.identity(y) if y is site.input() else y


def _known(site: Site, axis: int) -> object:
    return (site.graph.shape(site.input()) or ())[axis]


def _wanted(site: Site, rank: int) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Scales and sizes of all axes; one of them is None."""
    scales, sizes = site.values(2, "scales"), site.values(3, "sizes")
    scales = None if scales is None or scales.size == 0 else scales.reshape(-1)
    sizes = None if sizes is None or sizes.size == 0 else sizes.reshape(-1)
    if scales is None and sizes is None:
        site.refuse("it has neither scales nor sizes", "the model is not valid")
    axes = site.attr("axes", None)
    if axes is None:
        return scales, sizes
    named = [int(a) % rank for a in axes]
    if scales is not None:
        full = np.ones(rank)
        full[named] = scales
        return full, None
    lengths = np.asarray([_known(site, a) if isinstance(_known(site, a), int) else -1 for a in range(rank)])
    lengths[named] = sizes
    return None, np.where(lengths < 0, 0, lengths)


def _repeats(site: Site, scale: float) -> int | None:
    """How often every value is repeated, if that is all that happens."""
    factor = int(scale)
    if factor != scale:
        return None
    matrix = _matrix(site, _PROBE, scale, None)
    expected = np.repeat(np.eye(_PROBE, dtype=np.float32), factor, axis=0)
    return factor if matrix.shape == expected.shape and (matrix == expected).all() else None


def _matrix(site: Site, length: int, scale: float | None, size: int | None) -> NDArray[np.float32]:
    """What the axis is multiplied by, shape (new length, length)."""
    graph, node = site.graph, site.node
    attrs = {k: v for k, v in node.attrs.items() if k != "axes"}
    scales = numpy_helper.from_array(np.asarray([1, 1, scale or 1, 1], np.float32), "scales")
    sizes = numpy_helper.from_array(np.asarray([1, 1, size or 0, length], np.int64), "sizes")
    reads = ["x", "", "scales"] if scale is not None else ["x", "", "", "sizes"]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Resize", reads, ["y"], **attrs)],
            "resize",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, length, length])],
            [onnx.ValueInfoProto(name="y")],
            [scales if scale is not None else sizes],
        ),
        opset_imports=[helper.make_opsetid("", graph.opset)],
        ir_version=max(_IR_VERSION, graph.ir_version),
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    eye = np.eye(length, dtype=np.float32).reshape(1, 1, length, length)
    result = make_session(model, threads=1, optimize=False).run(None, {"x": eye})[0]
    matrix: NDArray[np.float32] = np.asarray(result, np.float32)[0, 0]
    return matrix


def _repeated(chain: LegalChain, x: Tensor, axis: int, lengths: list[Size], factor: int) -> Tensor:
    """Every value several times; `lengths` are changed to those of the result."""
    shape = [1] * (len(lengths) + 1)
    shape[axis + 1] = factor
    wide = chain.op("Expand", chain.unsqueeze(x, axis + 1), chain.ints(*shape))
    lengths[axis] = chain.times(lengths[axis], factor)
    return chain.reshape(wide, [0, *lengths[1:]])


def _applied(chain: LegalChain, x: Tensor, axis: int, rank: int, matrix: NDArray[np.float32], mode: str) -> Tensor:
    if mode == "nearest":
        return chain.gather(x, matrix.argmax(1), axis)
    if axis == rank - 2:
        return chain.op("MatMul", chain.real(matrix), x)
    if axis == rank - 1:
        return chain.op("MatMul", x, chain.real(matrix.T))
    order = [*(a for a in range(rank) if a != axis), axis]
    back = [order.index(a) for a in range(rank)]
    return chain.transpose(chain.op("MatMul", chain.transpose(x, *order), chain.real(matrix.T)), *back)


RESIZES: Mapping[str, Rewrite] = MappingProxyType({"Resize": resize})
