"""Activation functions that the training runtime cannot derive, in operators that it derives rightly.

At the place where an activation has a kink, the derivative is one of those of the two sides or lies between them; where
it has none, the derivative there is right as well: codes of quantized tensors are exactly 0 all the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from onnxq.graph import Tensor
from onnxq.passes._legal_site import LegalChain, Rewrite, Site


def prelu(site: Site) -> Tensor:
    """``x + (1 - slope) * max(-x, 0)``."""
    x, chain = site.input(), site.chain
    rest = chain.op("Sub", chain.real(1), site.input(1))
    return chain.op("Add", x, chain.op("Mul", rest, chain.op("Relu", chain.op("Neg", x))))


def _hard_sigmoid(chain: LegalChain, x: Tensor, alpha: float, beta: float) -> Tensor:
    return chain.clip(chain.op("Add", chain.times_number(x, alpha), chain.real(beta)), 0, 1)


def hard_sigmoid(site: Site) -> Tensor:
    """``clip(alpha * x + beta, 0, 1)``."""
    return _hard_sigmoid(site.chain, site.input(), float(site.attr("alpha", 0.2)), float(site.attr("beta", 0.5)))


def hard_swish(site: Site) -> Tensor:
    """``x * clip(x / 6 + 1 / 2, 0, 1)``."""
    return site.chain.op("Mul", site.input(), _hard_sigmoid(site.chain, site.input(), float(np.float32(1 / 6)), 0.5))


def _elu(chain: LegalChain, x: Tensor, alpha: float, scale: float = 1.0) -> Tensor:
    """``x - m + alpha * (exp(m / scale) - 1)`` with ``m = min(x, 0)``; its derivative at 0 is 1."""
    low = chain.below(x)
    inner = low if scale == 1 else chain.op("Div", low, chain.real(scale))
    bent = chain.times_number(chain.op("Sub", chain.op("Exp", inner), chain.real(1)), alpha)
    return chain.op("Add", chain.op("Sub", x, low), bent)


def elu(site: Site) -> Tensor:
    """``x`` above 0, ``alpha * (exp(x) - 1)`` below."""
    return _elu(site.chain, site.input(), float(site.attr("alpha", 1.0)))


def selu(site: Site) -> Tensor:
    """Elu, scaled."""
    alpha, gamma = float(site.attr("alpha", 1.67326319217681884765625)), site.attr("gamma", 1.05070102214813232421875)
    return site.chain.times_number(_elu(site.chain, site.input(), alpha), float(gamma))


def celu(site: Site) -> Tensor:
    """``x`` above 0, ``alpha * (exp(x / alpha) - 1)`` below."""
    alpha = float(site.attr("alpha", 1.0))
    return _elu(site.chain, site.input(), alpha, alpha)


def _softplus(chain: LegalChain, x: Tensor) -> Tensor:
    """``x / 2 + (abs(x) / 2 + log(1 + exp(-abs(x))))``: never overflows, and its derivative at 0 is 1/2."""
    size, half = chain.op("Abs", x), chain.real(0.5)
    tail = chain.op("Log", chain.op("Add", chain.op("Exp", chain.op("Neg", size)), chain.real(1)))
    even = chain.op("Add", chain.op("Mul", size, half), tail)
    return chain.op("Add", chain.op("Mul", x, half), even)


def softplus(site: Site) -> Tensor:
    """``log(1 + exp(x))``."""
    return _softplus(site.chain, site.input())


def mish(site: Site) -> Tensor:
    """``x * tanh(softplus(x))``."""
    return site.chain.op("Mul", site.input(), site.chain.op("Tanh", _softplus(site.chain, site.input())))


def softsign(site: Site) -> Tensor:
    """``x / (1 + abs(x))``."""
    chain, x = site.chain, site.input()
    return chain.op("Div", x, chain.op("Add", chain.op("Abs", x), chain.real(1)))


def thresholded_relu(site: Site) -> Tensor:
    """``x`` above alpha, 0 below."""
    chain, x = site.chain, site.input()
    above = chain.op("Greater", x, chain.real(float(site.attr("alpha", 1.0))), dtype=np.bool_)
    return chain.op("Mul", x, chain.op("Cast", above, to=np.float32))


def step(site: Site) -> Tensor:
    """Round, Floor, Ceil and Sign do not move with their input."""
    graph, chain = site.graph, site.chain
    stepped = chain.op(str(site.node.op), site.input(), shape=graph.shape(site.node.outputs[0]))
    return chain.detach(stepped)


ACTIVATIONS: Mapping[str, Rewrite] = MappingProxyType(
    {
        "PRelu": prelu,
        "HardSigmoid": hard_sigmoid,
        "HardSwish": hard_swish,
        "Elu": elu,
        "Selu": selu,
        "Celu": celu,
        "Softplus": softplus,
        "Mish": mish,
        "Softsign": softsign,
        "ThresholdedRelu": thresholded_relu,
    }
    | dict.fromkeys(["Round", "Floor", "Ceil", "Sign"], step)
)
