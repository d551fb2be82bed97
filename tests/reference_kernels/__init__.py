"""Transformer Engine's own Python over plain torch on a CPU: layers, FP8 recipes and optimiser, without GPU code."""
