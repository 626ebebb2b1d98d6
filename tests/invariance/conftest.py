"""A toy model and text it knows."""

from tests.toy_layers import _toy, calibration, toy

__all__ = ["_toy", "calibration", "toy"]
