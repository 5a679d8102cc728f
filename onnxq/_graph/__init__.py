"""How `onnxq.graph.GraphModel` is built; nothing outside `onnxq.graph` and `onnxq.modelio` imports this."""
