"""A toy model and layers whose inputs are correlated."""

from tests.toy_layers import _toy, calibration, layer, make_layer, recorder, toy, unseen

__all__ = ["_toy", "calibration", "layer", "make_layer", "recorder", "toy", "unseen"]
