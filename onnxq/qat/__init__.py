"""Quantization-aware training: the training runtime in an overlay, the worker that uses it, artifacts and trainer."""
