"""Paddle's layer classes as types: each stands for the ONNX operators that exporters make of it.

q_config.add_type_config([nn.Linear, nn.Conv2D], activation=HistObserver(), weight=AbsMaxChannelWiseWeightObserver())

They have no instances. A type of one's own is a subclass with a `pattern`, or `Layer.of`:

class Projection(nn.Layer):
    pattern = Op("MatMul", constants=(1,)) >> Op("Mul")

Projections = nn.ColumnParallelLinear.of("*/q_proj/*", "*/k_proj/*")
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import ClassVar, NoReturn

from onnxq.dialects.paddle.patterns import Op, Pattern
from onnxq.errors import RecipeError


class Layer:
    """Base of all layer types.

    Attributes:
        pattern: Which nodes of a model make one.
    """

    pattern: ClassVar[Pattern]

    def __init__(self) -> None:
        _no_instance(type(self))

    @classmethod
    def of(cls, *globs: str) -> type[Layer]:
        """The layers of this type whose first node has a name that fits one of the globs, as a type of their own.

        Args:
            globs: Over node names: ``*`` any characters (also ``/``), ``?`` one, ``[ab]`` a set.
        """
        if not globs:
            raise RecipeError(f"{cls.__name__}.of found no name; give at least one glob, such as '*/q_proj/*'")
        pattern = reduce(or_, (cls.pattern.named(glob) for glob in globs))
        return _type(cls, pattern)


def _no_instance(cls: type) -> NoReturn:
    raise RecipeError(f"{cls.__name__} is a type for configurations and has no instances; give the class itself")


_COLUMN, _ROW = "ColumnParallelLinear", "RowParallelLinear"


def _linear(gemm: Op, matmul: Op) -> Pattern:
    """A product with a constant matrix, its bias included."""
    return gemm | matmul >> Op("Add", constants=(1,)) | matmul >> Op("Add", constants=(0,)) | matmul


_GEMM, _MATMUL = Op("Gemm", constants=(1,)), Op("MatMul", constants=(1,))


class Linear(Layer):
    """``Gemm``, or ``MatMul`` and its ``Add``, with constant weights; parallel ones are types of their own."""

    pattern = _linear(_GEMM.not_mentioning(_COLUMN, _ROW), _MATMUL.not_mentioning(_COLUMN, _ROW))


class ColumnParallelLinear(Layer):
    """As `Linear`, where the name of the node or of its weight holds ``ColumnParallelLinear``.

    ``column_parallel_linear_0.w_0`` holds it too. `Layer.of` finds others by name.
    """

    pattern = _linear(_GEMM.mentioning(_COLUMN), _MATMUL.mentioning(_COLUMN))

    @classmethod
    def of(cls, *globs: str) -> type[Layer]:
        """The linear layers with these names; see `Layer.of`."""
        return _parallel(cls, globs)


class RowParallelLinear(Layer):
    """As `Linear`, where the name of the node or of its weight holds ``RowParallelLinear``.

    ``row_parallel_linear_0.w_0`` holds it too. `Layer.of` finds others by name.
    """

    pattern = _linear(_GEMM.mentioning(_ROW), _MATMUL.mentioning(_ROW))

    @classmethod
    def of(cls, *globs: str) -> type[Layer]:
        """The linear layers with these names; see `Layer.of`."""
        return _parallel(cls, globs)


def _parallel(cls: type[Layer], globs: tuple[str, ...]) -> type[Layer]:
    return _type(cls, _linear(_GEMM, _MATMUL)).of(*globs)


def _type(base: type[Layer], pattern: Pattern) -> type[Layer]:
    """A type that is called as another one, with a pattern of its own."""
    found: type[Layer] = type(base.__name__, (Layer,), {"pattern": pattern, "__doc__": base.__doc__})
    return found


class Conv1D(Layer):
    """``Conv`` over one dimension."""

    pattern = Op("Conv", ranks={1: 3})


class Conv2D(Layer):
    """``Conv`` over two dimensions."""

    pattern = Op("Conv", ranks={1: 4})


class Conv3D(Layer):
    """``Conv`` over three dimensions."""

    pattern = Op("Conv", ranks={1: 5})


class Conv1DTranspose(Layer):
    """``ConvTranspose`` over one dimension."""

    pattern = Op("ConvTranspose", ranks={1: 3})


class Conv2DTranspose(Layer):
    """``ConvTranspose`` over two dimensions."""

    pattern = Op("ConvTranspose", ranks={1: 4})


class Embedding(Layer):
    """``Gather`` of rows of a constant matrix."""

    pattern = Op("Gather", ranks={0: 2}, attributes={"axis": 0})


class ReLU(Layer):
    """``Relu``."""

    pattern = Op("Relu")


class ReLU6(Layer):
    """``Clip``."""

    pattern = Op("Clip")


class LeakyReLU(Layer):
    """``LeakyRelu``."""

    pattern = Op("LeakyRelu")


class PReLU(Layer):
    """``PRelu``."""

    pattern = Op("PRelu")


class Sigmoid(Layer):
    """``Sigmoid``."""

    pattern = Op("Sigmoid")


class Tanh(Layer):
    """``Tanh``."""

    pattern = Op("Tanh")


class Softmax(Layer):
    """``Softmax``."""

    pattern = Op("Softmax")


class Hardsigmoid(Layer):
    """``HardSigmoid``."""

    pattern = Op("HardSigmoid")


class Hardswish(Layer):
    """``HardSwish``, or what exporters make of it: ``HardSigmoid`` or ``Add``, ``Clip``, ``Div``, and ``Mul``."""

    pattern = (
        Op("HardSwish")
        | Op("HardSigmoid") >> Op("Mul")
        | Op("Add") >> Op("Clip") >> Op("Mul") >> Op("Div")
        | Op("Add") >> Op("Clip") >> Op("Div") >> Op("Mul")
    )


class GELU(Layer):
    """``Gelu``, or ``Div``, ``Erf``, ``Add`` and one or two ``Mul``."""

    pattern = (
        Op("Gelu")
        | Op("Div") >> Op("Erf") >> Op("Add") >> Op("Mul") >> Op("Mul")
        | Op("Div") >> Op("Erf") >> Op("Add") >> Op("Mul")
    )


_CENTRED = Op("ReduceMean") >> Op("Sub")
_VARIANCE = Op("ReduceMean") >> Op("Add") >> Op("Sqrt") >> Op("Div")


class LayerNorm(Layer):
    """``LayerNormalization``, or the chain of operators from ``ReduceMean`` to the last ``Add``."""

    pattern = (
        Op("LayerNormalization")
        | _CENTRED >> Op("Pow", "Mul") >> _VARIANCE >> Op("Mul") >> Op("Add")
        | _CENTRED >> Op("Pow", "Mul") >> _VARIANCE
    )


class BatchNorm1D(Layer):
    """``BatchNormalization``; it is folded into the layer in front of it wherever that is possible."""

    pattern = Op("BatchNormalization")


class BatchNorm2D(BatchNorm1D):
    """``BatchNormalization``; it is folded into the layer in front of it wherever that is possible."""


class AvgPool2D(Layer):
    """``AveragePool``."""

    pattern = Op("AveragePool")


class AdaptiveAvgPool2D(Layer):
    """``GlobalAveragePool``."""

    pattern = Op("GlobalAveragePool")


class MaxPool2D(Layer):
    """``MaxPool``."""

    pattern = Op("MaxPool")


class AdaptiveMaxPool2D(Layer):
    """``GlobalMaxPool``."""

    pattern = Op("GlobalMaxPool")


class Dropout(Layer):
    """``Dropout``."""

    pattern = Op("Dropout")


class Flatten(Layer):
    """``Flatten``."""

    pattern = Op("Flatten")
