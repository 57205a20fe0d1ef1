"""Streaming, reductions, models and capture: the layer between stores/kernels and analyses."""
