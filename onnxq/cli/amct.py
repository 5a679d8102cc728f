"""``onnxq amct``: AMCT's commands on ONNX files, under its options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxq.cli.options import Json, Verbose
from onnxq.cli.terminal import Terminal
from onnxq.errors import DataError

if TYPE_CHECKING:
    from onnxq.dialects.amct.api import AutoCalibrationEvaluatorBase
    from onnxq.dialects.amct.convert import Conversion

app = typer.Typer(help="AMCT's commands for Huawei Ascend: configure, calibrate, deploy, convert, simulate.")

Model = Annotated[Path, typer.Option("--model", help="The ONNX model.", metavar="FILE", show_default=False)]
Deploy = Annotated[Path, typer.Argument(metavar="DEPLOY", help="A deploy model.", show_default=False)]
SavePath = Annotated[
    str,
    typer.Option(
        "--save_path", "--save-path", help="Prefix of the files: out/net, or out/ with a slash at the end.",
        metavar="PREFIX", show_default=False,
    ),
]  # fmt: skip
Output = Annotated[Path, typer.Option("--output", "-o", help="The model to write.", metavar="OUT", show_default=False)]


@app.callback(invoke_without_command=True)
def _start(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command()
def config(
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The JSON to write.", metavar="FILE", show_default=False)
    ],
    definition: Annotated[
        Path | None,
        typer.Option(
            "--calibration_config", "--calibration-config", help="Simplified configuration.", metavar="CFG",
            show_default="AMCT's defaults",
        ),
    ] = None,
    batch_num: Annotated[
        int, typer.Option("--batch_num", "--batch-num", min=1, help="Batches that calibrate.", metavar="N")
    ] = 1,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="A layer left float. May be repeated.", metavar="NAME", show_default=False),
    ] = None,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Write the JSON configuration that says how each layer is quantized."""
    from onnxq.dialects.amct import api

    api.create_quant_config(output, model, skip, batch_num, config_defination=definition)
    _written(Terminal(as_json=as_json), [output])
    return 0


@app.command()
def calibration(
    model: Model,
    save_path: SavePath,
    input_shape: Annotated[
        str | None,
        typer.Option(
            "--input_shape", "--input-shape", help='Shape of each input: "n1:1,3,224,224;n2:1,10".', metavar="SHAPES",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(
            "--data_dir", "--data-dir", help='A folder of .bin files for each input: "d1/;d2/".', metavar="FOLDERS",
            show_default=False,
        ),
    ] = None,
    data_types: Annotated[
        str, typer.Option("--data_types", "--data-types", help="Type of each input.", metavar="TYPES")
    ] = "float32",
    evaluator: Annotated[
        Path | None,
        typer.Option(
            help="A Python file with an evaluator: quantize as much as it accepts.", metavar="FILE", show_default=False
        ),
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="With --evaluator: BinarySearch or Repair.", metavar="NAME")
    ] = "BinarySearch",
    calibration_config: Annotated[
        Path | None,
        typer.Option(
            "--calibration_config", "--calibration-config", help="Simplified or JSON configuration.", metavar="FILE",
            show_default="AMCT's defaults",
        ),
    ] = None,
    batch_num: Annotated[
        int | None,
        typer.Option(
            "--batch_num", "--batch-num", min=1, help="Batches that calibrate.", metavar="N",
            show_default="the configuration's, or 1",
        ),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> int:  # fmt: skip
    """Calibrate and write the deploy model, its fake-quant twin, the fusion file and the record.

    For example: onnxq amct calibration --model m.onnx --save_path out/m --input_shape "x:1,3,224,224" --data_dir bins/
    """
    from onnxq.dialects.amct import command

    terminal = Terminal(as_json=as_json, verbose=verbose)
    given = _evaluator(evaluator, data_dir, input_shape, data_types)
    with terminal.messages():
        done = command.calibrate(
            model, save_path, given, calibration_config, batch_num, strategy if evaluator is not None else None
        )
    terminal.notes(done.notes)
    _written(terminal, done.files, done.facts)
    return 0 if done.files else 1


def _evaluator(
    file: Path | None, data_dir: str | None, input_shape: str | None, data_types: str
) -> AutoCalibrationEvaluatorBase:
    from onnxq.dialects.amct import command
    from onnxq.dialects.amct.evaluator import ModelEvaluator

    if file is not None:
        if data_dir is not None or input_shape is not None:
            raise DataError("--evaluator reads data by itself; leave out --data_dir and --input_shape")
        return command.load_evaluator(file)
    if data_dir is None or input_shape is None:
        raise DataError("calibration needs data: give --data_dir and --input_shape, or --evaluator")
    return ModelEvaluator(data_dir, input_shape, data_types)


@app.command()
def save(
    model: Model,
    record: Annotated[Path, typer.Option(help="The record.", metavar="FILE", show_default=False)],
    save_path: SavePath,
    as_json: Json = False,
) -> int:
    """Write the deploy model and its twin from a record alone, without calibrating."""
    from onnxq.dialects.amct import api
    from onnxq.dialects.amct.deployment import DeployedFiles

    api.save_model(model, record, save_path)
    files = DeployedFiles.under(save_path)
    _written(Terminal(as_json=as_json), [files.deploy, files.fake_quant, files.fusion])
    return 0


@app.command()
def convert(
    model: Model,
    save_path: SavePath,
    record: Annotated[
        Path | None, typer.Option(help="Also write the record here.", metavar="FILE", show_default=False)
    ] = None,
    as_json: Json = False,
) -> int:
    """Turn a Q/DQ model, as training tools export it, into a deploy model and its twin."""
    from onnxq.dialects.amct import convert as conversion

    return _converted(Terminal(as_json=as_json), conversion.convert_qat_model(model, save_path, record))


@app.command()
def simulate(deploy: Deploy, output: Output, as_json: Json = False) -> int:
    """Rewrite a deploy model into integer operators that ONNX Runtime executes exactly."""
    from onnxq.dialects.amct import convert as conversion

    return _converted(Terminal(as_json=as_json), conversion.simulate(deploy, output))


@app.command("to-qdq")
def to_qdq(deploy: Deploy, output: Output, as_json: Json = False) -> int:
    """Rewrite a deploy model with QuantizeLinear and DequantizeLinear, for other targets."""
    from onnxq.dialects.amct import convert as conversion

    return _converted(Terminal(as_json=as_json), conversion.deploy_to_qdq(deploy, output))


def _converted(terminal: Terminal, done: Conversion) -> int:
    terminal.notes(done.notes)
    _written(terminal, done.files)
    return 0


def _written(terminal: Terminal, files: Iterable[Path], facts: Mapping[str, object] | None = None) -> None:
    paths = [str(path) for path in files]
    for key, value in (facts or {}).items():
        terminal.show(f"{key}: {value}")
    terminal.show(*(f"written {path}" for path in paths))
    terminal.document({**(facts or {}), "files": paths})
