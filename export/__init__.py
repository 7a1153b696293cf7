"""Exports the networks of a bundle to ONNX and TensorRT, and runs them like the PyTorch modules."""
