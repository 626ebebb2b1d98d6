"""Hidden states come back from disk as they were, and leave nothing behind."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.models.block_forward import HiddenStatesOnDisk

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 17))


@given(st.lists(SHAPES, max_size=5), st.sampled_from(DTYPES))
def test_they_come_back_bit_for_bit(tmp_path_factory, shapes, dtype):
    kept = HiddenStatesOnDisk(tmp_path_factory.mktemp("states"))
    batches = [torch.randn(shape).to(dtype) for shape in shapes]
    for states in batches:
        kept.append(states)
    assert len(kept) == len(batches)
    for _ in range(2):
        for found, states in zip(kept, batches, strict=True):
            assert found.dtype == dtype and torch.equal(found, states)


def test_two_may_read_at_once_and_what_is_read_is_a_copy(tmp_path: Path) -> None:
    kept = HiddenStatesOnDisk(tmp_path)
    for value in (1.0, 2.0):
        kept.append(torch.full((1, 2, 3), value))
    for left, right in zip(kept, kept, strict=True):
        assert torch.equal(left, right)
        left.zero_()
        assert right.abs().sum() > 0
    kept.append(torch.full((1, 2, 3), 3.0))
    assert [states[0, 0, 0].item() for states in kept] == [1.0, 2.0, 3.0]


def test_the_file_has_no_name(tmp_path: Path) -> None:
    kept = HiddenStatesOnDisk(tmp_path / "new" / "folder")
    kept.append(torch.ones(8, 64, 64))
    assert list((tmp_path / "new" / "folder").iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_they_come_back_to_their_device(tmp_path: Path) -> None:
    kept = HiddenStatesOnDisk(tmp_path)
    kept.append(torch.ones(1, 2, 3, device="cuda"))
    assert next(iter(kept)).is_cuda
