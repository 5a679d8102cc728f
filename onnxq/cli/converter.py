"""``onnxq converter_lite``: the command of MindSpore Lite's converter, for ONNX models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxq.cli.options import Json, Threads, Verbose
from onnxq.cli.terminal import Terminal

_IGNORED = "Accepted, without effect on ONNX"


def _ignored(name: str) -> Any:  # noqa: ANN401 - typer's own type
    return typer.Option(name, rich_help_panel=_IGNORED, metavar="TEXT", show_default=False)


def converter_lite(
    fmk: Annotated[
        str, typer.Option(help="What the model is: ONNX. Others are exported to it first.", metavar="ONNX")
    ],
    model_file: Annotated[
        Path, typer.Option("--modelFile", help="The float model.", metavar="FILE", show_default=False)
    ],
    output_file: Annotated[
        str,
        typer.Option(
            "--outputFile", help="Where to; .onnx is appended if it is missing.", metavar="FILE", show_default=False
        ),
    ],
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--configFile", help="The configuration of the quantization.", metavar="FILE",
            show_default="nothing is quantized",
        ),
    ] = None,
    input_data_format: Annotated[
        str,
        typer.Option(
            "--inputDataFormat", help="NHWC or NCHW: the order of the numbers in .bin files.", metavar="NHWC|NCHW",
            show_default="NHWC",
        ),
    ] = "",
    input_shape: Annotated[
        str,
        typer.Option(
            "--inputShape", help="Numbers for free dimensions; -1 leaves one free.", metavar="NAME:1,3,224,224;...",
            show_default="the model's",
        ),
    ] = "",
    weight_file: Annotated[str, _ignored("--weightFile")] = "",
    input_data_type: Annotated[str, _ignored("--inputDataType")] = "DEFAULT",
    output_data_type: Annotated[str, _ignored("--outputDataType")] = "DEFAULT",
    output_data_format: Annotated[str, _ignored("--outputDataFormat")] = "",
    fp16: Annotated[str, _ignored("--fp16")] = "off",
    save_type: Annotated[str, _ignored("--saveType")] = "MINDIR_LITE",
    optimize: Annotated[str, _ignored("--optimize")] = "general",
    optimize_transformer: Annotated[str, _ignored("--optimizeTransformer")] = "false",
    device: Annotated[str, _ignored("--device")] = "",
    train_model: Annotated[str, _ignored("--trainModel")] = "false",
    infer: Annotated[str, _ignored("--infer")] = "false",
    encryption: Annotated[str, _ignored("--encryption")] = "false",
    encrypt_key: Annotated[str, _ignored("--encryptKey")] = "",
    decrypt_key: Annotated[str, _ignored("--decryptKey")] = "",
    decrypt_mode: Annotated[str, _ignored("--decryptMode")] = "AES-GCM",
    threads: Threads = 0,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:  # fmt: skip
    """Convert as MindSpore Lite's converter does, from an ONNX model to an ONNX model.

    For example: onnxq converter_lite --fmk=ONNX --modelFile=m.onnx --outputFile=m.int8 --configFile=full_quant.cfg
    """
    from onnxq.cli import tables
    from onnxq.dialects.mslite.flags import Flags
    from onnxq.dialects.mslite.job import convert_model

    terminal = Terminal(as_json=as_json, verbose=verbose)
    flags = Flags(
        weight_file=weight_file,
        input_data_type=input_data_type,
        output_data_type=output_data_type,
        output_data_format=output_data_format,
        fp16=fp16,
        save_type=save_type,
        optimize=optimize,
        optimize_transformer=optimize_transformer,
        device=device,
        train_model=train_model,
        infer=infer,
        encryption=encryption,
        encrypt_key=encrypt_key,
        decrypt_key=decrypt_key,
        decrypt_mode=decrypt_mode,
    )
    with terminal.messages(), terminal.progress() as progress:
        done = convert_model(
            fmk,
            model_file,
            output_file,
            config_file,
            input_data_format=input_data_format,
            input_shape=input_shape,
            flags=flags,
            threads=threads,
            progress=progress,
        )
    terminal.notes(done.notes, warning=done.result is not None and not done.result.changed)
    terminal.show(*tables.conversion(done, verbose=verbose))
    terminal.document(done.to_dict())
    return 0
