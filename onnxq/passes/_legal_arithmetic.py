"""Arithmetic in forms that the training runtime derives rightly."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from onnxq.graph import Tensor
from onnxq.passes._legal_site import Rewrite, Site


def matmul(site: Site) -> Tensor | bool:
    """Vectors become matrices of one row or column."""
    ranks = [site.rank(0), site.rank(1)]
    if 1 not in ranks:
        return False
    chain, a, b = site.chain, site.input(0), site.input(1)
    if ranks[1] == 1 and ranks[0] > 1:
        return chain.squeeze(chain.op("MatMul", a, chain.unsqueeze(b, 1)), -1)
    row = chain.unsqueeze(a, 0)
    if ranks[1] > 1:
        return chain.squeeze(chain.op("MatMul", row, b), -2)
    return chain.squeeze(chain.op("MatMul", row, chain.unsqueeze(b, 1)), 0, 1)


def power(site: Site) -> Tensor | bool:
    """Exponents of the type and at most the shape of what they are for."""
    if site.learns(1):
        site.refuse("its exponent is trained", "name it in training.freeze, or write it with Exp and Log")
    graph, chain, exponent = site.graph, site.chain, site.input(1)
    x, changed = site.input(), False
    if not graph.is_float32(exponent):
        exponent, changed = chain.op("Cast", exponent, to=np.float32, shape=graph.shape(exponent)), True
    shape, larger = graph.shape(x), graph.shape(site.input(1))
    if larger != () and (shape is None or larger is None or shape != site.graph.shape(site.node.outputs[0])):
        x, changed = chain.op("Expand", x, chain.op("Shape", exponent, dtype=np.int64)), True
    return chain.op("Pow", x, exponent) if changed else False


def clip(site: Site) -> Tensor | bool:
    """Max and Min where bounds are trained."""
    if not site.learns(1) and not site.learns(2):
        return False
    chain, y, low, high = site.chain, site.input(), site.given(1), site.given(2)
    if low is not None:
        y = chain.op("Max", y, low)
    return y if high is None else chain.op("Min", y, high)


def total(site: Site) -> Tensor:
    """Sum: one Add after the other."""
    return site.chain.total(site.node.inputs)


def mean(site: Site) -> Tensor:
    """The sum, divided."""
    inputs, chain = site.node.inputs, site.chain
    return chain.op("Div", chain.total(inputs), chain.real(len(inputs)))


def where(site: Site) -> Tensor | bool:
    """Both choices in the shape of the result: gradients of choices that are broadcast are not summed up."""
    graph, chain, node = site.graph, site.chain, site.node
    shape = graph.shape(node.outputs[0])
    known = shape is not None and None not in shape
    small = [i for i in (1, 2) if site.learns(i) and not (known and graph.shape(site.input(i)) == shape)]
    if not small:
        return False
    if known and all(isinstance(d, int) for d in shape or ()):
        sizes = chain.ints(*(int(d) for d in shape or ()))  # type: ignore[arg-type] # they are numbers
    else:
        sizes = chain.op("Shape", chain.op("Where", *node.inputs), dtype=np.int64)
    choices = [chain.op("Expand", site.input(i), sizes) if i in small else site.input(i) for i in (1, 2)]
    return chain.op("Where", site.input(0), *choices)


def dropout(site: Site) -> Tensor:
    """Left out: quantization is noise enough, and evaluation has none."""
    if site.used(1):
        site.refuse("its mask is used", "export the model in evaluation mode")
    return site.chain.identity(site.input())


def scatter(site: Site) -> bool:
    """Only where values are replaced."""
    if str(site.attr("reduction", "none")) != "none":
        site.refuse(f"its gradient is wrong with reduction {site.attr('reduction', '')!r}", "use another operator")
    return False


ARITHMETIC: Mapping[str, Rewrite] = MappingProxyType(
    {
        "MatMul": matmul,
        "Pow": power,
        "Clip": clip,
        "Sum": total,
        "Mean": mean,
        "Where": where,
        "Dropout": dropout,
        "ScatterND": scatter,
        "ScatterElements": scatter,
    }
)
