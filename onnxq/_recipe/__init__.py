"""The parts of `onnxq.recipe`; import from there."""
