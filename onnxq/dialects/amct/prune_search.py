"""AMCT's search for ratios of channel pruning: a prune configuration for a target of operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onnxq.dialects._files import write_text
from onnxq.dialects.amct._retrain_steps import PathLike
from onnxq.dialects.amct._schema import Message, parse
from onnxq.dialects.amct._text import Entry
from onnxq.dialects.amct.config import read_text, shortest
from onnxq.dialects.amct.proto import auto_channel_prune_pb2 as pb
from onnxq.dialects.amct.text_format import quoted
from onnxq.dialects.problems import Problem, refuse
from onnxq.errors import RecipeError
from onnxq.qat.ratios import Ratios, find_ratios
from onnxq.recipe import ChannelPrune, Recipe

SENSITIVITY, SEARCH = "TaylorLossSensitivity", "GreedySearch"
_MULTIPLE = 16
_MOST = 0.95


def auto_channel_prune_search(
    model: PathLike,
    config: PathLike,
    input_data: PathLike | Mapping[str, NDArray[Any]],
    output_cfg: PathLike,
    sensitivity: str = SENSITIVITY,
    search_alg: str = SEARCH,
) -> Ratios:
    """Find how much of each layer to prune, and write it as a prune configuration.

    Args:
        model: The float model.
        config: The text of an AutoChannelPruneConfig. Its `compress_ratio` is that of the operations before pruning to
            those after it, more than 1; `test_iteration` has no effect: all samples are used.
        input_data: An .npz file or arrays by name: the inputs, and ``labels``.
        output_cfg: The configuration to write, for `create_prune_retrain_model`.
        sensitivity: ``TaylorLossSensitivity``.
        search_alg: ``GreedySearch``.

    Returns:
        What was found.

    Raises:
        RecipeError: If the configuration is wrong, or there is no such sensitivity or search.
        OnnxqError: If the model or the data cannot be used, or the target cannot be reached.
    """
    for name, found, known in (("sensitivity", sensitivity, SENSITIVITY), ("search_alg", search_alg, SEARCH)):
        if found != known:
            raise RecipeError(f"there is no {name} {found!r}; known: {known}")
    wanted = _read(Path(config))
    ratios = find_ratios(
        Path(model),
        input_data,
        flops=1 / shortest(wanted.compress_ratio),
        multiple=_MULTIPLE if wanted.ascend_optimized else 1,
        most=min(shortest(wanted.max_prune_ratio), _MOST),
    )
    text = format_prune_config(ratios.recipe, ascend_optimized=wanted.ascend_optimized)
    write_text(Path(output_cfg), text, "configuration", RecipeError)
    return ratios


def _read(path: Path) -> Message:
    parsed = parse(read_text(path), pb.AutoChannelPruneConfig())
    refuse(str(path), parsed.problems)
    refuse(str(path), _complaints(parsed.message, parsed.root))
    return parsed.message


def _complaints(found: Message, root: Entry) -> Iterator[Problem]:
    if not 1 < found.compress_ratio < float("inf"):
        text = f"found {found.compress_ratio:g}; must be > 1, the operations before pruning to those after it"
        yield Problem(root.line_of("compress_ratio"), f"compress_ratio: {text}")
    if not 0 < found.max_prune_ratio <= 1:
        yield Problem(
            root.line_of("max_prune_ratio"), f"max_prune_ratio: found {found.max_prune_ratio:g}; must be in (0, 1]"
        )
    if not found.test_iteration:
        yield Problem(root.line_of("test_iteration"), "test_iteration: found 0; must be at least 1")


def format_prune_config(recipe: Recipe, *, ascend_optimized: bool) -> str:
    """The text of a prune configuration with an override for each layer that loses channels.

    Args:
        recipe: Its rules for single nodes.
        ascend_optimized: What is left is a multiple of 16.
    """
    flag = "true" if ascend_optimized else "false"
    rules = [(rule.match.node, rule.prune) for rule in recipe.rules]
    return "".join(
        f"override_layer_configs {{\n  layer_name: {quoted(node)}\n  prune_config {{\n    filter_pruner {{\n"
        f"      balanced_l2_norm_filter_prune {{\n        prune_ratio: {prune.ratio:.9g}\n"
        f"        ascend_optimized: {flag}\n      }}\n    }}\n  }}\n}}\n"
        for node, prune in rules
        if node is not None and isinstance(prune, ChannelPrune)
    )
