# SPDX-License-Identifier: Apache-2.0
"""PaddleSlim's way to say it: observers by layer type."""

from onnxq.dialects.paddle import QuantConfig, nn
from onnxq.dialects.paddle.observers import AbsMaxChannelWiseWeightObserver, MSEObserver

q_config = QuantConfig(activation=None, weight=None)
q_config.add_type_config([nn.Conv2D, nn.Linear], activation=MSEObserver(), weight=AbsMaxChannelWiseWeightObserver())
