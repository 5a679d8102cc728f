"""What DMQ balancing is worth: SQNR of a transformer with outlier channels, quantized without and with it.

Outliers are planted in the bundled transformer: a few channels of each normalization's output are made larger and the
weights behind them smaller by the same factor. The float function stays as it is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import tools
from accuracy import Float
from datasets import Feed
from onnx import numpy_helper

import onnxq
from onnxq import modelio

MODEL = tools.ROOT / "models" / "digits_transformer.onnx"
DATA = tools.ROOT / "models" / "data"
CHANNELS = 3
FACTORS = (1.0, 10.0, 100.0)
STRENGTHS: dict[str, tuple[float | None, ...]] = {"ort": (None, 0.5), "ascend": (None, 0.3, 0.5, 0.7)}


def planted(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The same function with `CHANNELS` channels behind every LayerNormalization `factor` times as large.

    Only normalizations that nothing but MatMuls reads are changed; each has other channels.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {t.name: t for t in result.graph.initializer}

    def scale(name: str, factors: np.ndarray) -> None:
        constants[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constants[name]) * factors, name))

    rng = np.random.default_rng(0)
    for node in result.graph.node:
        readers = [n for n in result.graph.node if node.output[0] in n.input]
        if node.op_type != "LayerNormalization" or any(n.op_type != "MatMul" for n in readers):
            continue
        width = constants[node.input[1]].dims[0]
        factors = np.ones(width, np.float32)
        factors[rng.choice(width, CHANNELS, replace=False)] = factor
        for name in node.input[1:]:
            scale(name, factors)
        for reader in readers:
            scale(reader.input[1], (1 / factors).reshape(-1, 1))
    return result


def measure(options: tools.Options, folder: Path) -> list[tools.Row]:
    """A row for each size of the outliers, target and strength."""
    calib, test = (load(part)[: 32 if options.quick else None] for part in ("calib", "test"))
    labels = np.load(DATA / "digits_test_labels.npy", allow_pickle=False)[: len(test)]
    feeds: list[Feed] = [{"image": test}]
    rows: list[tools.Row] = []
    for factor in FACTORS[:1] if options.quick else FACTORS:
        source = folder / "planted.onnx"
        onnx.save(planted(onnx.load(MODEL), factor), source)
        reference = Float(source, feeds, labels, options.threads)
        for target, strengths in STRENGTHS.items():
            for strength in strengths:
                recipe: dict[str, object] = {"target": target}
                if strength is not None:
                    recipe["balance"] = {"strength": strength}
                result = onnxq.quantize(source, {"image": calib}, recipe=recipe, threads=options.threads)
                out = folder / "quantized.onnx"
                modelio.save_model(result.graph if result.twin is None else result.twin, out)
                row = {"outliers": factor, "target": target, "strength": strength if strength else "not balanced"}
                rows.append(row | reference.distance(out))
    return rows


def load(part: str) -> np.ndarray:
    with np.load(DATA / f"digits_{part}.npz", allow_pickle=False) as file:
        return file["image"]


def run(options: tools.Options) -> list[tools.Table]:
    """The table."""
    with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
        rows = measure(options, Path(name))
    notes = [f"{CHANNELS} channels of each normalization made so much larger; ascend: the model of standard operators"]
    return [tools.Table("DMQ balancing, bundled transformer", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
