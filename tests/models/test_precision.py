"""Values that do not fit into their precision are found."""

from __future__ import annotations

import pytest
import torch

from backend.models.precision import all_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_single_bad_value_is_found_wherever_it_is(bad: float, dtype: torch.dtype) -> None:
    for place in (0, 499, 12_345, 19_999):
        values = torch.linspace(-2, 2, 20_000).to(dtype).view(100, 200)
        assert all_finite(values) and all_finite(values.T)
        values.view(-1)[place] = bad
        assert not all_finite(values) and not all_finite(values.T)
    assert all_finite(torch.empty(0, 3))
