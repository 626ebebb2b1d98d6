"""A rectangle of a matrix, read from a file, is that of the tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backend.errors import ModelError
from backend.statistics.regions import Region, read_region


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_region_is_that_of_the_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(40, 60).to(dtype), "b": torch.randn(30, 50).to(dtype)}
    save_file(
        weights | {"codes": torch.zeros(4, 4, dtype=torch.int32)}, tmp_path / "model.safetensors"
    )
    found = read_region(tmp_path, "b", Region((3, 9), (40, 50)))
    assert found is not None and found.dtype == np.float32
    assert np.array_equal(found, weights["b"][3:9, 40:50].float().numpy())
    assert read_region(tmp_path, "c", Region((0, 1), (0, 1))) is None
    assert read_region(tmp_path, "codes", Region((0, 1), (0, 1))) is None


def test_a_region_stays_inside_the_matrix() -> None:
    assert Region.around(0, 99, (200, 100), 40) == Region((0, 40), (60, 100))
    assert Region.around(100, 3, (200, 6), 40) == Region((80, 120), (0, 6))


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.randn(40, 60)}, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match="cannot be read"):
        read_region(tmp_path, "a", Region((0, 9), (0, 9)))
