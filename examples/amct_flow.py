"""AMCT's flow on an ONNX file: configuration, the user's own calibration loop, files for ATC, and a look at them.

Only the session differs from a script for AMCT: `quantize_model` returns the model to run.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

import onnxq.dialects.amct as amct
from onnxq.ascend import simulate_model
from onnxq.runtime import make_session

MODELS = Path(__file__).resolve().parent.parent / "models"
MODEL = MODELS / "digits_cnn.onnx"

CONFIG = """
# global quantize parameter
batch_num : 4
activation_offset : true
skip_layers : "head"
common_config : {
  arq_quantize : { channel_wise : true }
  ifmr_quantize : { search_range_start : 0.7 search_range_end : 1.3 search_step : 0.01 }
}
"""

folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)
Path("quant.cfg").write_text(CONFIG)
amct.create_quant_config("config.json", MODEL, config_defination="quant.cfg")

images = np.load(MODELS / "data" / "digits_calib.npz")["image"]
session = amct.quantize_model("config.json", MODEL, "modified.onnx", "record.txt")
for start in range(0, 64, 16):
    session.run(None, {"image": images[start : start + 16]})
print(f"calibrated: {session.finished}")

amct.save_model("modified.onnx", "record.txt", "net")
print("written: " + ", ".join(sorted(path.name for path in Path().glob("net_*"))))

record = amct.read_record("record.txt")
name, factors = next(iter(record.layers.items()))
print(f"{name}: scale_d {factors.scale_d:.6g}, offset_d {factors.offset_d}, {factors.scale_w.size} scale_w")

test = dict(np.load(MODELS / "data" / "digits_test.npz"))
labels = np.load(MODELS / "data" / "digits_test_labels.npy")
exact = make_session(simulate_model("net_deploy_model.onnx").graph).run(None, test)[0]
print(f"deploy model, simulated exactly: accuracy {(exact.argmax(axis=1) == labels).mean():.2%}")
os.chdir(MODELS)  # a folder that is in use cannot be removed everywhere
folder.cleanup()
