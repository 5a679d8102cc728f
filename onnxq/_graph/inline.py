"""Model-local functions: replaced by their bodies when a model is loaded."""

from __future__ import annotations

import onnx
import onnx.inliner

from onnxq.errors import GraphError


def inline_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` without functions; `proto` itself if it has none.

    Raises:
        GraphError: If a function cannot be inlined.
    """
    if not proto.functions:
        return proto
    kept = {f"{f.domain}::{f.name}" for f in proto.functions}
    try:
        for convert in (False, True):
            result = onnx.inliner.inline_local_functions(proto, convert_version=convert)
            if not result.functions:
                return result
        kept = {f"{f.domain}::{f.name}" for f in result.functions}
    except (RuntimeError, ValueError) as err:
        raise GraphError(f"the model's functions {', '.join(sorted(kept))} cannot be inlined: {err}") from err
    raise GraphError(
        f"the model's functions {', '.join(sorted(kept))} cannot be inlined; export the model without functions"
    )
