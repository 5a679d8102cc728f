"""Paddle's and PaddleSlim's quanters, under their names and with their arguments and defaults.

Quanters are for quantization-aware training. In Paddle some of them follow the data by a moving average as long as
training goes on. Here a scale is a parameter of the training graph: it begins where that average stands at the end of
the calibration data, and is then learned with everything else. So the result depends on what lowers the loss, not on
which batch came last, and nothing of a scale changes behind the optimizer's back. The recursions themselves are
observers (`onnxq.dialects.paddle.moving`) and give what Paddle's give.

Scales of weights by absolute maximum are taken from the weights anew in every step, as in Paddle.

Arguments that only say how something is done in Paddle (names, types, reductions over devices) are taken and have no
effect.

Source: Paddle, python/paddle/quantization/quanters/abs_max.py; PaddleSlim, paddleslim/quant/quanters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnxq.dialects.paddle.factories import QuanterFactory, codes
from onnxq.errors import RecipeError
from onnxq.recipe import ARQ, LSQ, PACT, ULQ, AbsMax, ActivationConfig, Custom, LSQPlus, WeightConfig

__all__ = [
    "ActLSQplusQuanter",
    "FakeQuanterChannelWiseAbsMaxObserver",
    "FakeQuanterWithAbsMaxObserver",
    "PACTQuanter",
    "WeightLSQplusQuanter",
]

_MOVING = "onnxq.dialects.paddle.moving"
_INIT_VALUE = 100.0
_LEARNING_RATE = 1000.0


@dataclass(frozen=True)
class FakeQuanterWithAbsMaxObserver(QuanterFactory):
    """One scale: the moving average of the largest magnitudes, learned from there. For a weight: its largest magnitude.

    Strict: the average is over the batches of the data; otherwise over the samples, which does not depend on batches.

    Attributes:
        moving_rate: What counts of the average so far.
        bit_length: Width of the codes.
        dtype: No effect.
        name: No effect.
        strict_compat: Do what Paddle does, to the letter.
    """

    moving_rate: float = 0.9
    bit_length: int = 8
    dtype: str = "float32"
    name: str | None = None
    strict_compat: bool = field(default=False, kw_only=True)

    def activation_config(self) -> ActivationConfig:
        """What it means for an activation.

        Raises:
            RecipeError: If an argument is not allowed.
        """
        if not 0 <= self.moving_rate < 1:
            raise RecipeError(f"moving_rate found {self.moving_rate}; must be >= 0 and < 1")
        method = Custom(
            observer=f"{_MOVING}:MovingAbsMax",
            options={"moving_rate": self.moving_rate},
            batches="data" if self.strict_compat else "sample",
        )
        return ActivationConfig(**codes(self.bit_length, sign=True, symmetric=True), method=method, trained=ULQ())

    def weight_config(self) -> WeightConfig:
        """What it means for a weight."""
        wanted = codes(self.bit_length, sign=True, symmetric=True)
        return WeightConfig(**wanted, granularity="per_tensor", method=AbsMax(), trained=ARQ())


@dataclass(frozen=True)
class FakeQuanterChannelWiseAbsMaxObserver(QuanterFactory):
    """The largest magnitude of each output channel of a weight, anew in each step.

    Attributes:
        bit_length: Width of the codes.
        dtype: No effect.
        name: No effect.
        strict_compat: Has no effect: there is nothing odd about it.
    """

    bit_length: int = 8
    dtype: str = "float32"
    name: str | None = None
    strict_compat: bool = field(default=False, kw_only=True)

    def weight_config(self) -> WeightConfig:
        """What it means for a weight."""
        wanted = codes(self.bit_length, sign=True, symmetric=True)
        return WeightConfig(**wanted, granularity="per_axis", method=AbsMax(), trained=ARQ())


@dataclass(frozen=True)
class PACTQuanter(QuanterFactory):
    """Learn where an activation is cut off, on both sides alike; the scale follows from that.

    By default the end begins where the inner quanter's calibration puts it, and is learned at the rate of the other
    ranges. An `init_value` or a `learning_rate` of your own is taken as it is. Strict: so are 100 and 1000, Paddle's
    defaults, with which hardly a value is cut off and training moves the end far.

    Attributes:
        quanter: The quanter behind it; its codes and its calibration count.
        init_value: The end to begin with.
        learning_rate: The end's learning rate, as a multiple.
        dtype: No effect.
        name: No effect.
        strict_compat: Do what PaddleSlim does, to the letter.
    """

    quanter: QuanterFactory = field(default_factory=FakeQuanterWithAbsMaxObserver)
    init_value: float = _INIT_VALUE
    learning_rate: float = _LEARNING_RATE
    dtype: str = "float32"
    name: str | None = None
    strict_compat: bool = field(default=False, kw_only=True)

    def activation_config(self) -> ActivationConfig:
        """What it means for an activation.

        Raises:
            RecipeError: If an argument is not allowed.
        """
        if isinstance(self.quanter, type) and issubclass(self.quanter, QuanterFactory):
            return PACTQuanter(self.quanter(), self.init_value, self.learning_rate).activation_config()
        if not isinstance(self.quanter, QuanterFactory):
            raise RecipeError(
                f"PACTQuanter: quanter found {self.quanter!r}; must be a quanter, such as "
                "FakeQuanterWithAbsMaxObserver()"
            )
        for key in ("init_value", "learning_rate"):
            if getattr(self, key) <= 0:
                raise RecipeError(f"PACTQuanter: {key} found {getattr(self, key)}; must be > 0")
        inner = self.quanter.activation_config()
        alpha = self.init_value if self.strict_compat or self.init_value != _INIT_VALUE else None
        rate = self.learning_rate if self.strict_compat or self.learning_rate != _LEARNING_RATE else None
        return inner.replace(trained=PACT(alpha=alpha, rate=rate))


@dataclass(frozen=True)
class _LSQplus(QuanterFactory):
    """Base of LSQ+: the arguments of both.

    Attributes:
        quant_bits: Width of the codes.
        sign: Whether codes are signed.
        symmetric: Whether there is no offset.
        per_channel: One scale for each output channel.
        batch_init: Over how many steps the scale begins with a moving average.
        quant_linear: No effect: the axis of the output channels is known.
        channel_num: No effect: so is their number.
        reduce_type: No effect: there is one device.
        dtype: No effect.
        name: No effect.
        strict_compat: Do what PaddleSlim does, to the letter.
    """

    quant_bits: int = 8
    sign: bool = True
    symmetric: bool = True
    per_channel: bool = False
    batch_init: int = 20
    quant_linear: bool = False
    channel_num: int | None = None
    reduce_type: str | None = None
    dtype: str = "float32"
    name: str | None = None
    strict_compat: bool = field(default=False, kw_only=True)

    def codes(self) -> dict[str, Any]:
        """The codes; strictly, PaddleSlim always takes 8 bits with a sign, whatever is asked for.

        Raises:
            RecipeError: If an argument is not allowed.
        """
        if isinstance(self.batch_init, bool) or not isinstance(self.batch_init, int) or self.batch_init < 1:
            raise RecipeError(f"batch_init found {self.batch_init!r}; must be a whole number >= 1")
        if self.strict_compat:
            return codes(8, sign=True, symmetric=self.symmetric)
        return codes(self.quant_bits, sign=self.sign, symmetric=self.symmetric)


@dataclass(frozen=True)
class WeightLSQplusQuanter(_LSQplus):
    """Learn the step of a weight; it begins with ``max(|mean - 3 std|, |mean + 3 std|) / 2^(bits - 1)``.

    Over the steps of `batch_init` a weight hardly changes, so there is nothing to average. Strict: divided by
    ``2^bits - 1``, half of that, and always 8 bits.
    """

    def weight_config(self) -> WeightConfig:
        """What it means for a weight.

        Raises:
            RecipeError: If an argument is not allowed.
        """
        granularity: Any = "per_axis" if self.per_channel else "per_tensor"
        init: Any = "moments_narrow" if self.strict_compat else "moments"
        return WeightConfig(
            **{**self.codes(), "symmetric": True}, granularity=granularity, method=AbsMax(), trained=LSQ(init=init)
        )


@dataclass(frozen=True)
class ActLSQplusQuanter(_LSQplus):
    """Learn the step of an activation and, where it is not symmetric, its offset.

    Both begin with a moving average over the first `batch_init` samples: ``(max - min) / (2^bits - 1)`` and
    ``min - step * lowest code``. Strict: over batches, always 8 bits, and the average of the offset takes the step's
    part for its own.
    """

    def activation_config(self) -> ActivationConfig:
        """What it means for an activation.

        Raises:
            RecipeError: If an argument is not allowed.
        """
        if self.per_channel and not self.strict_compat:
            raise RecipeError("ActLSQplusQuanter: an activation has one scale; leave out per_channel")
        wanted = self.codes()
        options = {
            "quant_bits": wanted.get("bits", 16 if wanted["type"].endswith("16") else 8),
            "sign": not wanted["type"].startswith("u"),
            "symmetric": self.symmetric,
            "batch_init": self.batch_init,
            "scale_for_offset": self.strict_compat,
        }
        batches: Any = "data" if self.strict_compat else "sample"
        method = Custom(observer=f"{_MOVING}:WarmUp", options=options, batches=batches)
        return ActivationConfig(**wanted, method=method, trained=LSQPlus())
