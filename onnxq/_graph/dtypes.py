"""ONNX element types and the numpy (or ml_dtypes) types that stand for them outside the façade."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.spec import QType

_IR_VERSIONS = {
    "BFLOAT16": 4,
    "FLOAT8E4M3FN": 9,
    "FLOAT8E4M3FNUZ": 9,
    "FLOAT8E5M2": 9,
    "FLOAT8E5M2FNUZ": 9,
    "INT4": 10,
    "UINT4": 10,
    "FLOAT4E2M1": 11,
    "FLOAT8E8M0": 12,
    "INT2": 13,
    "UINT2": 13,
    "FLOAT6E2M3": 14,
    "FLOAT6E3M2": 14,
}
_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


@functools.cache
def to_numpy(onnx_type: int) -> np.dtype[Any] | None:
    """The numpy or ml_dtypes type of an ONNX element type; None where there is none."""
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(onnx_type))
    except KeyError:
        return None


@functools.cache
def to_onnx(dtype: np.dtype[Any]) -> int:
    """The ONNX element type of a numpy or ml_dtypes type; strings are numpy objects.

    Raises:
        ValueError: If ONNX has no such type.
    """
    if dtype.kind in "US":
        return int(onnx.TensorProto.STRING)
    try:
        return int(onnx.helper.np_dtype_to_tensor_dtype(dtype.newbyteorder("=")))
    except (KeyError, ValueError) as err:
        raise ValueError(f"ONNX has no element type for numpy's {dtype}") from err


def of_qtype(qtype: QType) -> np.dtype[Any]:
    """The numpy or ml_dtypes type of an integer container.

    Raises:
        ValueError: If the installed onnx does not have it yet.
    """
    onnx_type = getattr(onnx.TensorProto, qtype.name, None)
    if onnx_type is None:
        raise ValueError(f"the installed onnx {onnx.__version__} has no {qtype.name}; upgrade onnx")
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(onnx_type))


def type_name(onnx_type: int) -> str:
    """ONNX's name of an element type, or its number when this onnx does not know it."""
    try:
        return str(onnx.TensorProto.DataType.Name(onnx_type))
    except ValueError:
        return str(onnx_type)


def min_ir_version(onnx_type: int) -> int:
    """The first IR version that has this element type."""
    return _IR_VERSIONS.get(type_name(onnx_type), 1)


def packed_bits(onnx_type: int) -> int:
    """How many bits one element takes where several share a byte; 0 for all other types."""
    return _PACKED_BITS.get(type_name(onnx_type), 0)


def raw_size(onnx_type: int, elements: int) -> int:
    """Bytes that `elements` of this type take in `raw_data`."""
    bits = packed_bits(onnx_type)
    if bits:
        return (elements * bits + 7) // 8
    dtype = to_numpy(onnx_type)
    return 0 if dtype is None else elements * dtype.itemsize


def pack(array: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Pack codes of `bits` (2 or 4) bits into bytes, first element in the lowest bits.

    Args:
        array: Any shape, one element per byte (an ml_dtypes type).
        bits: Width of an element.

    Returns:
        uint8, shape (ceil(size * bits / 8),); the unused bits of the last byte are 0.
    """
    per_byte = 8 // bits
    codes = np.ascontiguousarray(array).reshape(-1).view(np.uint8) & np.uint8((1 << bits) - 1)
    if codes.size % per_byte:
        codes = np.concatenate([codes, np.zeros(-codes.size % per_byte, np.uint8)])
    packed: NDArray[np.uint8] = codes[::per_byte].copy()
    for position in range(1, per_byte):
        packed |= codes[position::per_byte] << np.uint8(position * bits)
    return packed


def unpack(packed: NDArray[np.uint8], onnx_type: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Undo `pack`.

    Returns:
        Shape `shape`, one element per byte, of the ml_dtypes type of `onnx_type`.
    """
    bits = packed_bits(onnx_type)
    per_byte = 8 // bits
    codes = np.empty((packed.size, per_byte), np.uint8)
    mask = np.uint8((1 << bits) - 1)
    for position in range(per_byte):
        codes[:, position] = (packed >> np.uint8(position * bits)) & mask
    flat = codes.reshape(-1)[: int(np.prod(shape, dtype=np.int64))]
    return flat.view(np.dtype(to_numpy(onnx_type))).reshape(shape)
