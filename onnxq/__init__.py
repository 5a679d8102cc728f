"""onnxq: quantize exported ONNX models of any framework."""
