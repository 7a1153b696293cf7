"""The export of a bundle's networks to ONNX and TensorRT, and the modules that run them like PyTorch modules."""
