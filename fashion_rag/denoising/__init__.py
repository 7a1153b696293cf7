"""Denoising: the sampler's maths and the engine that shares UNet calls among edits."""
