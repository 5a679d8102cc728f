"""The fusion file ``<prefix>_quant.json``: which operators of the original model each deployed operator stands for.

Tools that compare a deployed model with the original, tensor by tensor, pair the two by it. Its shape is that of the
fusion information of Ascend's graph engine:

    {"name": …, "graph": [{"op": [{"name", "type", "attr": […], "output_desc": [{"attr": […]}]}]}]}

* An operator of the original that is still there stands for itself; one that others were folded into stands for them
  all, in the order of the original (``conv1`` with ``bn1``).
* An operator that was put in front of or behind a layer stands for the layer: `AscendQuant`, `AscendDequant` and the
  other ``<layer>.<suffix>``. One that belongs to no layer has an empty list.
* `output_desc` is there for operators whose outputs are tensors of the original model: it says whose, and with which
  index. Where a layer is quantized that is its `AscendDequant`; the layer itself gives integers, whatever its output
  is called.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx

from onnxq.dialects._files import write_text
from onnxq.errors import ModelError

_SUFFIXES = (
    "quant", "dequant", "anti_quant", "weight_quant", "bias_quant", "mul",
)  # fmt: skip
"""What is put behind the name of a layer to name what belongs to it."""
_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "DT_FLOAT",
    onnx.TensorProto.FLOAT16: "DT_FLOAT16",
    onnx.TensorProto.BFLOAT16: "DT_BF16",
    onnx.TensorProto.DOUBLE: "DT_DOUBLE",
    onnx.TensorProto.INT8: "DT_INT8",
    onnx.TensorProto.UINT8: "DT_UINT8",
    onnx.TensorProto.INT16: "DT_INT16",
    onnx.TensorProto.UINT16: "DT_UINT16",
    onnx.TensorProto.INT32: "DT_INT32",
    onnx.TensorProto.UINT32: "DT_UINT32",
    onnx.TensorProto.INT64: "DT_INT64",
    onnx.TensorProto.UINT64: "DT_UINT64",
    onnx.TensorProto.BOOL: "DT_BOOL",
    onnx.TensorProto.STRING: "DT_STRING",
}


def fusion_info(
    deploy: onnx.ModelProto,
    original: onnx.ModelProto,
    *,
    name: str,
    origins: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, object]:
    """The content of the fusion file; the same for the same models.

    Args:
        deploy: The model that goes to ATC.
        original: The float model it was made of.
        name: What the file calls the model; AMCT takes the prefix of the files.
        origins: Names of original nodes by the name of a node in `deploy`. What is not in it is found by name; an
            original node that is gone counts as folded into the layer it follows if the layer's result has its
            output's name.

    Returns:
        Plain mappings, lists, strings and numbers.
    """
    sources = _Origins(deploy, original, origins or {})
    ops = [_operator(node, sources) for node in deploy.graph.node]
    return {"name": name, "graph": [{"op": ops}]}


def write_fusion_json(content: Mapping[str, object], path: str | os.PathLike[str]) -> Path:
    """Write a fusion file, all of it or nothing.

    Args:
        content: What `fusion_info` gave.
        path: The file; its folder must exist.

    Returns:
        The file.

    Raises:
        ModelError: If it cannot be written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return write_text(Path(path), text, "fusion file", ModelError)


class _Output(NamedTuple):
    """Where a tensor of the original model comes from."""

    node: str
    position: int
    kind: str


class _Origins:
    """What the operators and tensors of a deployed model were in the original."""

    def __init__(self, deploy: onnx.ModelProto, original: onnx.ModelProto, given: Mapping[str, Sequence[str]]) -> None:
        self._given = given
        self._nodes = {node.name: node for node in original.graph.node if node.name}
        self._left = {node.name for node in deploy.graph.node}
        types, now = _types(original), _types(deploy)
        self._changed = {name for name, kind in now.items() if types.get(name, kind) != kind}
        self._makers = {
            output: _Output(node.name, index, _TYPES.get(types.get(output, 0), "DT_FLOAT"))
            for node in original.graph.node
            for index, output in enumerate(node.output)
            if output
        }
        self._folded = dict(self._find_folded(deploy))

    def of_node(self, name: str) -> list[str]:
        """The original nodes that the node `name` of the deployed model stands for."""
        if name in self._given:
            return list(self._given[name])
        layer, _, suffix = name.rpartition(".")
        if name not in self._nodes and layer in self._left and _is_suffix(suffix):
            return self.of_node(layer)
        if name not in self._nodes:
            return []
        return [name, *self._folded.get(name, ())]

    def of_outputs(self, node: onnx.NodeProto) -> list[_Output | None]:
        """Where the outputs of a node of the deployed model come from in the original."""
        if f"{node.name}.dequant" in self._left:
            return [None] * len(node.output)
        return [None if output in self._changed else self._makers.get(output) for output in node.output]

    def _find_folded(self, deploy: onnx.ModelProto) -> Iterator[tuple[str, list[str]]]:
        """Nodes that are gone, by the layer they were folded into."""
        for node in deploy.graph.node:
            layer, _, suffix = node.name.rpartition(".")
            owner = node.name if node.name in self._nodes else layer if _is_suffix(suffix) else ""
            if owner in self._nodes:
                for output in node.output:
                    if gone := self._gone_between(owner, output):
                        yield owner, gone

    def _gone_between(self, layer: str, tensor: str) -> list[str]:
        """The nodes that made `tensor` of the result of `layer` and are not in the deployed model."""
        chain: list[str] = []
        while (maker := self._makers.get(tensor)) is not None and maker.node != layer:
            if not maker.node or maker.node in self._left or maker.node in chain:
                return []
            chain.append(maker.node)
            inputs = [i for i in self._nodes[maker.node].input if i in self._makers]
            if len(inputs) != 1:
                return []
            tensor = inputs[0]
        return chain[::-1] if maker is not None else []


def _types(model: onnx.ModelProto) -> dict[str, int]:
    return {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}


def _is_suffix(suffix: str) -> bool:
    return suffix.rstrip("0123456789_") in _SUFFIXES


def _operator(node: onnx.NodeProto, sources: _Origins) -> dict[str, object]:
    described: dict[str, object] = {
        "name": node.name,
        "type": node.op_type,
        "attr": [_text_list("_datadump_original_op_names", sources.of_node(node.name))],
    }
    outputs = sources.of_outputs(node)
    if any(outputs):
        described["output_desc"] = [{"attr": [] if found is None else _output(found)} for found in outputs]
    return described


def _text_list(key: str, values: Sequence[str]) -> dict[str, object]:
    """An attribute that is a list of strings, which is what a `val_type` of 1 means."""
    content: dict[str, object] = {"val_type": 1}
    if values:
        content["s"] = list(values)
    return {"key": key, "value": {"list": content}}


def _output(found: _Output) -> list[dict[str, object]]:
    return [
        {"key": "_datadump_origin_format", "value": {"s": "NCHW"}},
        {"key": "_datadump_data_type", "value": {"s": found.kind}},
        {"key": "_datadump_origin_output_index", "value": {"i": found.position}},
        {"key": "_datadump_origin_name", "value": {"s": found.node}},
    ]
