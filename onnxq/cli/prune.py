"""``onnxq prune``: a model with fewer channels, or with sparse weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxq.cli.options import Config, Json, ModelPath, RecipeOptions, Threads
from onnxq.cli.paths import check_outputs
from onnxq.cli.terminal import Terminal
from onnxq.errors import RecipeError

if TYPE_CHECKING:
    from onnxq.recipe import Recipe

_HOW = "How much"
_DEFAULT, _MULTIPLE = 0.3, 8
"""Convolutions of ONNX Runtime take channels in blocks of 8 or 16; other numbers cost more than they save."""


def prune(
    model: ModelPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The pruned model.", metavar="OUT", show_default=False)
    ],
    config: Config = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            help="Part of the channels of each layer that is removed.",
            rich_help_panel=_HOW, metavar="X", show_default="0.3 without --config",
        ),
    ] = None,
    multiple: Annotated[
        int | None,
        typer.Option(
            min=1, help="Channels left are a multiple of N: kernels are slow otherwise. 16 suits Ascend and AVX512.",
            rich_help_panel=_HOW, metavar="N", show_default="8 without --config",
        ),
    ] = None,
    two_of_four: Annotated[
        bool, typer.Option("--two-of-four", help="Set two of every four weights to 0 instead.", rich_help_panel=_HOW)
    ] = False,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help="Do not prune these nodes: a name, a glob over names or an operator type. May be repeated.",
            metavar="NAME|GLOB|TYPE", show_default=False,
        ),
    ] = None,
    target_flops: Annotated[
        float | None,
        typer.Option(
            help="Find ratios with which this part of the operations is left.",
            rich_help_panel=_HOW, metavar="X", show_default=False,
        ),
    ] = None,
    target_latency: Annotated[
        float | None,
        typer.Option(
            help="Find ratios with which the model takes this part of its time on this machine.",
            rich_help_panel=_HOW, metavar="X", show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Samples to find ratios with: an .npz file of inputs, and labels if there are any.",
            metavar="FILE", show_default=False,
        ),
    ] = None,
    recipe_out: Annotated[
        Path | None, typer.Option(help="Also write the recipe that was used.", metavar="FILE", show_default=False)
    ] = None,
    external_data: Annotated[
        bool | None,
        typer.Option(help="Weights in a file of their own, OUT.data.", show_default="as the model has them"),
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Remove the channels that matter least, or make weights sparse; to be trained afterwards.

    For example: onnxq prune model.onnx -o smaller.onnx --ratio 0.3
    Train it with "onnxq qat create", or give that the recipe to prune and quantize at once.
    """
    from onnxq.cli import prune_tables
    from onnxq.pruning import prune as run
    from onnxq.pruning import sparing

    terminal = Terminal(as_json=as_json)
    outputs = {"-o": output, "--recipe-out": recipe_out}
    check_outputs(outputs, {"MODEL": model, "--config": config, "--data": data})
    search = _search(target_flops, target_latency, data, ratio=ratio, two_of_four=two_of_four)
    wanted = RecipeOptions(config=config).wanted(model)
    terminal.notes(wanted.notes)
    recipe = _laid_over(wanted.recipe, config, ratio, multiple, two_of_four=two_of_four)
    recipe = sparing(recipe, model, skip or ())
    found: dict[str, object] = {}
    if search is not None:
        from onnxq.qat.ratios import find_ratios

        with terminal.progress() as steps:
            ratios = find_ratios(
                model, search["data"], recipe=recipe, flops=target_flops, latency=target_latency,
                multiple=multiple or _MULTIPLE, threads=threads, progress=steps,
            )  # fmt: skip
        recipe, found = ratios.recipe, ratios.to_dict()
        terminal.notes(ratios.notes)
    result = run(model, recipe=recipe)
    result.save(output, external_data=external_data)
    if recipe_out is not None:
        recipe_out.write_text(recipe.to_yaml(defaults=False), encoding="utf-8")
    terminal.notes(result.notes, warning=not result.changed)
    terminal.show(*prune_tables.pruned(result))
    terminal.notes([f"written: {output}"])
    terminal.document({**result.to_dict(), "output": str(output), **({"search": found} if found else {})})
    return 0


def _search(
    flops: float | None, latency: float | None, data: Path | None, *, ratio: float | None, two_of_four: bool
) -> dict[str, Path] | None:
    """The data that ratios are searched with; None where they are not."""
    if flops is None and latency is None:
        if data is not None:
            raise RecipeError("--data has an effect with --target-flops or --target-latency only; leave it out")
        return None
    if flops is not None and latency is not None:
        raise RecipeError("--target-flops and --target-latency exclude each other; leave one out")
    if ratio is not None or two_of_four:
        raise RecipeError("--target-flops and --target-latency find ratios: leave --ratio and --two-of-four out")
    if data is None:
        raise RecipeError("--target-flops and --target-latency need samples: give --data FILE.npz")
    return {"data": data}


def _laid_over(
    recipe: Recipe,
    config: Path | None,
    ratio: float | None,
    multiple: int | None,
    *,
    two_of_four: bool,
) -> Recipe:
    """The recipe with what the command line says laid over it."""
    if two_of_four and (ratio is not None or multiple is not None):
        raise RecipeError("--two-of-four keeps all channels: leave --ratio and --multiple out")
    content: dict[str, Any] = recipe.to_dict(defaults=False)
    before = content.get("prune")
    if two_of_four:
        content["prune"] = {"kind": "2:4"}
    elif ratio is not None or config is None:
        content["prune"] = {
            "kind": "channels",
            "ratio": _DEFAULT if ratio is None else ratio,
            "multiple": multiple or 1,
        }
    elif multiple is not None:
        if not isinstance(before, dict) or before.get("kind", "channels") != "channels" or "ratio" not in before:
            raise RecipeError(f"--multiple: {config} removes no channels of all layers; give --ratio too")
        content["prune"] = {**before, "multiple": multiple}
    return type(recipe).from_dict(content, source="command line" if config is None else str(config))
