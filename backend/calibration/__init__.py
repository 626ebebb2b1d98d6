"""Inputs of layers on calibration text, shared by pruning and quantization."""
