"""Calibration: statistics of layer inputs and held-out losses, for pruning and quantization."""
