"""Layers with correlated inputs, and a toy model, for the tests of quantizers."""

from tests.toy_layers import _toy, calibration, layer, make_layer, recorder, toy, unseen

__all__ = ["_toy", "calibration", "layer", "make_layer", "recorder", "toy", "unseen"]
