"""The numbers of a quantized layer, as record files hold them: what calibrating hands over to inserting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import RecordError
from onnxq.spec import code_bounds

_EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True, eq=False)
class LayerFactors:
    """What one layer is quantized with.

    A layer is a node with a weight, or one input of a node without one (`tensor_quantize`); its name is
    then ``node:index``. Codes are signed: ``code = clip(round(x / scale_d) + offset_d)``.

    Source: specs of AMCT's record, SingleLayerRecord.

    Attributes:
        scale_d: Scale of the activation, float32, finite and > 0.
        offset_d: Its zero point.
        scale_w: Scales of the weight, float32, shape (1,) or (channels,); shape (0,) where there is no weight.
        act_bits: Width of the activation: 4, 8 or 16.
        wts_bits: Width of the weight: 4, 6, 7 or 8.
        balance: What the input channels are divided by, and the weight multiplied with, shape (channels,); or None.
        cluster: The only codes the weight uses, ascending, shape (16,) or (32,); or None.
        skip_fusion: The layer is not fused with what surrounds it.
        tensor_quantize: There is no weight: the tensor is quantized, and dequantized again in front of a node that
            cannot tell.

    Raises:
        RecordError: If a number is not allowed; the message does not know the layer's name.
    """

    scale_d: float
    offset_d: int
    scale_w: NDArray[np.float32]
    act_bits: int = 8
    wts_bits: int = 8
    balance: NDArray[np.float32] | None = None
    cluster: NDArray[np.int8] | None = None
    skip_fusion: bool = False
    tensor_quantize: bool = False

    def __post_init__(self) -> None:
        scale_d = float(np.float32(self.scale_d))
        if not (np.isfinite(scale_d) and scale_d > 0):
            raise RecordError(f"scale_d is {self.scale_d!r}; must be finite and > 0")
        low, high = code_bounds(self._choice("act_bits", (4, 8, 16)), signed=True)
        self._choice("wts_bits", (4, 6, 7, 8))
        if not low <= self.offset_d <= high:
            raise RecordError(f"offset_d is {self.offset_d}; must be within [{low}, {high}]")
        scale_w = _frozen(self.scale_w, np.float32)
        if scale_w.ndim != 1 or not (np.isfinite(scale_w).all() and (scale_w > 0).all()):
            raise RecordError("every scale_w must be finite and > 0")
        if bool(scale_w.size) == self.tensor_quantize:
            raise RecordError("scale_w must be given for a layer with a weight, and only for that")
        object.__setattr__(self, "scale_d", scale_d)
        object.__setattr__(self, "scale_w", scale_w)
        if self.balance is not None:
            object.__setattr__(self, "balance", self._checked_balance(self.balance))
        if self.cluster is not None:
            object.__setattr__(self, "cluster", self._checked_cluster(self.cluster))

    def _choice(self, name: str, allowed: tuple[int, ...]) -> int:
        value = int(getattr(self, name))
        if value not in allowed:
            raise RecordError(f"{name} is {value}; must be one of {', '.join(map(str, allowed))}")
        return value

    @staticmethod
    def _checked_balance(balance: NDArray[np.float32]) -> NDArray[np.float32]:
        values = _frozen(balance, np.float32)
        if values.ndim != 1 or not (np.isfinite(values).all() and (values > _EPS).all() and (values < 1 / _EPS).all()):
            raise RecordError(f"every tensor_balance_factor must lie between {_EPS:g} and {1 / _EPS:g}")
        return values

    @staticmethod
    def _checked_cluster(cluster: NDArray[np.int8]) -> NDArray[np.int8]:
        values = np.asarray(cluster)
        if values.shape not in ((16,), (32,)) or values.min() < -128 or values.max() > 127:
            raise RecordError("cluster must hold 16 or 32 codes within [-128, 127]")
        return _frozen(values, np.int8)


def _frozen(values: NDArray[np.generic], dtype: type[np.generic]) -> NDArray:  # type: ignore[type-arg]
    array = np.array(values, dtype=dtype)
    array.flags.writeable = False
    return array
