"""Reductions in forms that the training runtime derives rightly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from onnxq.graph import Tensor
from onnxq.passes._legal_site import LegalChain, Rewrite, Site

_LONGEST_PRODUCT = 256


def _axes(site: Site) -> list[int]:
    """The axes that are reduced; none where nothing is."""
    rank = site.rank()
    given = site.values(1, "axes")
    axes = site.attr("axes", None) if given is None else given.reshape(-1).tolist()
    if axes is None or len(axes) == 0:
        return [] if site.attr("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(a) % rank for a in axes)


def _ended(site: Site, y: Tensor, axes: Sequence[int]) -> Tensor:
    """Without the reduced axes, if they are not wanted."""
    if site.attr("keepdims", 1) or not axes:
        return y
    return site.chain.squeeze(y, *axes)


def plain(site: Site) -> Tensor | bool:
    """ReduceSum and ReduceMean, which are derived rightly unless they are told to do nothing."""
    named = site.attr("axes", None) or site.values(1, "axes")
    if (named is not None and len(named)) or not site.attr("noop_with_empty_axes", 0):
        return False
    return site.chain.identity(site.input())


def kept(site: Site) -> Tensor | bool:
    """ReduceL2 and ReduceLogSumExp are derived rightly where axes are named and stay."""
    axes = _axes(site)
    named = site.given(1) is not None or site.attr("axes", None) is not None
    if axes and named and site.attr("keepdims", 1):
        return False
    if not axes:
        op = "Abs" if site.node.op == "ReduceL2" else "Identity"
        return site.chain.op(op, site.input())
    return _ended(site, site.chain.reduce(str(site.node.op), site.input(), axes), axes)


def _of_sum(site: Site, values: Tensor) -> Tensor:
    axes = _axes(site)
    return site.chain.reduce("ReduceSum", values, axes, keepdims=bool(site.attr("keepdims", 1))) if axes else values


def l1(site: Site) -> Tensor:
    """The sum of absolute values."""
    return _of_sum(site, site.chain.op("Abs", site.input()))


def sum_square(site: Site) -> Tensor:
    """The sum of squares."""
    return _of_sum(site, site.chain.op("Mul", site.input(), site.input()))


def log_sum(site: Site) -> Tensor:
    """The logarithm of the sum."""
    return site.chain.op("Log", _of_sum(site, site.input()))


def _extreme(chain: LegalChain, x: Tensor, axes: Sequence[int], largest: bool) -> Tensor:
    """The largest or smallest value, axis by axis: the first one alone has a derivative."""
    for axis in axes:
        x = chain.top(x, axis, largest=largest)
    return x


def extreme(site: Site) -> Tensor:
    """ReduceMax and ReduceMin."""
    axes = _axes(site)
    if not axes:
        return site.chain.identity(site.input())
    return _ended(site, _extreme(site.chain, site.input(), axes, site.node.op == "ReduceMax"), axes)


def product(site: Site) -> Tensor:
    """ReduceProd: the values one by one."""
    axes, chain, y = _axes(site), site.chain, site.input()
    if not axes:
        return chain.identity(y)
    for axis in axes:
        length = site.length(axis, "a product")
        if length > _LONGEST_PRODUCT:
            site.refuse(f"it multiplies {length} values", f"products of up to {_LONGEST_PRODUCT} can be trained")
        parts = [chain.slice(y, axis, i, i + 1) for i in range(length)]
        while len(parts) > 1:
            pairs = [chain.op("Mul", a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
            parts = pairs + parts[len(pairs) * 2 :]
        y = parts[0]
    return _ended(site, y, axes)


REDUCTIONS: Mapping[str, Rewrite] = MappingProxyType(
    {
        "ReduceSum": plain,
        "ReduceMean": plain,
        "ReduceL2": kept,
        "ReduceLogSumExp": kept,
        "ReduceL1": l1,
        "ReduceSumSquare": sum_square,
        "ReduceLogSum": log_sum,
        "ReduceMax": extreme,
        "ReduceMin": extreme,
        "ReduceProd": product,
    }
)
