"""Tests of GPUs as processes without torch see them, and of refusals before a run is queued."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backend.errors import ConfigError, ModelError, SlimscopeError
from backend.models import cards, devices
from backend.models.cards import Card, CardReport, card_memory
from backend.models.memory import RUNTIME_BYTES, DeviceMemory
from backend.queue.engines import local
from backend.store.session import writing
from backend.store.tables import Job
from jobs import limits
from jobs.submit import check_and_estimate, submit
from tests.conftest import Given
from tests.queue.conftest import HOST
from ui.pages.new_run.composition import Composition
from ui.pages.new_run.plan import bars, planned

GB = 10**9
MIB = 2**20
SMOL = {"model": "smollm2-135m", "segments": 8, "context": 256, "windows": 4}
CARDS = tuple(
    Card(device=f"cuda:{n}", name="A", uuid=f"{n}-ab", total_bytes=24 * GB // (n + 1))
    for n in range(2)
)
Smi = Callable[..., None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Put an nvidia-smi with this output on the path, and two cards into the machine."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    monkeypatch.setattr(local, "DEVICE_FOLDER", tmp_path / "dev")
    monkeypatch.setattr(cards, "report", lambda: CardReport(cards=CARDS))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(*lines: str, script: str = "") -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text("\n".join(["#!/bin/sh", script, *(f"echo '{line}'" for line in lines)]))
        tool.chmod(0o755)
        cards._free_bytes.cache_clear()

    return write


def test_free_memory_is_that_of_the_card_with_the_same_uuid(smi: Smi) -> None:
    smi("GPU-1-ab, 100", "GPU-0-ab, 2000")
    assert [card_memory(card).free for card in CARDS] == [2000 * MIB, 100 * MIB]
    assert card_memory(CARDS[0]) == DeviceMemory("cuda:0", 24 * GB, 2000 * MIB)


@pytest.mark.parametrize(
    ("lines", "script"),
    [
        (["NVIDIA-SMI has failed because it could not talk to the driver."], "exit 9"),
        (["GPU-0-ab, [N/A]", "GPU-0-ab", ",,,", "GPU-0-ab, 99999999999999999"], ""),
        (["GPU-0-ab, 1"], "sleep 60"),
    ],
)
def test_a_tool_that_fails_lies_or_hangs_leaves_the_total(
    smi: Smi, monkeypatch: pytest.MonkeyPatch, lines: list[str], script: str
) -> None:
    monkeypatch.setattr(cards, "QUERY_TIMEOUT_S", 0.3)
    smi(*lines, script=script)
    assert card_memory(CARDS[0]).free == 24 * GB


def test_without_the_tool_all_memory_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    cards._free_bytes.cache_clear()
    assert card_memory(CARDS[1]).free == 12 * GB


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (RuntimeError("The NVIDIA driver on your system is too old (11040).\nMore"), "too old"),
        (AssertionError("Torch not compiled with CUDA enabled"), "not compiled with CUDA"),
    ],
)
def test_torch_gives_the_reason_for_no_gpu(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, reason: str
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr(torch.cuda, "init", fail)
    found = devices.card_report()
    assert found.cards == () and reason in found.reason and "More" not in found.reason


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (subprocess.TimeoutExpired("python", 60), "does not answer"),
        (subprocess.CompletedProcess([], 139, "", ""), "does not answer"),
        (subprocess.CompletedProcess([], 0, '{"cards": [{"device": 5}]}\n', ""), "not answer"),
        (subprocess.CompletedProcess([], 0, 'A warning\n{"reason": "too old"}\n', ""), "too old"),
    ],
)
def test_a_probe_that_fails_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, result: object, reason: str
) -> None:
    def answer(*_: object, **__: object) -> object:
        if isinstance(result, Exception):
            raise result
        return result

    cards.report.cache_clear()
    monkeypatch.setattr(subprocess, "run", answer)
    try:
        assert reason in cards.report().reason and cards.report().cards == ()
    finally:
        cards.report.cache_clear()


def refusal(**values: object) -> SlimscopeError:
    with pytest.raises(SlimscopeError) as refused:
        check_and_estimate("sds", {**SMOL, **values})
    assert refused.value.why and refused.value.do
    return refused.value


def test_a_gpu_that_is_not_there_is_refused(queue: Path, smi: Smi) -> None:
    error = refusal(device="cuda:7")
    assert isinstance(error, ConfigError) and error.field == "device"
    assert "cuda:7" in error.what and "2 GPUs" in error.why and "below 2" in error.do


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_driver_that_is_too_old_is_refused_with_the_reason(
    queue: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(cards, "report", lambda: CardReport(reason="The driver is too old"))
    error = refusal(device=device)
    assert "The driver is too old" in error.why and "doctor" in error.do


def test_a_card_whose_memory_is_taken_is_refused(queue: Path, smi: Smi) -> None:
    smi("GPU-0-ab, 300", "GPU-1-ab, 11000")
    error = refusal(device="cuda:0")
    assert isinstance(error, ModelError) and error.field == "device"
    assert "cuda:0 has too little free memory" in error.what and "24 GB are free" in error.why
    check_and_estimate("sds", {**SMOL, "device": "cuda:1"})
    check_and_estimate("sds", {**SMOL, "device": "cpu"})


def test_a_run_may_wait_for_the_memory_of_another_run(queue: Path, smi: Smi) -> None:
    job = submit("statistics", {"model": "toy"}, HOST)
    smi("GPU-0-ab, 300")
    refusal(device="cuda:0")
    with writing() as session:
        session.get_one(Job, job.id).state = "running"
    check_and_estimate("sds", {**SMOL, "device": "cuda:0"})


def test_memory_of_the_card_and_its_dtype_decide_on_streaming(
    queue: Path, smi: Smi, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi("GPU-0-ab, 20000")
    config, on_card = check_and_estimate("sds", SMOL)
    assert config.device == "auto" and on_card.device.device == "cuda:0"
    _, on_host = check_and_estimate("sds", {**SMOL, "device": "cpu"})
    stored, widened = (
        check_and_estimate("sds", {"model": "toy", "device": device})[1].memory["weights"]
        for device in ("cuda", "cpu")
    )
    assert 2 * stored == widened  # the toy is stored in float16
    assert on_card.host_bytes == RUNTIME_BYTES and on_host.host_bytes == on_host.bytes
    monkeypatch.setattr("backend.models.memory.memory_available", lambda: on_host.bytes // 2)
    _, estimate = check_and_estimate("sds", SMOL)
    assert not any("read from disk" in warning for warning in estimate.warnings)
    smi(f"GPU-0-ab, {on_card.bytes // MIB}")  # tight
    _, estimate = check_and_estimate("sds", SMOL)
    assert "memory of cuda:0. Its blocks are read from disk" in estimate.warnings[-1]


def test_the_host_needs_memory_too(queue: Path, smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi("GPU-0-ab, 20000")
    monkeypatch.setattr("backend.models.memory.memory_available", lambda: RUNTIME_BYTES // 2)
    assert "does not fit into memory" in refusal().what


def test_runs_distributed_over_slots_count_the_smallest_card(
    queue: Path, smi: Smi, given: Given
) -> None:
    smi("GPU-0-ab, 20000", "GPU-1-ab, 11000")
    assert limits.run_memory("auto").device == "cuda:0"
    given(SLOTS="2")
    assert limits.run_memory("auto").device == limits.run_memory("cuda:1").device == "cuda:1"


def test_the_plan_tells_host_and_card_apart(queue: Path, smi: Smi) -> None:
    smi("GPU-0-ab, 20000")
    steps = planned(
        Composition.model_validate(
            {"steps": [{"kind": "sds", "values": {name: str(x) for name, x in SMOL.items()}}]}
        )
    )
    texts = {bar.label: bar.text.replace("\xa0", " ") for bar in bars(steps)}
    assert "of 21.0 GB" in texts["Memory of cuda:0"] and "629 MB" in texts["Memory"]
    assert "free" in texts["Disk"]
