"""The values AMCT allows, said once for its text and its JSON configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from onnxq.dialects.amct.algorithms import Ada, Arq, Hfmg, Ifmr, Nuq

Complaint = tuple[str, str]
"""A key as AMCT's JSON calls it, and what is wrong with its value."""
MOST_RATIOS = 10_000
WEIGHT_BITS = (4, 6, 7, 8)
"""Widths of weights; 4 can be said in JSON only."""


def complaints(algorithm: Ifmr | Hfmg | Arq | Ada | Nuq) -> Iterator[Complaint]:
    """Everything about the values of an algorithm that AMCT does not allow."""
    checks: dict[type, Callable[..., Iterator[Complaint]]] = {
        Ifmr: _ifmr,
        Hfmg: _hfmg,
        Arq: _arq,
        Ada: _ada,
        Nuq: _nuq,
    }
    return checks[type(algorithm)](algorithm)


def bad_strength(strength: float) -> str:
    """What is wrong with the migration strength of DMQ; empty where nothing is."""
    return "" if 0.2 <= strength <= 0.8 else f"found {strength:g}; must be in [0.2, 0.8]"


def bad_batch_num(batch_num: int) -> str:
    """What is wrong with a number of batches; empty where nothing is."""
    return "" if batch_num >= 1 else f"found {batch_num}; must be at least 1"


def _ifmr(found: Ifmr) -> Iterator[Complaint]:
    start, end = found.search_range
    if not 0 < start < end < float("inf"):
        yield "search_range", f"found {start:g} to {end:g}; must be 0 < start < end"
    elif not 0 < found.search_step <= (end - start) * (1 + 1e-6):
        yield "search_step", f"found {found.search_step:g}; must be > 0 and at most {end - start:g}, end - start"
    elif (end - start) / found.search_step > MOST_RATIOS:
        yield "search_step", f"found {found.search_step:g}; makes more than {MOST_RATIOS} ratios to try"
    for key in ("max_percentile", "min_percentile"):
        value = getattr(found, key)
        if not 0.5 < value <= 1:
            yield key, f"found {value:g}; must be in (0.5, 1]"
    if found.num_bits not in (8, 16):
        yield "num_bits", f"found {found.num_bits}; must be 8 or 16"


def _hfmg(found: Hfmg) -> Iterator[Complaint]:
    if found.num_of_bins not in (1024, 2048, 4096, 8192):
        yield "num_of_bins", f"found {found.num_of_bins}; must be 1024, 2048, 4096 or 8192"
    if found.num_bits != 8:
        yield "num_bits", f"found {found.num_bits}; HFMG is for 8 bits, use IFMR for 16"


def _arq(found: Arq) -> Iterator[Complaint]:
    if found.num_bits not in WEIGHT_BITS:
        yield "num_bits", f"found {found.num_bits}; must be 4, 6, 7 or 8"


def _ada(found: Ada) -> Iterator[Complaint]:
    for key in ("reg_param", "warm_start"):
        value = getattr(found, key)
        if not 0 < value < 1:
            yield key, f"found {value:g}; must be in (0, 1), both ends excluded"
    start, end = found.beta_range
    if not float("inf") > start > end > 0:
        yield "beta_range", f"found {start:g} to {end:g}; must be start > end > 0"
    if found.num_iteration < 0:
        yield "num_iteration", f"found {found.num_iteration}; must be at least 0"
    if found.num_bits not in WEIGHT_BITS:
        yield "num_bits", f"found {found.num_bits}; must be 4, 6, 7 or 8"


def _nuq(found: Nuq) -> Iterator[Complaint]:
    if found.num_steps not in (16, 32):
        yield "num_steps", f"found {found.num_steps}; must be 16 or 32"
    if not 0 <= found.num_of_iteration <= 5:
        yield "num_of_iteration", f"found {found.num_of_iteration}; must be in [0, 5]"
    if found.num_bits != 8:
        yield "num_bits", f"found {found.num_bits}; NUQ is for 8 bits"
