"""Training with BatchNormalization that is folded afterwards: one plan for two forms of a model.

What is quantized is decided on the folded model, as it will be in the end. The quantizers go into the model that is not
folded: those of activations behind the BatchNormalization, those of weights in front of it. Folding multiplies each
channel of a weight, and so its scale: the codes stay.

Source: specs of AMCT, section 1.9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxq.algos import weight as weight_methods
from onnxq.graph import GraphModel
from onnxq.opinfo import weight_axis
from onnxq.plan import Plan, WeightPlan
from onnxq.recipe import AbsMax, EqualizeConfig, Recipe
from onnxq.spec import PerAxis, QuantParams

Array = NDArray[np.float32]


def plain(recipe: Recipe) -> Recipe:
    """The recipe without what would change weights that are trained in another form."""
    return recipe.replace(equalize=EqualizeConfig(depthwise=False), refine=(), balance=None)


def unfolded_plan(
    plan: Plan, folded: GraphModel, unfolded: GraphModel, params: Mapping[str, QuantParams]
) -> tuple[Plan, dict[str, QuantParams]]:
    """The plan of the folded model for the one that is not.

    Returns:
        The plan, and the numbers: weights that folding changes have scales of their own before, and biases that it
        makes get codes only in the end.
    """
    found, weights = dict(params), []
    for weight in plan.weights:
        before = unfolded.node(weight.node).inputs[weight.index]
        if before.name == folded.node(weight.node).inputs[weight.index].name:
            weights.append(weight)
            continue
        method = weight_methods.config_from_dict(AbsMax().name, AbsMax().parameters())
        found[weight.key] = weight_methods.find_params(unfolded.value(before), weight.spec, method)
        weights.append(replace(weight, bias=False))
    return replace(plan, weights=tuple(weights)), found


def folded_params(params: QuantParams, before: Array, after: Array, plan: WeightPlan, graph: GraphModel) -> QuantParams:
    """Scales that give a folded weight the codes that it had before.

    Args:
        params: Scales before.
        before: The weight before.
        after: The weight folded.
        plan: The weight in the plan.
        graph: The folded model.
    """
    if before.shape == after.shape and np.array_equal(before, after):
        return params
    node = graph.node(plan.node)
    spec, axis = params.spec, None
    if isinstance(spec.granularity, PerAxis):
        axis = spec.granularity.axis
    else:
        transposed, groups = bool(node.attrs.get("transB", 0)), int(node.attrs.get("group", 1))
        axis = weight_axis(str(node.op), after.ndim, transposed=transposed, groups=groups)
    rest = None if axis is None else tuple(i for i in range(after.ndim) if i != axis)
    old, new = (np.abs(w).max(axis=rest).astype(np.float64) for w in (before, after))
    ratio = np.divide(new, old, out=np.ones_like(new), where=(old > 0) & (new > 0))
    scale = (params.scale.astype(np.float64) * ratio).astype(np.float32)
    if axis is not None:
        spec = replace(spec, granularity=PerAxis(axis))
    return QuantParams(spec, scale, np.zeros(scale.shape, np.int32))
