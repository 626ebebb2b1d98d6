"""Names and axes of recorded statistics, shared by jobs and charts. Does not import torch.

    |w| axis:  edges_k = std * 10^(FIRST_DECADE + k / PER_DECADE),  std: of the dense tensor

The first and last bins are open: they include all smaller and all larger weights."""

import numpy as np

FIRST_DECADE, LAST_DECADE, PER_DECADE = -4, 2, 24
MAGNITUDES = "magnitudes"  # profile with the histogram over the |w| axis
SIDES = ("row", "column")  # output channels, input channels
MEASURES = ("norm", "max", "zeros")
MAPS = ("mean", "max", "zeros", "change")  # of a matrix, over the cells of a grid
MAP_CELLS = 64  # along each side, at most
JOINT = "joint"  # counts over the weights before and after
JOINT_BINS = 64
SINGULAR_VALUES = "singular_values"
ZERO_SHARE, RELATIVE_ERROR = "zero_share", "relative_error"  # statistics of a tensor
INPUT_ENERGY = "input_energy"  # mean square of each input of a layer
SENSITIVITY = (
    "sensitivity"  # profile of a layer: `FIGURES` x formats, see `backend.sensitivity.profile`
)
FAN = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}


def magnitude_edges(std: float) -> np.ndarray:
    """The 145 edges of the |w| axis, float64, in the unit of the weights."""
    steps = np.arange((LAST_DECADE - FIRST_DECADE) * PER_DECADE + 1)
    return (std or 1.0) * 10.0 ** (FIRST_DECADE + steps / PER_DECADE)


def channel_profile(side: str, measure: str) -> str:
    """The name of a profile over channels, such as "row_norm"."""
    return f"{side}_{measure}"


def map_profile(figure: str) -> str:
    """The name of a profile over the cells of a matrix, such as "map_mean"."""
    return f"map_{figure}"
