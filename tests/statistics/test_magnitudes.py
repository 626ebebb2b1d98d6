"""The |w| axis and the cut-off, against counting and sorting one by one."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from backend.statistics.magnitudes import cutoff, magnitude_counts
from backend.statistics.names import magnitude_edges
from backend.statistics.sorting import ascending

VALUES = arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-3, 3, width=32).map(lambda x: round(x, 2))
)


@given(VALUES, st.floats(0.01, 3))
def test_bins_are_numpys_and_the_ends_are_open(values: np.ndarray, std: float) -> None:
    counts = magnitude_counts(ascending(torch.from_numpy(values)), std)
    edges = magnitude_edges(std).astype(np.float32)
    edges[0], edges[-1] = 0, np.inf
    expected, _ = np.histogram(np.abs(values[values != 0]), edges)
    assert counts.tolist() == expected.tolist()
    assert counts.sum() + (values == 0).sum() == len(values)


@given(VALUES, st.floats(0, 1))
def test_the_cutoff_is_the_largest_of_the_smallest(values: np.ndarray, share: float) -> None:
    found = cutoff(ascending(torch.from_numpy(values)), share)
    rank = round(share * len(values))
    assert found == (np.sort(np.abs(values))[rank - 1] if rank else 0.0)
