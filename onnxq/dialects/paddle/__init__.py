"""PaddleSlim: observers, quanters, QuantConfig, PTQ and QAT.

from onnxq.dialects.paddle import PTQ, QAT, Model, QuantConfig, nn
from onnxq.dialects.paddle.observers import HistObserver, MSEChannelWiseWeightObserver
"""

from __future__ import annotations

from onnxq.dialects.paddle import nn, patterns
from onnxq.dialects.paddle.config import LayerConfig, QuantConfig
from onnxq.dialects.paddle.network import Model
from onnxq.dialects.paddle.parallel import QuantizedColumnParallelLinear, QuantizedRowParallelLinear
from onnxq.dialects.paddle.ptq import PTQ
from onnxq.dialects.paddle.qat import QAT

__all__ = [
    "PTQ",
    "QAT",
    "LayerConfig",
    "Model",
    "QuantConfig",
    "QuantizedColumnParallelLinear",
    "QuantizedRowParallelLinear",
    "nn",
    "patterns",
]
