"""The numbers of Ascend's operators: 64-bit dequantization words, int32 biases, reciprocal scales.

A word holds what AscendDequant multiplies an int32 sum with. Its fields, lowest bit first:

* bits 0 to 31: the IEEE float32 of ``scale_d * scale_w``;
* bits 32 to 39: N, by how many bits older hardware shifts a sum to the right before it multiplies; 0 here;
* bits 40 to 47: the zero point of the weight as int8; 0 here, weights are symmetric.

Source: AMCT's deploy models (``<layer>.dequant.param``), whose 32 high bits are all zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.errors import RecordError

S19_MASK = np.uint32(0xFFFFE000)
"""Sign, exponent and the 10 bits of mantissa that the fixpoint pipe of the hardware multiplies with."""
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class DequantWords:
    """What dequantization words say.

    Attributes:
        scale: float32, shape of the words: what sums are multiplied with.
        shift: uint8, same shape: N.
        offset_w: int8, same shape: zero point of the weight.
    """

    scale: NDArray[np.float32]
    shift: NDArray[np.uint8]
    offset_w: NDArray[np.int8]


def dequant_scale(scale_d: ArrayLike, scale_w: ArrayLike, *, s19: bool = False) -> NDArray[np.float32]:
    """Return ``scale_d * scale_w``, multiplied in float32.

    Args:
        scale_d: Scale of the activation, > 0.
        scale_w: Scales of the weight, any shape, > 0.
        s19: Cut the product to what the hardware multiplies with where AMCT is told FORCE_FP16_QUANT.

    Returns:
        float32, the shape both broadcast to.

    Raises:
        RecordError: If a product is zero or infinite in float32, or becomes zero when it is cut.
    """
    with np.errstate(over="ignore", under="ignore"):
        product = np.multiply(np.asarray(scale_d, np.float32), np.asarray(scale_w, np.float32))
    product = truncate_s19(product) if s19 else np.asarray(product, np.float32)
    if not (np.isfinite(product).all() and (product > 0).all()):
        raise RecordError(
            f"scale_d {np.max(scale_d):g} times scale_w leaves float32; the layer cannot be quantized, skip it"
        )
    return product


def truncate_s19(scale: ArrayLike) -> NDArray[np.float32]:
    """Return the floats with all but 10 bits of their mantissas cut off (towards zero), shape kept."""
    return np.bitwise_and(np.asarray(scale, np.float32).view(np.uint32), S19_MASK).view(np.float32)


def pack_words(scale: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return the words of these products, shape (n,), with the 32 high bits zero.

    Args:
        scale: float32, shape (n,) or (), as `dequant_scale` gives it.
    """
    return np.atleast_1d(np.asarray(scale, np.float32)).view(np.uint32).astype(np.uint64)


def read_words(words: ArrayLike) -> DequantWords:
    """Return what words say, those of other tools too.

    Args:
        words: uint64 or int64, any shape.

    Raises:
        RecordError: If they are of another type, or a factor is not finite and > 0.
    """
    found = np.asarray(words)
    if found.dtype not in (np.uint64, np.int64):
        raise RecordError(f"dequantization words are {found.dtype}; must be uint64")
    bits = found.astype(np.uint64)
    scale = (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise RecordError("the low 32 bits of a dequantization word are no float32 > 0")
    shift = ((bits >> np.uint64(32)) & np.uint64(0xFF)).astype(np.uint8)
    offset = ((bits >> np.uint64(40)) & np.uint64(0xFF)).astype(np.uint8).view(np.int8)
    return DequantWords(scale, shift, offset)


def bias_codes(bias: ArrayLike, scale: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return ``round(bias / scale)``, ties to even: the bias in units of the sum it is added to.

    The zero point of the activation is not in it: the compiler of the models takes that out of the sum itself.

    Args:
        bias: Floats of shape (n,), finite.
        scale: What the sum is multiplied with, shape (1,) or (n,).

    Raises:
        RecordError: If a number is not finite or does not fit into int32.
    """
    values = np.asarray(bias, np.float64)
    if not np.isfinite(values).all():
        raise RecordError("its bias holds NaN or infinity; repair the model or skip the layer")
    codes = np.rint(values / np.asarray(scale, np.float64))
    wrong = np.flatnonzero((codes < _INT32.min) | (codes > _INT32.max))
    if wrong.size:
        first = int(wrong[0])
        raise RecordError(
            f"its bias {values[first]:g} (number {first}) is {codes[first]:.0f} in units of "
            f"{float(np.broadcast_to(scale, values.shape)[first]):g} and does not fit into int32; skip the layer"
        )
    return codes.astype(np.int32)


def quant_scale(scale_d: float) -> np.float32:
    """Return what AscendQuant multiplies with: ``1 / scale_d`` in float32.

    Raises:
        RecordError: If it is not finite and > 0.
    """
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        scale = np.float32(1) / np.float32(scale_d)
    if not (np.isfinite(scale) and scale > 0):
        raise RecordError(f"scale_d is {scale_d:g}, whose reciprocal is no float32 > 0; skip the layer")
    return scale
