"""What is learned in quantization-aware training, and what is pruned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from onnxq._recipe.base import Flag, Model, Name, Number, Shorthand
from onnxq._recipe.methods import Method

Share = Annotated[float, Field(strict=True, gt=0, lt=1)]
Rate = Annotated[float, Field(strict=True, gt=0)]


class ULQ(Method):
    """Learn both ends of an asymmetric range."""

    name: Literal["ulq"] = "ulq"
    clip_max: Annotated[float, Field(strict=True, gt=0)] | None = Field(
        default=None, description="Upper end to begin with; absent: what calibration gives."
    )
    clip_min: Annotated[float, Field(strict=True, lt=0)] | None = Field(
        default=None, description="Lower end to begin with; absent: what calibration gives."
    )
    fixed_min: Flag | None = Field(
        default=None, description="Keep the lower end at 0; absent: where the tensor comes from a Relu."
    )

    @model_validator(mode="after")
    def _check(self) -> ULQ:
        if (self.clip_max is None) != (self.clip_min is None):
            raise ValueError("clip_max and clip_min go together; give both or none")
        return self


class PACT(Method):
    """Learn the upper end of a range that begins at 0, or at the negative of that end."""

    name: Literal["pact"] = "pact"
    alpha: Rate | None = Field(default=None, description="End to begin with; absent: what calibration gives.")
    rate: Rate | None = Field(
        default=None,
        description="Learning rate of the end, as a multiple; absent: what moves it by parts of what it begins with.",
    )


class LSQPlus(Method):
    """Learn the step and the offset."""

    name: Literal["lsq_plus"] = "lsq_plus"


class ARQ(Method):
    """Take the scale from the weights anew in each step; nothing of it is learned."""

    name: Literal["arq"] = "arq"


class LSQ(Method):
    """Learn the step."""

    name: Literal["lsq"] = "lsq"
    init: Literal["calibrated", "moments", "moments_narrow"] = Field(
        default="calibrated",
        description="What it begins with: calibrated, what calibration gives; moments, the larger of |mean ± 3 "
        "deviations| over 2^(bits - 1), as LSQ+ has it; moments_narrow, over 2^bits - 1, as PaddleSlim has it.",
    )


TrainedActivation = Annotated[
    ULQ | PACT | LSQPlus, Field(discriminator="name"), Shorthand("name", lambda: ["ulq", "pact", "lsq_plus"])
]
TrainedWeight = Annotated[ARQ | LSQ, Field(discriminator="name"), Shorthand("name", lambda: ["arq", "lsq"])]


class ChannelPrune(Model):
    """Remove the channels with the smallest norms."""

    kind: Literal["channels"] = "channels"
    ratio: Share = Field(description="Part of the channels that is removed.")
    multiple: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=1, description="What is left is a multiple of this, at least this; 16 suits Ascend's matrix unit."
    )


class TwoOfFour(Model):
    """Keep the two largest of every four weights along the input channels."""

    kind: Literal["2:4"] = "2:4"
    update_freq: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=0, description="Choose them anew every so many steps of training; 0: once."
    )


class NoPrune(Model):
    """Keep all weights."""

    kind: Literal["none"] = "none"


Prune = Annotated[
    ChannelPrune | TwoOfFour | NoPrune, Field(discriminator="kind"), Shorthand("kind", lambda: ["2:4", "none"])
]


class CrossEntropy(Model):
    """Softmax and cross entropy of logits and class indexes."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class SquaredError(Model):
    """Mean squared difference to given values."""

    kind: Literal["mse"] = "mse"


class AbsoluteError(Model):
    """Mean absolute difference to given values."""

    kind: Literal["l1"] = "l1"


class BinaryCrossEntropy(Model):
    """Sigmoid and cross entropy of logits and given probabilities."""

    kind: Literal["bce"] = "bce"


class Distillation(Model):
    """Difference to the outputs of the float model; needs no labels."""

    kind: Literal["distillation"] = "distillation"
    temperature: Rate = Field(default=2.0, description="Both distributions are softened by it.")
    labels: Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(
        default=0.0, description="Part of the loss that is cross entropy with labels."
    )


class LossModel(Model):
    """An ONNX model that computes the loss."""

    kind: Literal["model"] = "model"
    path: Name = Field(
        description="Its inputs are outputs of the network, by name, and labels; its first output is a scalar."
    )


Loss = Annotated[
    CrossEntropy | SquaredError | AbsoluteError | BinaryCrossEntropy | Distillation | LossModel,
    Field(discriminator="kind"),
    Shorthand("kind", lambda: ["cross_entropy", "mse", "l1", "bce", "distillation"]),
]


class TrainingConfig(Model):
    """How the artifacts of quantization-aware training are made."""

    batchnorm: Literal["fold", "train"] = Field(
        default="fold", description="Fold BatchNormalization first, or train it with statistics of its own."
    )
    loss: Loss = Field(default=CrossEntropy(), description="What is made small.")
    output: Name | None = Field(default=None, description="The model output the loss is for; absent: the first.")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="How weights follow their gradients.")
    weight_decay: Annotated[float, Field(strict=True, ge=0)] = Field(default=0.0, description="AdamW only.")
    clip_grad_norm: Rate | None = Field(default=None, description="Largest norm of all gradients together.")
    scale_rate: Number = Field(
        default=1.0, description="Learning rate of scales and ranges, as a multiple of that of the weights."
    )
    freeze: tuple[Name, ...] = Field(default=(), description="Initializers that are not trained: names or globs.")
