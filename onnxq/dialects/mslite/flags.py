"""The command line of converter_lite: what its options may be, and which of them mean something for ONNX.

Source: MindSpore Lite, tools/converter/converter_lite/converter_flags.cc.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from onnxq.calib.readers import Layout
from onnxq.errors import OnnxqError, nearest

EXPORTS: Mapping[str, str] = MappingProxyType(
    {
        "TF": "python -m tf2onnx.convert --saved-model DIR --output model.onnx",
        "TFLITE": "python -m tf2onnx.convert --tflite model.tflite --output model.onnx",
        "CAFFE": "python -m caffe2onnx.convert --prototxt FILE --caffemodel FILE --onnx model.onnx",
        "MINDIR": "mindspore.export(net, inputs, file_name='model', file_format='ONNX')",
        "MSLITE": "mindspore.export(net, inputs, file_name='model', file_format='ONNX') on the network it was made of",
        "PYTORCH": "torch.onnx.export(model, inputs, 'model.onnx')",
        "OM": "the framework's own export to ONNX: an .om file is compiled and cannot be read back",
    }
)
"""How a model of another framework becomes ONNX."""
_SWITCH = ("true", "false")
_FILE = "the result is ONNX; it has no effect"
_TYPES = ("FLOAT16", "FLOAT", "INT8", "UINT8", "INT32", "INT64", "DEFAULT")


def _flag(name: str, default: str, note: str = "", *, values: tuple[str, ...] = ()) -> Any:  # noqa: ANN401 - a field
    """An option.

    Args:
        name: How it is written.
        default: Its value where it is absent.
        note: What a user should know who gives it another value.
        values: What it may be; empty for anything.
    """
    return field(default=default, metadata={"name": name, "note": note, "values": values})


@dataclass(frozen=True, slots=True)
class Flags:
    """The options besides the files and shapes, all of them text as they are given."""

    fmk: str = _flag("fmk", "ONNX")
    input_data_format: str = _flag("inputDataFormat", "", values=("NHWC", "NCHW"))
    weight_file: str = _flag("weightFile", "", "an ONNX model names its weight files itself; it is not read")
    input_data_type: str = _flag("inputDataType", "DEFAULT", "inputs keep the model's type", values=_TYPES)
    output_data_type: str = _flag("outputDataType", "DEFAULT", "outputs keep the model's type", values=_TYPES)
    output_data_format: str = _flag("outputDataFormat", "", "outputs keep the model's layout", values=("NHWC", "NCHW"))
    fp16: str = _flag("fp16", "off", "weights without codes stay float32", values=("on", "off"))
    save_type: str = _flag("saveType", "MINDIR_LITE", _FILE, values=("MINDIR", "MINDIR_LITE"))
    optimize: str = _flag("optimize", "general", "the configuration's target_device decides; it has no effect")
    optimize_transformer: str = _flag("optimizeTransformer", "false", "it has no effect", values=_SWITCH)
    device: str = _flag("device", "", "the configuration's target_device decides; it has no effect")
    train_model: str = _flag("trainModel", "false", "the result is for inference", values=_SWITCH)
    infer: str = _flag("infer", "false", "run onnxq compare on the result instead", values=_SWITCH)
    encryption: str = _flag("encryption", "false", _FILE, values=_SWITCH)
    encrypt_key: str = _flag("encryptKey", "", _FILE)
    decrypt_key: str = _flag("decryptKey", "", "an ONNX model is not encrypted; it has no effect")
    decrypt_mode: str = _flag("decryptMode", "AES-GCM", "an ONNX model is not encrypted; it has no effect")

    def check(self) -> None:
        """Refuse what cannot be done.

        Raises:
            OnnxqError: If the model is not ONNX, or an option has a value it cannot have; it names all problems.
        """
        problems = list(self._problems())
        if problems:
            raise OnnxqError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if self.fmk in EXPORTS:
            yield f"--fmk={self.fmk}: only ONNX models are read; export it first: {EXPORTS[self.fmk]}"
        elif self.fmk != "ONNX":
            known = ("ONNX", *EXPORTS)
            hint = nearest(self.fmk.upper(), known, count=1)
            yield f"--fmk={self.fmk}: must be ONNX (or another framework's name, which tells how to export){hint}"
        for f in fields(self):
            value, known = getattr(self, f.name), f.metadata["values"]
            if known and value not in known and value != f.default:
                yield f"--{f.metadata['name']}={value}: must be {' or '.join(known)}"
        if self.optimize.split(":")[0] not in ("none", "general", "gpu_oriented", "ascend_oriented"):
            yield f"--optimize={self.optimize}: must be none, general, gpu_oriented or ascend_oriented"

    @property
    def layout(self) -> Layout | None:
        """Order of the dimensions of binary files; None for the converter's."""
        return "NCHW" if self.input_data_format == "NCHW" else "NHWC" if self.input_data_format == "NHWC" else None

    def notes(self) -> tuple[str, ...]:
        """Which options have no effect."""
        return tuple(
            f"--{f.metadata['name']}={getattr(self, f.name)}: {f.metadata['note']}"
            for f in fields(self)
            if f.metadata["note"] and getattr(self, f.name) != f.default
        )


def parse_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Read ``name:1,3,224,224;other:1,10``; a name may have colons, -1 leaves a dimension as it is.

    Args:
        text: The value of ``--inputShape``.

    Raises:
        OnnxqError: If it is not of this form, or names an input twice.
    """
    found: dict[str, tuple[int, ...]] = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        name, _, dims = part.rpartition(":")
        sizes = [d.strip() for d in dims.split(",")]
        if not name.strip() or not all(re.fullmatch(r"-?[0-9]+", size) for size in sizes):
            raise OnnxqError(f"--inputShape: found {part!r}; must be name:1,3,224,224, with semicolons between several")
        if name.strip() in found:
            raise OnnxqError(f"--inputShape: input {name.strip()!r} is given twice")
        found[name.strip()] = tuple(int(size) for size in sizes)
    return found
