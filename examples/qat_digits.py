"""AMCT's two flows of quantization-aware training on an ONNX file: uninterrupted; interrupted, restored and finished.

Both end with the same files, byte for byte. It needs the training runtime: "onnxq qat setup" installs it.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import onnxq.dialects.amct as amct
from onnxq import OnnxqError
from onnxq.qat.overlay import find_overlay
from onnxq.qat.trainer import TrainOptions

MODELS = Path(__file__).resolve().parent.parent / "models"
MODEL, DATA = MODELS / "digits_cnn.onnx", MODELS / "data"
CONFIG = """retrain_data_quant_config: { ulq_quantize: { dst_type: INT8 } }
retrain_weight_quant_config: { arq_retrain: { channel_wise: true dst_type: INT4 } }
"""
try:
    find_overlay()
except OnnxqError as missing:
    sys.exit(f"skipped: {missing}")
options = TrainOptions(epochs=2, learning_rate=2e-3, checkpoint_every=20)
train, test = (dict(np.load(DATA / f"digits_{part}.npz")) for part in ("train", "test"))
labels = np.load(DATA / "digits_test_labels.npy")
batch = {"image": train["image"][:64]}
folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)
Path("retrain.cfg").write_text(CONFIG)

# 1. uninterrupted
amct.create_quant_retrain_config("config.json", MODEL, batch, config_defination="retrain.cfg")
model = amct.create_quant_retrain_model("config.json", MODEL, "record.txt", batch)
model.train(train, options=options, report=lambda row: print(f"epoch {row.epoch}: loss {row.loss:.4f}"))
logits = model.infer(test)["logits"]  # writes the record
amct.save_quant_retrain_model("config.json", model, "record.txt", "net", batch)
print(f"8 bit activations, 4 bit weights: accuracy {(logits.argmax(axis=1) == labels).mean():.2%}")

# 2. interrupted after 50 steps, restored from the last checkpoint
broken = amct.create_quant_retrain_model("config.json", MODEL, "again.txt", batch)
try:
    broken.train(train, options=options, tick=lambda step, steps: sys.exit() if step >= 50 else None)
except SystemExit:
    checkpoint = broken.save_checkpoint("user_model_newest.ckpt")
restored = amct.restore_quant_retrain_model("config.json", MODEL, "again.txt", batch, checkpoint)
restored.train(train, options=options)
restored.infer()
amct.save_quant_retrain_model("config.json", restored, "again.txt", "again", batch)
same = Path("net_deploy_model.onnx").read_bytes() == Path("again_deploy_model.onnx").read_bytes()
print(f"interrupted and restored: the same file: {same}")
os.chdir(MODELS)  # a folder that is in use cannot be removed everywhere
folder.cleanup()
