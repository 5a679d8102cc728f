"""Einsum as Transpose, Reshape and MatMul."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from onnxq.graph import Tensor
from onnxq.passes._legal_site import LegalChain, Rewrite, Site, Size

_ADVICE = "export it as Transpose, Reshape and MatMul"


def einsum(site: Site) -> Tensor:
    """One or two operands whose letters occur once in each."""
    equation = str(site.attr("equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if "." in equation or not arrow or len(terms) > 2 or any(len(set(t)) < len(t) for t in (*terms, right)):
        site.refuse(f"its equation {equation!r} is of a form that is not rewritten", _ADVICE)
    chain, operands = site.chain, [site.input(i) for i in range(len(terms))]
    sizes: dict[str, Size] = {}
    for term, operand, index in zip(terms, operands, range(2), strict=False):
        if site.rank(index) != len(term):
            site.refuse(f"its equation {equation!r} does not fit its operands", "the model is not valid")
        sizes |= dict(zip(term, chain.sizes(operand), strict=True))
    alone = [
        _summed(chain, o, t, right + "".join(x for x in terms if x is not t))
        for o, t in zip(operands, terms, strict=True)
    ]
    if len(terms) == 1:
        (tensor, term) = alone[0]
        result = _ordered(chain, tensor, term, right)
        return chain.identity(result) if result is operands[0] else result
    return _product(chain, alone, right, sizes)


def _summed(chain: LegalChain, tensor: Tensor, term: str, others: str) -> tuple[Tensor, str]:
    """Without the axes that nobody else has."""
    axes = [i for i, letter in enumerate(term) if letter not in others]
    if not axes:
        return tensor, term
    kept = "".join(letter for letter in term if letter in others)
    return chain.reduce("ReduceSum", tensor, axes, keepdims=False), kept


def _ordered(chain: LegalChain, tensor: Tensor, term: str, order: Sequence[str]) -> Tensor:
    return chain.transpose(tensor, *(term.index(letter) for letter in order))


def _product(
    chain: LegalChain, operands: Sequence[tuple[Tensor, str]], right: str, sizes: Mapping[str, Size]
) -> Tensor:
    (a, left), (b, other) = operands
    batch = [x for x in left if x in other and x in right]
    inner = [x for x in left if x in other and x not in right]
    rows, columns = [x for x in left if x not in other], [x for x in other if x not in left]
    a = _merged(chain, _ordered(chain, a, left, [*batch, *rows, *inner]), batch, inner, sizes, last=True)
    b = _merged(chain, _ordered(chain, b, other, [*batch, *inner, *columns]), batch, inner, sizes, last=False)
    y = chain.reshape(chain.op("MatMul", a, b), [sizes[x] for x in (*batch, *rows, *columns)])
    return _ordered(chain, y, "".join([*batch, *rows, *columns]), right)


def _merged(
    chain: LegalChain, x: Tensor, batch: list[str], inner: list[str], sizes: Mapping[str, Size], *, last: bool
) -> Tensor:
    """As a batch of matrices: the inner axes are one, and the axes of its own are one."""
    count: Size = 1
    for letter in inner:
        size = sizes[letter]
        if isinstance(count, int):
            count = chain.times(size, count)
        else:
            count = chain.times(count, size) if isinstance(size, int) else chain.op("Mul", count, size, dtype="int64")
    ends: list[Size] = [-1, count] if last else [count, -1]
    return chain.reshape(x, [*(sizes[x] for x in batch), *ends])


EINSUM: Mapping[str, Rewrite] = MappingProxyType({"Einsum": einsum})
