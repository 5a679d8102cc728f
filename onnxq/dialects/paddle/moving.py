"""What quanters begin with: the scale that PaddleSlim's recursions reach on the calibration data.

These are observers as any user can write them (see `onnxq.observers`); a recipe names them so:
``onnxq.dialects.paddle.moving:MovingAbsMax``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.dialects.paddle.strict import Joined, Threshold


class MovingAbsMax(Threshold):
    """The moving average of the largest magnitudes, later ones counting more.

    With the rate r, ``state = r * state + 1`` and ``sum = r * sum + max|x|``, both 1 at the start; their quotient is
    the threshold.

    Source: Paddle, python/paddle/quantization/quanters/abs_max.py.
    """

    def __init__(self, moving_rate: float = 0.9) -> None:
        self._rate = moving_rate
        self._state = self._sum = 1.0
        self.threshold = 0.001

    def observe(self, x: NDArray[np.float32]) -> None:
        """See the values of one step."""
        self._state = self._rate * self._state + 1
        self._sum = self._rate * self._sum + float(np.abs(x).max())
        self.threshold = self._sum / self._state


class WarmUp(Joined):
    """The step and the offset of LSQ+ behind its first steps: a moving average of what each of them would begin with.

    A step begins with ``(max - min) / (2^bits - 1)``, the offset with ``min - step * lowest code``; what follows
    counts a tenth.

    Args:
        quant_bits: Width of the codes.
        sign: Whether codes are signed.
        symmetric: Whether there is no offset.
        batch_init: How many steps there are; what comes later is not looked at.
        scale_for_offset: Let the moving average of the offset begin with the step in place of the offset, as PaddleSlim
            does by a slip.

    Source: PaddleSlim, paddleslim/quant/quanters/lsq_act.py; Bhalgat et al., "LSQ+", CVPR workshops 2020.
    """

    def __init__(
        self,
        quant_bits: int = 8,
        sign: bool = True,
        symmetric: bool = True,
        batch_init: int = 20,
        scale_for_offset: bool = False,
    ) -> None:
        codes = 1 << quant_bits
        self._symmetric = symmetric
        self._lowest = -(codes >> 1) if sign else 0
        self._levels = codes - 1
        self._left = batch_init
        self._slip = scale_for_offset
        self._seen = False
        self.step = 1e-8
        self.offset = 0.0

    def observe(self, x: NDArray[np.float32]) -> None:
        """See the values of one step."""
        if not self._left:
            return
        self._left -= 1
        low = float(x.min())
        step = (float(x.max()) - low) / self._levels or 1e-8
        offset = low - step * self._lowest
        if self._seen:
            self.offset = (self.step if self._slip else self.offset) * 0.9 + offset * 0.1
            self.step = self.step * 0.9 + step * 0.1
        else:
            self.step, self.offset, self._seen = step, offset, True

    def range(self) -> tuple[float, float]:
        """The reals of the lowest and of the highest code; where there is no offset, as far from zero on both sides."""
        if self._symmetric:
            clip = self.step * (self._levels >> 1)
            return -clip, clip
        low = self._lowest * self.step + self.offset
        return low, low + self._levels * self.step
