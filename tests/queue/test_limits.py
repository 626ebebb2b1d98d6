"""What the host limits, and what a slot owns."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.models.memory import is_out_of_memory
from backend.queue.engines import local
from backend.queue.engines.base import LaunchRequest
from jobs.runtime.progress import limit_memory
from tests.conftest import Given
from tests.fork_server import FORKS


@pytest.mark.parametrize(
    ("named", "slots", "device", "expected"),
    [
        ("", 2, "auto", ["0", "1"]),
        ("", 4, "cuda", ["0", "1", "10", "0"]),
        ("2,5", 2, "auto", ["2", "5"]),
        ("7", 2, "auto", [None, None]),
        ("", 2, "cuda:1", [None, None]),
        ("", 1, "auto", [None]),
    ],
)
def test_each_slot_has_a_gpu_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: str,
    slots: int,
    device: str,
    expected: list[str | None],
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(local, "DEVICE_FOLDER", tmp_path)
    variables = {"CUDA_VISIBLE_DEVICES": named}
    shown = [
        local.visible_gpu(LaunchRequest(1, (), variables, "", "", slot, device), slots)
        for slot in range(slots)
    ]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in shown] == expected


def test_each_slot_has_cores_of_its_own(
    queue: Path, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 7}, raising=False)
    first, second = (LaunchRequest(1, (), {}, "", "", slot) for slot in range(2))
    assert [local.cores_of(each, 2) for each in (first, second)] == [[0, 1], [2, 5]]
    assert local.cores_of(first, 1) == [] and local.cores_of(first, 6) == []
    assert local.cores_of(replace(first, threads=3), 2) == []  # the job asks for more than its part
    given(THREADS="3")
    assert local.cores_of(first, 2) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit covers other memory")
def test_beyond_its_memory_a_run_fails_and_the_machine_does_not() -> None:
    process = FORKS.Process(target=allocate_beyond_the_limit)
    process.start()
    process.join()
    assert process.exitcode == 0


def allocate_beyond_the_limit() -> None:
    limit_memory(2)
    try:
        torch.empty(10**9)  # 4 GB
    except RuntimeError as error:
        sys.exit(0 if is_out_of_memory(error) else f"{error}")
    sys.exit("It was given the memory.")
