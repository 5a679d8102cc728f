"""What can be done for a model that loses too much: changes of a whole recipe, and repairs of single layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from onnxq.plan import ActivationPlan, Plan, WeightPlan
from onnxq.recipe import (
    KL,
    ActivationConfig,
    ActivationMSE,
    AdaRound,
    BalanceConfig,
    BiasCorrection,
    MinMax,
    Percentile,
    Recipe,
    Rule,
    Selector,
    WeightConfig,
    WeightMSE,
)
from onnxq.spec import PerTensor, QType
from onnxq.targets import Target

LEFT_FLOAT = "tuning left it float"
REPAIRED = "tuning"
_ROUNDING = AdaRound(num_iteration=200, samples=32)
"""Few steps: nearly all of the gain is that of the local search behind them."""
_Range = ActivationMSE | Percentile | MinMax | KL
_RANGES: tuple[_Range, ...] = (
    ActivationMSE(),
    Percentile(percentile=99.999),
    MinMax(),
    KL(),
)
_WIDE = (QType.UINT16, QType.INT16)


@dataclass(frozen=True)
class Change:
    """A change of a whole recipe.

    Attributes:
        name: What it is called.
        part: What it changes; of two changes of one part only one can be.
        apply: Makes the changed recipe; the recipe itself where it has that already.
        slow: How many times as long as others it takes to quantize with it, about.
    """

    name: str
    part: str
    apply: Callable[[Recipe], Recipe] = field(compare=False, repr=False)
    slow: float = 1.0


def ladder(plan: Plan, target: Target) -> tuple[Change, ...]:
    """Changes of a whole recipe that cost nothing when the model runs, from cheap to costly ones.

    Args:
        plan: How the layers are quantized now: what they have already is left out.
        target: The backend.
    """
    used = {activation.method.name for activation in plan.activations.values()}
    known = {weight.method.name for weight in plan.weights}
    asymmetric = target.activation_symmetric and any(a.spec.symmetric for a in plan.activations.values())
    return (
        *(Change(f"ranges by {m.name}", "range", _with_range(m)) for m in _RANGES if used != {m.name}),
        *([] if known <= {"mse"} else [Change("weight scales by mse", "weights", _weight_mse)]),
        *([Change("asymmetric activations", "symmetry", _asymmetric)] if asymmetric else []),
        Change("bias correction", "bias", _corrected),
        Change("bias correction by float inputs", "bias", _corrected_by_float),
        Change("cross-layer equalization", "equalize", _equalized),
        Change("balanced channels (DMQ)", "balance", _balanced),
        Change("AdaRound", "weights", _rounded, slow=6.0),
    )


def _with_range(method: _Range) -> Callable[[Recipe], Recipe]:
    return lambda recipe: recipe.replace(activations=recipe.activations.replace(method=method))


def _weight_mse(recipe: Recipe) -> Recipe:
    return recipe.replace(weights=recipe.weights.replace(method=WeightMSE()))


def _rounded(recipe: Recipe) -> Recipe:
    return recipe.replace(weights=recipe.weights.replace(method=_ROUNDING))


def _asymmetric(recipe: Recipe) -> Recipe:
    return recipe.replace(activations=recipe.activations.replace(symmetric=False))


def _corrected(recipe: Recipe) -> Recipe:
    others = tuple(step for step in recipe.refine if not isinstance(step, BiasCorrection))
    return recipe.replace(refine=(*others, BiasCorrection()))


def _corrected_by_float(recipe: Recipe) -> Recipe:
    others = tuple(step for step in recipe.refine if not isinstance(step, BiasCorrection))
    return recipe.replace(refine=(*others, BiasCorrection(inputs="float")))


def _equalized(recipe: Recipe) -> Recipe:
    return recipe.replace(equalize=recipe.equalize.replace(enabled=True))


def _balanced(recipe: Recipe) -> Recipe:
    return recipe if recipe.balance is not None else recipe.replace(balance=BalanceConfig())


@dataclass(frozen=True)
class Repair:
    """Something to do otherwise for one layer.

    Attributes:
        name: What it is called.
        part: What it changes; of two repairs of one part only one can be.
        activations: How its inputs and outputs are quantized otherwise.
        weights: How its weights are.
        slow: How many times as long as others it takes to quantize with it, about.
    """

    name: str
    part: str
    activations: ActivationConfig | None = None
    weights: WeightConfig | None = None
    slow: float = 1.0


_PER_CHANNEL = Repair("scale per channel", "granularity", weights=WeightConfig(granularity="per_axis"))
_LAYER_MSE = Repair("weight scale by mse", "weights", weights=WeightConfig(method=WeightMSE()))
_LAYER_ROUNDING = Repair("AdaRound", "weights", weights=WeightConfig(method=_ROUNDING), slow=2.0)
_LAYER_ASYMMETRIC = Repair("asymmetric", "symmetry", activations=ActivationConfig(symmetric=False))
_LAYER_RANGES = tuple(Repair(f"range by {m.name}", "range", ActivationConfig(method=m)) for m in _RANGES)


def repairs_for(layer: str, plan: Plan, target: Target) -> tuple[Repair, ...]:
    """What can be tried on a layer that keeps it in 8 bits, cheap repairs first.

    Args:
        layer: Name of a quantized node.
        plan: How it is quantized now.
        target: The backend.
    """
    read = _activations_of(layer, plan)
    weights = [weight for weight in plan.weights if weight.node == layer]
    found: list[Repair] = []
    used = {activation.method.name for activation in read}
    found += [repair for repair, method in zip(_LAYER_RANGES, _RANGES, strict=True) if {method.name} != used and read]
    found += [_PER_CHANNEL] if any(_per_tensor(w) for w in weights) and _type_of(layer, plan) in target.per_axis else []
    found += [_LAYER_ASYMMETRIC] if target.activation_symmetric and read else []
    known = {weight.method.name for weight in weights}
    found += [_LAYER_MSE] if weights and known == {"absmax"} else []
    return (*found, *([_LAYER_ROUNDING] if weights and "adaround" not in known else ()))


def wide_repair(plan: Plan, target: Target) -> Repair | None:
    """Activations of 16 bits, None where the backend has no such codes.

    Args:
        plan: How the layers are quantized now.
        target: The backend.
    """
    signed = any(a.spec.qtype.signed for a in plan.activations.values())
    kinds = [kind for kind in _WIDE if kind in target.activation_types and kind.signed == signed]
    kinds += [kind for kind in _WIDE if kind in target.activation_types]
    if not kinds:
        return None
    config = ActivationConfig.model_validate({"type": kinds[0].label})
    return Repair("16-bit activations", "width", activations=config)


def _per_tensor(weight: WeightPlan) -> bool:
    return isinstance(weight.spec.granularity, PerTensor)


def _activations_of(layer: str, plan: Plan) -> list[ActivationPlan]:
    return [a for a in plan.activations.values() if any(node == layer for node, _ in a.readers)]


def _type_of(layer: str, plan: Plan) -> str:
    return next((d.op_type for d in plan.decisions if d.node == layer), "")


@dataclass(frozen=True)
class Variant:
    """One way to quantize a model: what differs from the recipe that tuning started with.

    Attributes:
        changes: Changes of the whole recipe, in the order in which they are made.
        repairs: What is done otherwise, by layer.
        floats: Layers left float.
    """

    changes: tuple[Change, ...] = ()
    repairs: Mapping[str, tuple[Repair, ...]] = field(default_factory=lambda: MappingProxyType({}))
    floats: frozenset[str] = frozenset()

    def with_change(self, change: Change) -> Variant:
        """The same with a change in the place of one of the same part."""
        others = tuple(c for c in self.changes if c.part != change.part)
        return Variant((*others, change), self.repairs, self.floats)

    def with_repair(self, layers: Iterable[str], repair: Repair) -> Variant:
        """The same with layers repaired, in the place of repairs of the same part."""
        repairs = dict(self.repairs)
        for layer in layers:
            repairs[layer] = (*(r for r in repairs.get(layer, ()) if r.part != repair.part), repair)
        return Variant(self.changes, MappingProxyType(repairs), self.floats)

    def with_floats(self, floats: Iterable[str]) -> Variant:
        """The same with these layers left float, and no others."""
        return Variant(self.changes, self.repairs, frozenset(floats))

    @property
    def wide(self) -> frozenset[str]:
        """Layers whose activations have 16 bits."""
        return frozenset(
            layer for layer, repairs in self.repairs.items() if any(r.part == "width" for r in repairs)
        ) - self.floats  # fmt: skip

    @property
    def slow(self) -> float:
        """How many times as long as the recipe that tuning started with it takes to quantize with it, about."""
        factors = [c.slow for c in self.changes] + [r.slow for repairs in self.repairs.values() for r in repairs]
        return max(factors, default=1.0)

    def recipe(self, base: Recipe, order: Sequence[str]) -> Recipe:
        """The recipe of it.

        Args:
            base: The recipe that tuning started with.
            order: All layers; rules are written in this order.

        Raises:
            RecipeError: If a change does not go together with the recipe.
        """
        changed = base
        for change in self.changes:
            changed = change.apply(changed)
        rules = list(changed.rules)
        for layer in order:
            match = Selector(node=layer)
            if layer in self.floats:
                rules.append(Rule(match=match, skip=True, note=LEFT_FLOAT))
            elif self.repairs.get(layer):
                rules.append(_rule(match, self.repairs[layer]))
        return changed.replace(rules=tuple(rules))


def _rule(match: Selector, repairs: Sequence[Repair]) -> Rule:
    activations, weights = ActivationConfig(), WeightConfig()
    for repair in repairs:
        activations = activations if repair.activations is None else repair.activations.over(activations)
        weights = weights if repair.weights is None else repair.weights.over(weights)
    return Rule(
        match=match,
        note=f"{REPAIRED}: {', '.join(repair.name for repair in repairs)}",
        activations=None if activations == ActivationConfig() else activations,
        weights=None if weights == WeightConfig() else weights,
    )
