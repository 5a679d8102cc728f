"""Post-training quantization as in Paddle: observe in the user's loop, then convert.

ptq = PTQ(q_config)
model = ptq.quantize("model.onnx")
for images in batches:
    model(images)
model = ptq.convert(model)
model.save("model.int8.onnx")
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxq import save_model, stages
from onnxq.dialects.paddle.config import QuantConfig
from onnxq.dialects.paddle.convert import BASE, Prepared, prepare
from onnxq.dialects.paddle.network import Array, Converted, Feed, Form, Model, opened
from onnxq.errors import CalibrationError, ModelError, RecipeError
from onnxq.live import LiveCalibration
from onnxq.pipeline import quantize, recipe_of
from onnxq.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx

    from onnxq.pipeline import ModelLike, Progress


@dataclass
class Observed:
    """A float model that remembers what it was fed; activations are never kept.

    Attributes:
        source: The model as it came.
        prepared: The model and how to quantize it.
        live: What runs it.
    """

    source: ModelLike = field(repr=False)
    prepared: Prepared
    live: LiveCalibration = field(repr=False)
    form: Form = field(default="observed", init=False)

    @property
    def inputs(self) -> Sequence[Any]:
        """What the model says about its inputs."""
        return self.live.inputs

    def run(self, feed: Feed) -> list[Array]:
        """The float model's outputs; the feed is remembered."""
        return self.live.run(None, feed)

    def proto(self) -> onnx.ModelProto:
        """The float model."""
        return stages.name_nodes(self.prepared.model).to_proto()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the float model."""
        return save_model(stages.name_nodes(self.prepared.model), path)[0]


class PTQ:
    """Quantizes models after training as a configuration says.

    Args:
        config: The configuration; it is copied.
        recipe: What holds for everything a `QuantConfig` has no words for: calibration, refinements, the target. See
            `QuantConfig.to_recipe`.
        threads: Threads of runs and of calibration, 0 for all cores.

    Raises:
        RecipeError: If it is no configuration.
    """

    def __init__(self, config: QuantConfig, *, recipe: Recipe | None = None, threads: int = 0) -> None:
        self._config = taken(config)
        self._base = recipe or BASE
        self._threads = threads

    def quantize(self, model: Model | ModelLike, inplace: bool = False) -> Model:
        """Put observers into a model.

        Args:
            model: The float model: a `Model`, a file, an `onnx.ModelProto`.
            inplace: Change the `Model` itself instead of making another one.

        Returns:
            A model to call with batches. It gives what the float model gives, and remembers what it was fed in files
            in a temporary folder.

        Raises:
            ModelError: If the model is meant for training, or is not a float model.
            RecipeError: If the configuration does not fit the model.
            OnnxqError: If the model cannot be used.
        """
        found, source = opened(model, inplace=inplace)
        if found.training:
            raise ModelError("the model is meant for training; call its eval() before PTQ.quantize")
        prepared = prepare(self._config, source, base=self._base)
        live = LiveCalibration(prepared.model, None, threads=self._threads)
        return found.become(Observed(source, prepared, live), inplace=inplace)

    def convert(
        self,
        model: Model,
        inplace: bool = False,
        remain_weight: bool = False,
        *,
        target: str | None = None,
        progress: Progress | None = None,
    ) -> Model:
        """Make a quantized model of what was observed.

        Args:
            model: What `quantize` gave, after it was called with data.
            inplace: Change the `Model` itself instead of making another one; without, it can observe more.
            remain_weight: Keep weights as floats in front of a QuantizeLinear, not as codes.
            target: The backend, if not that of the recipe.
            progress: Is told how far calibration is.

        Raises:
            CalibrationError: If the model was not called with any data.
            ModelError: If the model does not come from `quantize`.
            OnnxqError: If it cannot be quantized.
        """
        stage = model.stage if isinstance(model, Model) else None
        if not isinstance(stage, Observed):
            found = f"a model that is {model.form}" if isinstance(model, Model) else type(model).__name__
            raise ModelError(f"PTQ.convert found {found}; give what PTQ.quantize returned, after it was fed")
        recipe = stage.prepared.recipe
        if target is not None and target != recipe.target:
            recipe = prepare(self._config, stage.source, base=recipe_of(self._base, target)).recipe
        if not stage.live.batches_fed:
            raise CalibrationError(
                "PTQ.convert found no data: the model was not called since PTQ.quantize; call it with some batches, "
                "model(data), and convert it then"
            )
        result = quantize(
            stage.prepared.model, stage.live.feeds, recipe=recipe, threads=self._threads, progress=progress
        )
        if remain_weight:
            result = stages.keep_float_weights(result)
        return model.become(Converted(result, self._threads), inplace=inplace)


def taken(config: object) -> QuantConfig:
    """A copy of a configuration.

    Raises:
        RecipeError: If it is none.
    """
    if not isinstance(config, QuantConfig):
        raise RecipeError(f"found {config!r}; must be a QuantConfig")
    return config.copy()
