# SPDX-License-Identifier: Apache-2.0
"""Trains the bundled models and writes them with their data.

Usage: python models/train/make_models.py [--only NAME] [--out DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import digits_cnn
import digits_gru
import digits_lstm
import digits_mobilenet
import digits_prototypes
import digits_transformer
import ink_unet
import onnx
import pairs_answer
import sketch_decoder
import tones_conv1d
from builder import INPUT_NAME, GraphBuilder, Weights
from digits_data import CLASSES, IMAGE_SHAPE, DigitsSplit, load_split, write_data
from readme_table import describe, update_readme
from training import Recipe, train

_MODELS_DIR = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Network:
    """One network and the opsets it is written at."""

    name: str
    write: Callable[[GraphBuilder, str], None]
    recipe: Recipe
    training_opset: int
    canonical_opset: int
    reexport_opsets: tuple[int, ...]
    finish: Callable[[Weights, DigitsSplit], Weights] | None = None


_NETWORKS = [
    Network(
        module.NAME,
        module.network,
        module.RECIPE,
        module.TRAINING_OPSET,
        module.CANONICAL_OPSET,
        module.REEXPORT_OPSETS,
        getattr(module, "finish", None),
    )
    for module in (digits_cnn, digits_mobilenet, digits_transformer)
]


_Maker = Callable[[DigitsSplit, Path], list[Path]]
_WITH_MAKERS = (
    digits_lstm,
    digits_gru,
    digits_prototypes,
    sketch_decoder,
    ink_unet,
    tones_conv1d,
    pairs_answer,
)
_MAKERS: dict[str, _Maker] = {module.NAME: module.make for module in _WITH_MAKERS}


def _train(network: Network, split: DigitsSplit) -> Weights:
    graph = GraphBuilder(network.training_opset, training=True)
    network.write(graph, INPUT_NAME)
    weights = train(graph, network.name, network.recipe, split)
    return network.finish(weights, split) if network.finish else weights


def _export(network: Network, weights: Weights, directory: Path) -> list[Path]:
    paths = []
    for opset in (network.canonical_opset, *network.reexport_opsets):
        graph = GraphBuilder(opset, weights=weights)
        network.write(graph, INPUT_NAME)
        model = graph.build(network.name, IMAGE_SHAPE, CLASSES)
        suffix = "" if opset == network.canonical_opset else f"_opset{opset}"
        path = directory / f"{network.name}{suffix}.onnx"
        onnx.save(model, path)
        paths.append(path)
    return paths


def main() -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description="Train and export the bundled models.")
    names = [*(network.name for network in _NETWORKS), *_MAKERS]
    parser.add_argument("--only", choices=names, help="make only this model")
    parser.add_argument(
        "--out",
        type=Path,
        default=_MODELS_DIR,
        help="directory to write to (default: the models folder of this repository)",
    )
    arguments = parser.parse_args()
    directory: Path = arguments.out
    directory.mkdir(parents=True, exist_ok=True)

    split = load_split()
    write_data(split, directory / "data")
    for network in _NETWORKS:
        if arguments.only in (None, network.name):
            print(f"training {network.name}", flush=True)
            for path in _export(network, _train(network, split), directory):
                print(describe(path, directory / "data"), flush=True)
    for name, make in _MAKERS.items():
        if arguments.only in (None, name):
            print(f"training {name}", flush=True)
            for path in make(split, directory):
                print(describe(path, directory / "data"), flush=True)
    readme = directory / "README.md"
    if readme.exists():
        update_readme(readme)


if __name__ == "__main__":
    main()
