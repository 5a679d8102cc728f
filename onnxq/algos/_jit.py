"""Compiling kernels: once per machine, ahead of the first call, without the interpreter lock."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numba
from numba import types

F = TypeVar("F", bound=Callable[..., object])

f32 = types.float32
f64 = types.float64
i64 = types.int64
u32 = types.uint32
i64_pair: Any = types.UniTuple(i64, 2)  # type: ignore[no-untyped-call]
#: Contiguous arrays that a kernel only reads; a writable argument converts, a read-only one (a memmap) fits.
f32_in = types.Array(f32, 1, "C", readonly=True)
f32_in2 = types.Array(f32, 2, "C", readonly=True)
f32_in3 = types.Array(f32, 3, "C", readonly=True)
f64_in = types.Array(f64, 1, "C", readonly=True)
i64_in = types.Array(i64, 1, "C", readonly=True)


def kernel(signature: Any, *, fastmath: bool | set[str] = False) -> Callable[[F], F]:  # noqa: ANN401 - a numba type
    """Compile a function for one signature; keep the machine code on disk where that is possible.

    numba keeps it beside the source, else in the user's cache directory. Where neither can be written, the function is
    compiled in every process instead.

    Args:
        signature: A numba signature, ``result(arguments)``.
        fastmath: LLVM fast-math flags. Never ``True`` where NaN may arrive.
    """

    def compile_(function: F) -> F:
        # error_model "numpy": without the test for a zero divisor, which keeps loops out of vector registers
        compiler = partial(numba.njit, signature, nogil=True, fastmath=fastmath, error_model="numpy")
        try:
            compiled = compiler(cache=True)(function)
        except (RuntimeError, OSError):  # RuntimeError: no cache locator; OSError: disk full, lost permissions
            compiled = compiler()(function)
        return cast("F", compiled)

    return compile_
