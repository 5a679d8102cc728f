"""What the default recipe makes of the bundled models, as text; `tests/test_golden.py` compares with it.

After a change that is meant, run this and look at the difference before it is committed:

    python -m tests.golden.regenerate
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnxq

HERE = Path(__file__).resolve().parent
MODELS = HERE.parents[1] / "models"
NAMES = ("digits_cnn", "digits_mobilenet", "digits_transformer")


def golden_text(name: str) -> str:
    """Operator counts, and type, scale and zero point of every activation."""
    result = onnxq.quantize(MODELS / f"{name}.onnx", MODELS / "data" / "digits_calib.npz")
    ops = Counter(node.op_type for node in result.model.graph.node)
    lines = [f"# {name}: what the default recipe makes of it", "", "roles"]
    lines += [f"  {role} {count}" for role, count in result.plan.counts().items()]
    lines += ["", "operators"]
    lines += [f"  {op} {count}" for op, count in sorted(ops.items())]
    lines += ["", "activations: type, scale, zero point"]
    for tensor in result.plan.activations:
        params = result.params[tensor]
        lines.append(f"  {tensor} {params.spec.qtype.label} {float(params.scale):.5g} {int(params.zero_point)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all files."""
    for name in NAMES:
        (HERE / f"{name}.txt").write_text(golden_text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
