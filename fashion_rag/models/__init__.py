"""The networks of the method, each one a plain PyTorch module that a compiled one can stand in for.

Between them all tensors are float32; a network casts to the precision of its own weights and back.
"""
