"""What the default recipe makes of the bundled models, as text; `tests/test_golden.py` compares with it.

After a change that is meant, run this and look at the difference before it is committed:

    python -m tests.golden.regenerate
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnxq
from tests.bundled import MODELS

HERE = Path(__file__).resolve().parent
NAMES = ("digits_cnn", "digits_mobilenet", "digits_transformer")
PLANNED = (
    "digits_gru",
    "digits_lstm",
    "digits_prototypes",
    "ink_unet",
    "pairs_answer",
    "sketch_decoder",
    "sketch_decoder_with_past",
    "tones_conv1d",
)
"""Models of which only the plan is kept, for two targets: it needs no data."""
TARGETS = ("ort", "qnn")


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


def planned_text(name: str) -> str:
    """What becomes of every node, and the types of what gets codes."""
    lines = [f"# {name}: what is planned for it"]
    for target in TARGETS:
        plan = onnxq.plan_model(MODELS / f"{name}.onnx", recipe={"target": target}).plan
        lines += ["", f"target {target}: nodes"]
        lines += [f"  {d.node}: {d.op_type} {d.role}" for d in plan.decisions]
        lines += ["", f"target {target}: activations"]
        lines += [f"  {a.key}: {a.spec.qtype.label}, scale of {a.group}" for a in plan.activations.values()]
        lines += ["", f"target {target}: weights"]
        lines += [f"  {w.key}: {w.spec.qtype.label}" for w in plan.weights]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all files."""
    for name in NAMES:
        (HERE / f"{name}.txt").write_text(golden_text(name), encoding="utf-8")
    for name in PLANNED:
        (HERE / f"{name}.txt").write_text(planned_text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
