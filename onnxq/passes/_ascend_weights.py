"""The integers of a weight, laid out as Ascend reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.weight import quantize_weight
from onnxq.passes._linear import WeightLayout
from onnxq.spec import PerAxis, PerTensor, QType, QuantParams, QuantSpec


@dataclass(frozen=True, slots=True, eq=False)
class WeightCoder:
    """Rounds a weight to codes, ties to even.

    Attributes:
        layout: How the weight is laid out.
        scale_w: float32, shape (1,) or (outputs,).
        bits: Width of the codes.
        transposed: Give the matrix transposed: the Gemm will read it so.
        cluster: The only codes allowed, int8, ascending; None for all of them.
    """

    layout: WeightLayout
    scale_w: NDArray[np.float32]
    bits: int
    transposed: bool = False
    cluster: NDArray[np.int8] | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for coders that give the same codes of the same weight."""
        cluster = b"" if self.cluster is None else self.cluster.tobytes()
        return self.layout, self.scale_w.tobytes(), self.bits, self.transposed, cluster

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        return self.layout.shape[::-1] if self.transposed else self.layout.shape

    def __call__(self, weight: NDArray[np.float32]) -> NDArray[np.int8]:
        """The codes of a weight.

        Args:
            weight: Floats of the layout's shape.

        Returns:
            int8 of `shape`.
        """
        if self.cluster is not None:
            codes = self._nearest(weight, self.cluster)
        elif self.scale_w.size == 1:
            codes = self._rounded(weight, PerTensor(), self.scale_w.reshape(()))
        elif self.layout.out_first:
            codes = self._rounded(weight, PerAxis(0), self.scale_w)
        else:  # outputs of a group are the second axis: (groups, inputs, outputs, taps)
            rows = np.moveaxis(np.asarray(weight).reshape(self.layout.view), 2, 1)
            flat = self._rounded(rows.reshape(self.layout.out_channels, -1), PerAxis(0), self.scale_w)
            codes = np.moveaxis(flat.reshape(rows.shape), 1, 2).reshape(self.layout.shape)
        return np.ascontiguousarray(codes.T if self.transposed else codes)

    def _nearest(self, weight: NDArray[np.float32], cluster: NDArray[np.int8]) -> NDArray[np.int8]:
        """The nearest allowed code of each weight, the lower one of two."""
        scale = self.scale_w.astype(np.float64)
        levels = np.asarray(weight).reshape(self.layout.view) / (
            scale if scale.size == 1 else self.layout.per_output(scale)
        )
        centres = cluster.astype(np.float64)
        found: NDArray[np.int8] = cluster[np.searchsorted((centres[1:] + centres[:-1]) / 2, levels)]
        return found.reshape(self.layout.shape)

    def _rounded(
        self, weight: NDArray[np.float32], granularity: PerTensor | PerAxis, scale: NDArray[np.float32]
    ) -> NDArray[np.int8]:
        spec = QuantSpec(QType.INT8, granularity, symmetric=True, bits=self.bits)
        return quantize_weight(weight, QuantParams(spec, scale, np.zeros(scale.shape, np.int32))).astype(
            np.int8, copy=False
        )
