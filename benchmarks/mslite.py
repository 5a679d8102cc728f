"""MindSpore Lite's converter: its sample configurations, verbatim but for paths and names of nodes, on real models.

Each goes through ``converter_lite``; the result is compared with the float model: file size, agreement, accuracy, and
latency in turns. The zoo is needed.
"""

from __future__ import annotations

import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import latency
import tools
from accuracy import Float
from datasets import Case, cases

from onnxq.dialects.mslite.job import convert_model

SAMPLES = tools.ROOT / "tests" / "dialects" / "mslite" / "samples"
V1, V2, STORIES = "mobilenetv1_0.25_224", "mobilenetv2-7_refit_head", "stories260K_llama"
PLACEHOLDER = "input_name_1:/mnt/image/input_1_dir,input_name_2:input_2_dir"
IMAGENET = {
    "normalize_mean=[127.5, 127.5, 127.5]": "normalize_mean=[123.675, 116.28, 103.53]",
    "normalize_std=[127.5, 127.5, 127.5]": "normalize_std=[58.395, 57.12, 57.375]",
}
"""What MobileNetV2 was trained with."""


@dataclass(frozen=True)
class Sample:
    """A configuration of the documentation.

    Attributes:
        name: What the table calls it.
        parts: Its files, the later sections in the place of the earlier ones.
        models: The models it is tried on.
        changes: Values changed besides paths and names.
    """

    name: str
    parts: tuple[str, ...]
    models: tuple[str, ...]
    changes: tuple[tuple[str, str], ...] = ()


KL = (("activation_quant_method=MAX_MIN", "activation_quant_method=KL"),)
OUTLIERS = (("activation_quant_method=MAX_MIN", "activation_quant_method=REMOVAL_OUTLIER"),)
NETS = (V1, V2)
ALL = (
    Sample("fixed bit", ("fixed_bit_weight_quant",), NETS),
    Sample("mixed bit", ("mixed_bit_weight_quant",), (V2,)),
    Sample("full, MAX_MIN", ("full_quant",), NETS),
    Sample("full, KL", ("full_quant",), NETS, KL),
    Sample("full, REMOVAL_OUTLIER", ("full_quant",), NETS, OUTLIERS),
    Sample("full, per channel", ("full_quant", "full_per_channel"), (V1,)),
    Sample("full, per layer", ("full_quant", "full_per_layer"), (V2,)),
    Sample("full, NVGPU", ("full_quant", "full_nvgpu"), NETS),
    Sample("full, DSP", ("full_quant", "full_dsp"), NETS),
    Sample("full, nodes skipped", ("full_quant", "skip"), (V1,)),
    Sample("dynamic", ("dynamic_quant",), (STORIES,)),
)


def written(sample: Sample, case: Case, zoo: Path, folder: Path) -> Path:
    """The configuration with the paths and names of this machine and model."""
    texts = [(SAMPLES / f"{part}.cfg").read_text(encoding="utf-8") for part in sample.parts]
    found = [re.findall(r"^\[(\w+)\]\n(.*?)(?=^\[|\Z)", text, re.DOTALL | re.MULTILINE) for text in texts]
    sections = {name: body for pairs in found for name, body in pairs}
    text = "".join(f"[{name}]\n{body.rstrip()}\n\n" for name, body in sections.items())
    changes = [(PLACEHOLDER, f"input:{zoo / 'images' / 'calib'}"), *sample.changes]
    changes += IMAGENET.items() if case.name == V2 else ()
    changes.append(("conv2d_1,add_8,concat_1", _first_layers(case.model)))
    for old, new in changes:
        text = text.replace(old, new)
    path = folder / "config.cfg"
    path.write_text(text, encoding="utf-8")
    return path


def _first_layers(model: Path) -> str:
    """Two layers of a model, to be skipped."""
    import onnx

    return ",".join([n.name for n in onnx.load(model).graph.node if n.op_type == "Conv"][:2])


def measure(sample: Sample, case: Case, reference: Float, options: tools.Options, folder: Path) -> tools.Row:
    """Convert a model and compare it."""
    assert options.zoo is not None
    config = written(sample, case, options.zoo, folder)
    out = folder / "converted.onnx"
    start = time.perf_counter()
    convert_model("ONNX", case.model, out, config, threads=options.threads)
    seconds = time.perf_counter() - start
    row: tools.Row = {"configuration": sample.name, "model": case.name, "s": seconds}
    row["size / float"] = out.stat().st_size / case.model.stat().st_size
    row |= reference.distance(out)
    if case.name != STORIES:
        pair = {"float": str(case.model), "onnxq": str(out)}
        turn = 0.3 if options.quick else 3.0
        found = tools.in_child(latency.alternated, models=pair, threads=options.threads, seconds=turn)
        row["time / float"] = found["onnxq / float"]
    return row


def run(options: tools.Options) -> list[tools.Table]:
    """The table."""
    if options.zoo is None:
        return [tools.Table("MindSpore Lite's samples", [], ["the zoo is needed: set ONNXQ_ZOO"])]
    rows: list[tools.Row] = []
    for case in cases(options):
        wanted = [sample for sample in ALL if case.name in sample.models]
        if not wanted:
            continue
        reference = Float(case.model, *case.evaluation(), options.threads)
        for sample in wanted:
            with tempfile.TemporaryDirectory(prefix="onnxq-bench-") as name:
                rows.append(measure(sample, case, reference, options, Path(name)))
    notes = [
        "calibration images are resized to 224 x 224 as the samples say, evaluated ones keep their proportions",
        "the target of NVGPU and DSP is another processor: time is that of ONNX Runtime here",
    ]
    return [tools.Table("MindSpore Lite's samples", rows, notes)]


if __name__ == "__main__":
    tools.main([run], __doc__)
