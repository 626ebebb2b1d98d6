"""What a method makes of a model does not depend on the units its weights are written in.

Factors are powers of two, so where nothing may differ, not a bit does. What cannot be the same is
listed with a bound: `DIFFERENT` (see docs/results/invariance.md).
"""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from backend.models.loading import load
from backend.models.sources.toy.stories import stories
from benchmarks.invariance import difference
from benchmarks.shared.model_changes import CHANGES, change
from benchmarks.shared.outcomes import METHODS, Outcome

UNIT = 64  # hidden channels of the MLP that stay neighbours: a group of n:m, and of a grid
EXACT = (0.0, 0.0, "")
