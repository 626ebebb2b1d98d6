"""Parts side by side: the same as one after the other, in a forked process, too."""

import os
import time

import pytest
import torch

from backend.models.threads import parallel_map, part_index
from backend.pruning.redense import CHUNK_ROWS, by_rows


@pytest.mark.usefixtures("two_threads")
def test_rows_are_the_same_to_the_bit_on_two_threads() -> None:
    W, H = torch.randn(2 * CHUNK_ROWS + 70, 64), torch.randn(64, 64)
    found = by_rows(lambda rows, same: (rows @ H).relu() + same, W, W)
    torch.set_num_threads(1)
    assert torch.equal(found, by_rows(lambda rows, same: (rows @ H).relu() + same, W, W))


@pytest.mark.usefixtures("two_threads")
def test_an_error_of_a_part_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda n: 1 // n, [2, 1, 0])


@pytest.mark.usefixtures("two_threads")
def test_an_error_is_raised_when_no_part_is_at_work_any_more() -> None:
    ended = []

    def work(seconds: float) -> None:
        if not seconds:
            raise MemoryError
        time.sleep(seconds)
        ended.append(seconds)

    with pytest.raises(MemoryError):
        parallel_map(work, [0.0, 0.2])
    assert ended == [0.2]


@pytest.mark.usefixtures("two_threads")
def test_a_forked_process_has_workers_of_its_own() -> None:
    assert parallel_map(lambda n: -n, [1, 2, 3]) == [-1, -2, -3]
    if (child := os.fork()) == 0:
        os._exit(parallel_map(lambda n: -n, [1, 2, 3]) != [-1, -2, -3])
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.usefixtures("two_threads")
def test_a_part_knows_its_index() -> None:
    assert parallel_map(lambda _: part_index(), "abcde") == [0, 1, 2, 3, 4] and part_index() == 0
    assert parallel_map(lambda _: part_index(), "a") == [0]
