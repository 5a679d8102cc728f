"""What quantization-aware training learns of scales: which parameters there are, and what they stand for.

Training sees initializers. Each of these records says which initializers belong together, and how their trained values
become a scale and a zero point; `to_dict` and `from_dict` let artifacts keep them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxq.algos.lsq import TINY, Grid, arq_params, log_params, range_grid, step_grid
from onnxq.errors import RecipeError
from onnxq.spec import Granularity, PerAxis, PerTensor, QType, QuantParams, QuantSpec

RangeMethod = Literal["ulq", "pact", "lsq_plus"]
ScaleMethod = Literal["lsq", "arq", "fixed"]


@dataclass(frozen=True, slots=True)
class LearnedRange:
    """The range of a group of activations.

    Attributes:
        group: Name of the group.
        method: ``ulq``: parameters are the upper and the lower end; ``pact``: the upper end, and the lower one is its
            negative; ``lsq_plus``: the logarithm of the step, and the offset.
        spec: The codes.
        keys: Keys of the plan's activations that share the range.
        parameters: Names of the initializers, in the order above, each of shape (1,). A lower end that is fixed, or
            follows from the upper one, has none.
        factor: What the parameters of ends and offsets are multiplied with: training moves every range by parts of
            what it was at the start.
        rate: What the logarithm of the step is multiplied with.
        fixed_min: The lower end is 0.
        bounds: Nothing outside these can occur, whatever is learned.
    """

    group: str
    method: RangeMethod
    spec: QuantSpec
    keys: tuple[str, ...]
    parameters: tuple[str, ...]
    factor: float = 1.0
    rate: float = 1.0
    fixed_min: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def grid(self, values: Mapping[str, NDArray[np.float32]]) -> Grid:
        """The reals of the codes.

        Args:
            values: The parameters by name, each of one element.
        """
        first, *others = (np.float32(values[name].reshape(())) for name in self.parameters)
        factor = np.float32(self.factor)
        if self.method == "lsq_plus":
            offset = np.float32(others[0] * factor) if others else np.float32(0)
            return step_grid(float(np.float32(first * np.float32(self.rate))), float(offset), self.spec)
        high = min(max(np.float32(first * factor), TINY), np.float32(self.bounds[1]))
        low = np.float32(others[0] * factor) if others else np.float32(-high)
        low = np.float32(0) if self.fixed_min else max(min(low, np.float32(0)), np.float32(self.bounds[0]))
        return range_grid(float(high), float(low), self.spec)

    def to_dict(self) -> dict[str, object]:
        """Mappings, lists, strings and numbers."""
        return {
            "group": self.group,
            "method": self.method,
            "spec": spec_to_dict(self.spec),
            "keys": list(self.keys),
            "parameters": list(self.parameters),
            "factor": self.factor,
            "rate": self.rate,
            "fixed_min": self.fixed_min,
            "bounds": [None if math.isinf(b) else b for b in self.bounds],
        }

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> LearnedRange:
        """Read what `to_dict` gave."""
        low, high = content["bounds"]
        return LearnedRange(
            content["group"], content["method"], spec_from_dict(content["spec"]), tuple(content["keys"]),
            tuple(content["parameters"]), content["factor"], content["rate"], content["fixed_min"],
            (-math.inf if low is None else low, math.inf if high is None else high),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LearnedScale:
    """The scale of a weight.

    Attributes:
        key: Key of the weight in the plan.
        weight: Name of the initializer that is trained.
        method: ``lsq``: the parameter is the logarithm of the scale; ``arq``: the scale follows from the weight;
            ``fixed``: the scale stays what it was.
        spec: The codes.
        parameter: Name of the initializer of the logarithm, of a shape that broadcasts against the weight; or empty.
        rate: What the logarithm is multiplied with.
        full_range: Where the negative side is the wider one, the lowest code stands for it.
    """

    key: str
    weight: str
    method: ScaleMethod
    spec: QuantSpec
    parameter: str = ""
    rate: float = 1.0
    full_range: bool = False

    def params(self, weight: NDArray[np.float32], values: Mapping[str, NDArray[np.float32]]) -> QuantParams | None:
        """The scales that training has left; None where they stay what they were.

        Args:
            weight: The trained weight.
            values: The parameters by name.
        """
        if self.method == "lsq":
            logarithm = values[self.parameter].astype(np.float32) * np.float32(self.rate)
            return log_params(logarithm, self.spec)
        return arq_params(weight, self.spec, full_range=self.full_range) if self.method == "arq" else None

    def to_dict(self) -> dict[str, object]:
        """Mappings, lists, strings and numbers."""
        return {
            "key": self.key,
            "weight": self.weight,
            "method": self.method,
            "spec": spec_to_dict(self.spec),
            "parameter": self.parameter,
            "rate": self.rate,
            "full_range": self.full_range,
        }

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> LearnedScale:
        """Read what `to_dict` gave."""
        return LearnedScale(
            content["key"], content["weight"], content["method"], spec_from_dict(content["spec"]),
            content["parameter"], content["rate"], content["full_range"],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class MaskedWeight:
    """A weight of which two in every four are 0.

    Attributes:
        weight: Name of the initializer.
        axis: Its axis of the input channels, along which four weights belong together.
        node: Name of a layer that reads it: passes that change a weight may give it another name.
        update_freq: Training chooses the two anew every so many steps; 0: never.
        dense: The weight as it was, where training may choose others.
        mask: Name of the initializer of ones and zeros, in a training graph.
    """

    weight: str
    axis: int
    node: str
    update_freq: int = 0
    dense: NDArray[np.float32] | None = None
    mask: str = ""


def spec_to_dict(spec: QuantSpec) -> dict[str, object]:
    """A specification with one scale, or one per channel, as plain values."""
    axis = spec.granularity.axis if isinstance(spec.granularity, PerAxis) else None
    return {
        "type": spec.qtype.label, "bits": spec.bits, "symmetric": spec.symmetric, "narrow": spec.narrow, "axis": axis,
    }  # fmt: skip


def spec_from_dict(content: Mapping[str, Any]) -> QuantSpec:
    """Read what `spec_to_dict` gave.

    Raises:
        RecipeError: If there is no such type.
    """
    axis = content["axis"]
    if axis is not None and not isinstance(axis, int):
        raise RecipeError(f"axis found {axis!r}; must be a whole number")
    granularity: Granularity = PerTensor() if axis is None else PerAxis(axis)
    qtype = QType.parse(content["type"])
    return QuantSpec(qtype, granularity, content["symmetric"], content["bits"], content["narrow"])
