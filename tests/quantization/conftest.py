"""Layers whose inputs are correlated, and a toy model, as the methods' own tests use them."""

from tests.toy_layers import _toy, calibration, layer, make_layer, recorder, toy, unseen

__all__ = ["_toy", "calibration", "layer", "make_layer", "recorder", "toy", "unseen"]
