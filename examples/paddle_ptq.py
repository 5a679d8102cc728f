"""PaddleSlim's listing for post-training quantization, on an exported model: imports, model and data are other ones.

MobileNetV1 of the zoo ($ONNXQ_ZOO) where there is one, else the bundled MobileNet. Its convolutions are quantized too.
"""

import csv
import os
from pathlib import Path

import numpy as np

from onnxq.calib.images import preprocess_file
from onnxq.dialects.paddle import (
    PTQ,
    Model,
    QuantConfig,
    QuantizedColumnParallelLinear,
    QuantizedRowParallelLinear,
    nn,
)
from onnxq.dialects.paddle.observers import MSEChannelWiseWeightObserver, MSEObserver
from onnxq.recipe import ImagePreprocess

MODELS, ZOO = Path(__file__).resolve().parent.parent / "models", Path(os.environ.get("ONNXQ_ZOO", "none"))


def images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """A hundred images and their labels."""
    listed = csv.DictReader((ZOO / "labels.csv").read_text().splitlines())
    rows = [row for row in listed if row["file"].startswith(f"{split}/")][:100]
    how = ImagePreprocess(resize_short_side=256, crop=(224, 224), scale=1 / 127.5, mean=(1.0,))
    pixels = [preprocess_file(ZOO / "images" / r["file"], how) for r in rows]
    return np.concatenate(pixels), np.array([int(r["label"]) for r in rows])


path = ZOO / "models" / "mobilenetv1_0.25_224.onnx"
if path.exists():
    (samples, _), (tests, labels) = images("calib"), images("eval")
else:
    path, data = MODELS / "digits_mobilenet.onnx", MODELS / "data"
    samples, tests = np.load(data / "digits_calib.npz")["image"], np.load(data / "digits_test.npz")["image"]
    labels = np.load(data / "digits_test_labels.npy")

model = Model(path)  # create the model
print(f"{path.stem}: top-1 {100 * (model(tests).argmax(1) == labels).mean():.2f} before")
q_config = QuantConfig(activation=None, weight=None)
q_config.add_qat_layer_mapping(nn.ColumnParallelLinear, QuantizedColumnParallelLinear)
q_config.add_qat_layer_mapping(nn.RowParallelLinear, QuantizedRowParallelLinear)
layers = [nn.Conv2D, nn.Linear, nn.ColumnParallelLinear, nn.RowParallelLinear]
q_config.add_type_config(layers, activation=MSEObserver(), weight=MSEChannelWiseWeightObserver())

ptq, ptq_step = PTQ(q_config), 100
model = ptq.quantize(model, inplace=True)
for step, batch in enumerate(np.split(samples, len(samples))):
    pred = model(batch)
    if step == ptq_step:
        break
model = ptq.convert(model, inplace=True)
print(f"top-1 {100 * (model(tests).argmax(1) == labels).mean():.2f} after {step} steps, quantized: {model.form}")
