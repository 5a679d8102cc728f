"""How weights that share scales in blocks become codes of few bits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onnxq._recipe.base import Count, Shorthand
from onnxq._recipe.methods import Method
from onnxq._recipe.steps import GPTQ


class RTN(Method):
    """Round to nearest; needs no data."""

    name: Literal["rtn"] = "rtn"


class HQQ(Method):
    """Half-quadratic: scales and zero points with a small sum of `|error|**power`; needs no data."""

    name: Literal["hqq"] = "hqq"
    power: Annotated[float, Field(strict=True, gt=0, le=2)] = Field(
        default=0.7, description="Exponent of the errors; below 1 a few large ones count little."
    )
    iterations: Count = Field(default=20, description="Steps at the most, of which every block keeps the best.")


class AWQ(Method):
    """Scale up the weights of inputs that matter, and down what comes in front of them; then round to nearest."""

    name: Literal["awq"] = "awq"
    grid: Count = Field(default=20, description="How many exponents of the inputs' magnitudes are tried.")


class AWQGPTQ(GPTQ):
    """As awq; then as gptq."""

    name: Literal["awq+gptq"] = "awq+gptq"  # type: ignore[assignment] # a kind of its own with the same fields
    grid: Count = Field(default=20, description="How many exponents of the inputs' magnitudes are tried.")


BlockMethod = Annotated[
    RTN | HQQ | GPTQ | AWQ | AWQGPTQ,
    Field(discriminator="name"),
    Shorthand("name", lambda: ["rtn", "hqq", "gptq", "awq", "awq+gptq"]),
]
