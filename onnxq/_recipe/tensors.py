"""What is wanted of activations and of weights; every field may be left to something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from onnxq._recipe.base import Count, Flag, Model
from onnxq._recipe.methods import ActivationMethod, WeightMethod
from onnxq._recipe.training import TrainedActivation, TrainedWeight
from onnxq.spec import QType

if TYPE_CHECKING:
    from typing_extensions import Self

TypeName = Literal["int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16", "float8e4m3fn", "float8e5m2"]
Bits = Annotated[int, Field(strict=True, ge=1, le=16)]


class BlockShape(Model):
    """Runs of elements that share a scale."""

    axis: Annotated[int, Field(strict=True)] | None = Field(
        default=None, description="The axis that is cut into runs; absent: the axis the operator sums over."
    )
    size: Count = Field(description="How many elements share a scale.")


class Blockwise(Model):
    """One scale per run of elements along an axis."""

    per_block: BlockShape


def _granularity_tag(value: object) -> str:
    return "block" if isinstance(value, (dict, Blockwise)) else "name"


GranularityConfig = Annotated[
    Annotated[Literal["per_tensor", "per_axis"], Tag("name")] | Annotated[Blockwise, Tag("block")],
    Discriminator(_granularity_tag),
]


class TensorConfig(Model):
    """How tensors are quantized. A field that is absent is taken from the next more general place."""

    type: TypeName | None = Field(
        default=None, description="Type the codes are stored in; a float8 one needs opset 19 and is symmetric."
    )
    bits: Bits | None = Field(default=None, description="Width in use, 1 to 16; absent: the width of the type.")
    symmetric: Flag | None = Field(default=None, description="Keep the zero point in the middle of the codes.")
    narrow: Flag | None = Field(default=None, description="Leave out the lowest code (int8: -127 to 127).")
    granularity: GranularityConfig | None = Field(
        default=None, description="Which elements share a scale: per_tensor, per_axis or {per_block: {axis, size}}."
    )

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.type is not None and self.bits is not None and self.bits > QType.parse(self.type).bits:
            raise ValueError(f"bits found {self.bits}; do not fit into type {self.type}")
        if self.type is not None and QType.parse(self.type).floating:
            wrong = {"bits": self.bits not in (None, 8), "symmetric": self.symmetric is False, "narrow": self.narrow}
            if any(wrong.values()):
                found = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
                raise ValueError(f"type {self.type} has 8 bits, is symmetric and has all its codes; leave out {found}")
        return self

    def over(self, base: Self) -> Self:
        """This configuration, with `base` deciding what it leaves open.

        `type` and `bits` go together: a type of its own sets the width; a width of its own that is
        too wide for the type of `base` takes the narrowest type that holds it.

        Args:
            base: The more general configuration.
        """
        merged = {name: getattr(base, name) for name in type(self).model_fields}
        own = {name: getattr(self, name) for name in type(self).model_fields}
        if self.type is not None:
            merged["bits"] = None
            if QType.parse(self.type).floating:
                merged["symmetric"] = merged["narrow"] = None
        elif self.bits is not None and base.type is not None:
            inherited = QType.parse(base.type)
            if self.bits > inherited.bits or (inherited.floating and self.bits != inherited.bits):
                merged["type"] = QType.container(self.bits, signed=inherited.signed).label
        merged.update({name: value for name, value in own.items() if value is not None})
        return type(self)(**merged)


class CacheConfig(Model):
    """Keys and values that a decoder is given and gives back, as codes."""

    type: Literal["uint8", "int8"] = Field(default="uint8", description="Type of these inputs and outputs.")


class ActivationConfig(TensorConfig):
    """How activations are quantized."""

    method: ActivationMethod | None = Field(default=None, description="How the range is chosen.")
    trained: TrainedActivation | None = Field(
        default=None, description="How the range is learned in quantization-aware training; absent: ulq."
    )


class WeightConfig(TensorConfig):
    """How weights are quantized."""

    method: WeightMethod | None = Field(default=None, description="How the scale is chosen.")
    trained: TrainedWeight | None = Field(
        default=None, description="How the scale is learned in quantization-aware training; absent: lsq."
    )
