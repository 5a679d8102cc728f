"""What kind of quantization a recipe asks for: whole layers, weights alone, or activations as they come."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onnxq._recipe.base import Count, Flag, Model, Shorthand
from onnxq._recipe.low_bit import BlockMethod

Size = Annotated[int, Field(strict=True, ge=0)]


class Static(Model):
    """Weights and activations have codes; the scales of activations are measured beforehand."""

    kind: Literal["static"] = "static"


class MixedBits(Model):
    """One step size for each weight, searched for a relative error; the width follows from it."""

    init_scale: Annotated[float, Field(strict=True, gt=0, lt=1)] = Field(
        default=0.02, description="Relative error of each weight, the norm of the difference over the norm."
    )
    auto_tune: Flag = Field(
        default=False, description="Search the largest init_scale whose model outputs have a mean cosine of 0.995."
    )
    max_iterations: Annotated[int, Field(strict=True, ge=40, le=65535)] = Field(
        default=40, description="Runs of the model that auto_tune may take for its first pass, times four."
    )


class WeightOnly(Model):
    """Only weights have codes; the model computes with floats, decoded when it is loaded."""

    kind: Literal["weight_only"] = "weight_only"
    storage: Literal["packed", "native", "blocks", "rounded"] = Field(
        default="packed",
        description="packed: as many bits per weight in the file as they are wide, decoded by standard operators; "
        "native: integers behind DequantizeLinear, 2, 4, 8 or 16 bits wide; blocks: large MatMuls become "
        "MatMulNBits, 4 or 8 bits wide, the rest is packed; rounded: floats that have only the values of the codes. "
        "With a method, blocks means MatMulNBits and GatherBlockQuantized of 2, 4 or 8 bits, whatever the size.",
    )
    min_size: Size = Field(default=0, description="Only weights with more elements than this.")
    min_channels: Size = Field(default=0, description="Of Conv and ConvTranspose, only weights with more channels.")
    gain_rule: Flag = Field(
        default=False, description="Leave weights float whose channels have too few elements for a scale to pay."
    )
    correction: Flag = Field(default=True, description="Give each channel back its mean and variance.")
    mixed: MixedBits | None = Field(default=None, description="Search the step of each weight; absent: one width.")
    block_size: Count | Literal["row"] = Field(
        default=32,
        description="Weights that share a scale in MatMulNBits, a power of 2 from 16 to 256; with a method in all "
        "storages, and other numbers are fine where there is no MatMulNBits. row: all inputs of an output.",
    )
    method: BlockMethod | None = Field(
        default=None,
        description="How 2-D weights of MatMul, Gemm and Gather become codes with scales of blocks; absent: scales of "
        "whole channels. All other weights keep these.",
    )
    average_bits: Annotated[float, Field(strict=True, ge=2, le=8)] | None = Field(
        default=None,
        description="With a method: the width of each weight is chosen so that they average at most this, by what it "
        "does to the outputs. Widths are 2, 4 and 8, with storage packed or rounded also 3, 5 and 6.",
    )
    compute: Literal["float32", "int8"] | None = Field(
        default=None,
        description="What MatMulNBits multiplies with: int8, codes of the activations made on the way, which is many "
        "times faster and costs little; float32. Absent: int8 with a method, else float32.",
    )


class Dynamic(Model):
    """Weights have codes; activations get theirs when the model runs, from the range each of them has then."""

    kind: Literal["dynamic"] = "dynamic"
    ranges: Literal["onnx", "exact"] = Field(
        default="onnx",
        description="onnx: ranges include zero, by DynamicQuantizeLinear, which ONNX Runtime has fast kernels for; "
        "exact: ranges are those of the values, as MindSpore Lite has them.",
    )
    variables: Flag = Field(
        default=False,
        description="Also quantize products of two activations, as MindSpore Lite does: on CPUs it costs accuracy and "
        "gains no speed.",
    )


Scheme = Annotated[
    Static | WeightOnly | Dynamic,
    Field(discriminator="kind"),
    Shorthand("kind", lambda: ["static", "weight_only", "dynamic"]),
]
