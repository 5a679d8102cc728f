"""The parts of a recipe besides tensors and rules: fusion, equalization, calibration, refinement."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from onnxq._recipe.base import Count, Flag, Model, Name, Number, Repeat, Seed, Shorthand
from onnxq._recipe.methods import Method

Pixels = Annotated[tuple[Count, Count], Repeat(2)]
"""(height, width)."""


class FuseConfig(Model):
    """Which float operators are folded into their producers before quantization."""

    batchnorm: Flag = Field(
        default=True, description="Fold BatchNormalization and constant Mul/Add into weights and biases."
    )
    skip_layers: tuple[Name, ...] = Field(default=(), description="Names or globs of nodes nothing is folded into.")


class EqualizeConfig(Model):
    """Cross-layer equalization: even out the channel ranges of consecutive layers."""

    depthwise: Flag = Field(
        default=True,
        description="Scale the channels in front of depthwise convolutions so that each uses all codes; costs nothing.",
    )
    enabled: Flag = Field(default=False, description="Also even out the weights of all consecutive layers.")
    iterations: Count = Field(default=200, description="Sweeps over all pairs of layers, at the most.")
    tolerance: Annotated[float, Field(strict=True, gt=0)] = Field(
        default=0.01, description="Stop when no channel's factor differs from 1 by more than this."
    )
    drop_clips: Flag = Field(
        default=False, description="Turn a Clip(0, u) between two layers into a Relu, which changes the function."
    )


class BalanceConfig(Model):
    """Move the difficulty of activations with uneven channels into the weights."""

    strength: Annotated[float, Field(strict=True, ge=0.2, le=0.8)] = Field(
        default=0.5, description="0.2 leaves most of it in the activations, 0.8 moves most of it into the weights."
    )
    mul: Flag = Field(
        default=True,
        description="Also balance layers whose input nothing in front can divide, by a Mul of its own, as AMCT does; "
        "false: only where it costs nothing, as SmoothQuant does.",
    )


class ImagePreprocess(Model):
    """How an image file becomes a feed: decode, colour, resize, crop, ``(x * scale - mean) / std``, layout.

    With ``normalize: before_resize`` the order is decode, colour, ``(x * scale - mean) / std``, resize, crop, layout.
    """

    size: Pixels | None = Field(
        default=None, description="Resize to this (height, width), aspect ratio not kept; one number is a square."
    )
    resize_short_side: Count | None = Field(
        default=None, description="Resize so that the shorter side has this length, aspect ratio kept."
    )
    crop: Pixels | None = Field(default=None, description="Cut this (height, width) out of the centre.")
    interpolation: Literal["linear", "nearest", "cubic", "area"] = Field(
        default="linear", description="As OpenCV defines it."
    )
    scale: Annotated[float, Field(strict=True, gt=0)] = Field(
        default=1 / 255, description="Factor of the pixels (0 to 255) before mean and std."
    )
    mean: Annotated[tuple[Number, ...], Repeat(1)] = Field(
        default=(0.0,), description="Subtracted after scaling; one number or one per channel."
    )
    std: Annotated[tuple[Annotated[float, Field(strict=True, gt=0)], ...], Repeat(1)] = Field(
        default=(1.0,), description="Divided by after the mean; one number or one per channel."
    )
    normalize: Literal["after_crop", "before_resize"] = Field(
        default="after_crop",
        description="Whether scale, mean and std come last, or first: then float numbers are resized, not pixels.",
    )
    layout: Literal["auto", "NCHW", "NHWC"] = Field(
        default="auto",
        description="Order of the model's input dimensions; auto takes NCHW unless the shape says channels last.",
    )
    orientation: Flag = Field(
        default=False, description="Turn the image as its EXIF tag says; most training pipelines do not."
    )
    color: Literal["RGB", "BGR", "GRAY"] = Field(default="RGB", description="Order of the channels.")

    @property
    def channels(self) -> int:
        """How many channels the model gets."""
        return 1 if self.color == "GRAY" else 3

    @model_validator(mode="after")
    def _check(self) -> ImagePreprocess:
        if self.size is not None and self.resize_short_side is not None:
            raise ValueError("size and resize_short_side exclude each other; to do both, crop after resize_short_side")
        for key, value in (("mean", self.mean), ("std", self.std)):
            if len(value) not in (1, self.channels):
                raise ValueError(f"{key} has {len(value)} numbers; must be 1 or {self.channels} for color {self.color}")
        top = 255 * self.scale
        if max(self.mean) > 1.001 * top:
            raise ValueError(
                f"mean found {list(self.mean)}, but scale {self.scale:.6g} gives pixels from 0 to {top:.6g}; "
                "with a mean for pixels from 0 to 255 set scale: 1"
            )
        return self


class CalibrationConfig(Model):
    """Which data are run through the model, and how."""

    samples: Count | None = Field(default=None, description="Use the first so many samples; absent: all of them.")
    batch_size: Count | None = Field(
        default=None,
        description="How many samples other tools would run at a time. The engine always chooses by itself how many "
        "it runs, so that this never changes the result.",
    )
    seed: Seed = Field(default=0, description="Seed of everything random.")
    random: Flag = Field(default=False, description="Use random data. Only good for trying things out.")
    random_samples: Count = Field(default=8, description="How many random samples.")
    memory_budget_mb: Annotated[int, Field(strict=True, ge=16)] = Field(
        default=1024, description="How much memory the statistics and feeds may take."
    )
    preprocess: ImagePreprocess | None = Field(default=None, description="How image files become feeds.")
    bin_layout: Literal["NCHW", "NHWC"] | None = Field(
        default=None,
        description="Order of the 4 dimensions of the numbers in .bin files; absent: as in the model. Where it is not "
        "the model's, they are transposed.",
    )


class BiasCorrection(Model):
    """Correct the mean shift of each layer's output in the layer's bias."""

    kind: Literal["bias_correction"] = "bias_correction"
    inputs: Literal["corrected", "float"] = Field(
        default="corrected",
        description="corrected: layers in graph order, fed by the corrected layers in front of them, for the shift of "
        "their weights; float: each layer fed with the codes of its own float input, as MindSpore Lite does.",
    )
    samples: Count | None = Field(
        default=None, description="How many samples the means are taken over; absent: 32, with inputs: float all."
    )


class GPTQ(Method):
    """Round column by column and compensate each error in the columns that follow."""

    name: Literal["gptq"] = "gptq"
    damping: Annotated[float, Field(strict=True, gt=0, lt=1)] = Field(
        default=0.01, description="Part of the mean diagonal that is added to the diagonal of X·Xᵀ."
    )
    act_order: Flag = Field(
        default=True, description="Round the columns with the largest inputs first; otherwise from first to last."
    )
    block_size: Count = Field(default=128, description="Columns that are compensated at a time; it decides the speed.")


class WeightRounding(Model):
    """Choose the rounding of weights by its effect on the layer's output."""

    kind: Literal["weight_rounding"] = "weight_rounding"
    method: Annotated[GPTQ, Shorthand("name", lambda: ["gptq"])] = Field(
        default=GPTQ(), description="How to choose it."
    )
    samples: Count = Field(default=128, description="How many samples the layer's inputs are taken from.")


RefineStep = Annotated[
    BiasCorrection | WeightRounding,
    Field(discriminator="kind"),
    Shorthand("kind", lambda: ["bias_correction", "weight_rounding"]),
]
