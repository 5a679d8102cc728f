"""``onnxq pack`` and ``onnxq unpack``: a model in a small file for shipping, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxq.cli.options import Json, ModelPath, Verbose
from onnxq.cli.paths import check_outputs
from onnxq.cli.terminal import Terminal

_MOST = 20


def pack(
    model: ModelPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The packed file to write.", metavar="FILE", show_default=False)
    ],
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Pack a model and its external data into one small file for shipping; 'onnxq unpack' gives the same bytes back.

    Codes of weights take about as many bits as their entropy says, and the rest is compressed. Any ONNX model will
    do; it pays most after weight-only quantization.
    """
    from onnxq.cli import tables
    from onnxq.packing import pack as run

    terminal = Terminal(as_json=as_json, verbose=verbose)
    check_outputs({"--output": output}, {"MODEL": model})
    report = run(model, output)
    terminal.show(*tables.packed(report, most=None if verbose else _MOST))
    terminal.document(report.to_dict())
    return 0


def unpack(
    packed: Annotated[Path, typer.Argument(metavar="FILE", help="What 'onnxq pack' has written.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The model file to write.", metavar="MODEL", show_default=False)
    ],
    as_json: Json = False,
) -> int:
    """Write the model that a packed file holds, byte for byte, and check it.

    External data files come back under their own names in the folder of the model.
    """
    from onnxq.cli import tables
    from onnxq.packing import unpack as run

    terminal = Terminal(as_json=as_json)
    check_outputs({"--output": output}, {"FILE": packed})
    written = run(packed, output)
    sizes = {str(path): path.stat().st_size for path in written}
    terminal.show(*(f"{path}  {tables.size(count)}" for path, count in sizes.items()))
    terminal.document({"files": [{"path": path, "bytes": count} for path, count in sizes.items()]})
    return 0
