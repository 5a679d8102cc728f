"""Artifacts are trained by a client of onnxruntime-training that has never heard of onnxq."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from tests.qat.test_trainer import artifacts, samples

CLIENT = """
import json, os, sys, types
sys.path.insert(0, sys.argv[1])
import numpy as np
import onnxruntime as ort
# the package imports torch in its __init__, which this leaves out
package = types.ModuleType("onnxruntime.training")
package.__path__ = [os.path.join(os.path.dirname(ort.__file__), "training")]
sys.modules["onnxruntime.training"] = ort.training = package
from onnxruntime.training.api import CheckpointState, Module, Optimizer

folder, data = sys.argv[2], np.load(sys.argv[3])
state = CheckpointState.load_checkpoint(f"{folder}/checkpoint")
module = Module(f"{folder}/training_model.onnx", state, f"{folder}/eval_model.onnx")
optimizer = Optimizer(f"{folder}/optimizer_model.onnx", module)
optimizer.set_learning_rate(3e-3)
module.train()
losses = []
for _ in range(12):
    found = module(data["x"], data["labels"])
    losses.append(float(found[0] if isinstance(found, (tuple, list)) else found))
    optimizer.step()
    module.lazy_reset_grad()
assert not any(name.split(".")[0] == "onnxq" for name in sys.modules)
CheckpointState.save_checkpoint(state, f"{folder}/checkpoint.bare")
print(json.dumps({"losses": losses, "version": ort.__version__}))
"""


def test_a_bare_client_trains_the_artifacts(tmp_path: Path, overlay: Any) -> None:
    folder = artifacts(tmp_path / "art", overlay)
    np.savez(tmp_path / "data.npz", **samples(48))
    (tmp_path / "client.py").write_text(CLIENT)
    command = [
        str(overlay.python),
        str(tmp_path / "client.py"),
        str(overlay.path),
        str(folder),
        str(tmp_path / "data.npz"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"] == overlay.version
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    assert (folder / "checkpoint.bare").is_file()
