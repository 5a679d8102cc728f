"""What the passes of one run share: the recipe, the plan, the statistics and the numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnxq.algos.moments import Moments
    from onnxq.algos.weight.codes import WeightCodes
    from onnxq.algos.weight.mixed_bit import FoundStep
    from onnxq.calib.distributed import Workers
    from onnxq.calib.known import KnownStats
    from onnxq.calib.readers import Reader
    from onnxq.factors import LayerFactors
    from onnxq.graph import GraphModel
    from onnxq.learned import LearnedRange, LearnedScale, MaskedWeight
    from onnxq.passes._base import PassReport
    from onnxq.plan import Plan, StoredBlocks
    from onnxq.recipe import Recipe
    from onnxq.spec import QuantParams
    from onnxq.stats import TensorStats
    from onnxq.targets import Target


@dataclass
class QuantContext:
    """The only mutable object of a run; a pass writes only what its `provides` names.

    Attributes:
        recipe: What the user wants.
        target: What the backend executes.
        reader: The calibration data, or None where nothing needs any.
        plan: Which nodes and tensors are quantized, and how.
        stats: Statistics of tensors by name.
        known: Statistics of the same graph that were measured before, and are added to; None where nobody asks twice.
        ranges: Smallest and largest real of a group of activations, where a pass has decided it.
        params: Scale and zero point by tensor name, for activations, weights and biases.
        factors: The numbers by layer, for targets that want them so.
        balance: What the input channels of a layer were divided by, by node name.
        kept: Which output channels are left of the layers that lost some, by node name.
        masked: Weights of which two in every four are 0.
        ranges_learned: What training learns of activations.
        scales_learned: What training learns of weights.
        frozen: Initializers that training keeps without training them: running statistics.
        moments: Mean and standard deviation of the channels behind each batch normalization, by tensor name.
        weight_codes: How weights become codes where only they do, by their keys in the plan.
        steps: What the search for the step of each of them found, by the same keys.
        blocks: Weights whose codes have scales of blocks, by node name and input index.
        rounded: Weights that AdaRound has rounded before, by what they were rounded for: they are taken again. Empty
            unless whoever tries one recipe after the other wants that.
        clusters: The codes that a layer's weight uses where it does not use all, by node name.
        twin: The same model in operators that run here, where the target's own do not.
        reports: One per pass that ran.
        metadata: Entries for the model's `metadata_props`.
        threads: How many threads calibration may use.
        workers: Who calibrates in the place of these threads.
        seed: Seed of every random choice.
        progress: Is told of long work: what is being done, how much is done, of how much (None: not known).
        samples: How many samples calibration used.
    """

    recipe: Recipe
    target: Target
    reader: Reader | None = None
    plan: Plan | None = None
    stats: dict[str, TensorStats] = field(default_factory=dict)
    known: KnownStats | None = None
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    params: dict[str, QuantParams] = field(default_factory=dict)
    factors: dict[str, LayerFactors] = field(default_factory=dict)
    kept: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    masked: tuple[MaskedWeight, ...] = ()
    ranges_learned: tuple[LearnedRange, ...] = ()
    scales_learned: tuple[LearnedScale, ...] = ()
    frozen: tuple[str, ...] = ()
    moments: dict[str, Moments] = field(default_factory=dict)
    weight_codes: dict[str, WeightCodes] = field(default_factory=dict)
    blocks: dict[tuple[str, int], StoredBlocks] = field(default_factory=dict)
    steps: dict[str, FoundStep] = field(default_factory=dict)
    balance: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    rounded: dict[tuple[str, str, bytes], NDArray[np.float32]] = field(default_factory=dict)
    clusters: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    twin: GraphModel | None = None
    reports: list[PassReport] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    workers: Workers | None = None
    seed: int = 0
    progress: Callable[[str, int, int | None], None] | None = None
    samples: int = 0

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator that depends on the seed and `purpose` only, not on the order of calls."""
        return np.random.default_rng([self.seed, *purpose.encode()])
