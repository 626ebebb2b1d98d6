"""Fixtures: a toy model, and layers with correlated inputs."""

from tests.toy_layers import _toy, calibration, layer, make_layer, recorder, toy, unseen

__all__ = ["_toy", "calibration", "layer", "make_layer", "recorder", "toy", "unseen"]
