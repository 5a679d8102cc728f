"""Generates the ``_pb2.py`` module of every ``.proto`` file next to this one: ``python -m … [--check]``.

The Python that protoc writes refuses any protobuf older than the one it was made for, which would shut out the
versions onnxq supports. Only its descriptor is taken, which has been the same for all versions; the module that
holds it uses public functions of the protobuf library.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (  # type: ignore[import-untyped] # no stubs in the dev extra
    DescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from onnxq.errors import OnnxqError

FOLDER = Path(__file__).parent
PACKAGE = Path("onnxq/dialects/amct/proto")
WIDTH = 96


def source_of(proto: Path) -> str:
    """The Python module for a ``.proto`` file.

    Args:
        proto: The file; its folder is searched for what it imports.

    Raises:
        OnnxqError: If grpcio-tools is not installed, or the file is not valid.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "descriptors"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto.parent}", f"--descriptor_set_out={out}"]
        done = subprocess.run([*command, proto.name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OnnxqError(f"{proto.name}: protoc failed; pip install -e '.[dev]' brings it\n{done.stderr.strip()}")
        content = FileDescriptorSet.FromString(out.read_bytes()).file[0]
    return _module(proto.name, content)


def _module(name: str, content: FileDescriptorProto) -> str:
    content.name = (PACKAGE / name).as_posix()
    for message in content.message_type:
        _drop_json_names(message)
    data = content.SerializeToString(deterministic=True)
    lines = [
        f'"""Messages of {name}; written by ``python -m onnxq.dialects.amct.proto.generate``, not by hand."""',
        "",
        "from google.protobuf import descriptor_pool, message_factory  # type: ignore[import-untyped]",
        "",
        "DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(",
        *(f"    {data[start : start + 24]!r}" for start in range(0, len(data), 24)),
        ")",
        "",
    ]
    lines += [
        f'{m.name} = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["{m.name}"])'
        for m in content.message_type
    ]
    lines += [f"{v.name} = {v.number}" for enum in content.enum_type for v in enum.value]
    return "\n".join(lines) + "\n"


def _drop_json_names(message: DescriptorProto) -> None:
    """The JSON names follow from the names, and protoc leaves them out of the modules it writes, too."""
    for field in message.field:
        field.ClearField("json_name")
    for inner in message.nested_type:
        _drop_json_names(inner)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the modules, or with ``--check`` find out whether they are as they would be written.

    Raises:
        SystemExit: If a module differs, or cannot be made.
    """
    parser = argparse.ArgumentParser(description="Generate the _pb2.py modules of this folder.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a module differs")
    check = parser.parse_args(arguments).check
    protos = sorted(FOLDER.glob("*.proto"))
    try:
        sources = {proto.with_name(f"{proto.stem}_pb2.py"): source_of(proto) for proto in protos}
    except OnnxqError as err:
        raise SystemExit(str(err)) from None
    for path, source in sources.items():
        current = path.read_text(encoding="utf-8") if path.exists() else ""
        if current == source:
            continue
        if check:
            raise SystemExit(f"{path.name} is not what its .proto file gives: run python -m {__spec__.name}")
        path.write_text(source, encoding="utf-8")


if __name__ == "__main__":
    main()
