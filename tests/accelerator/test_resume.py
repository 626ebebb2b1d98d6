"""Runs that begin on one device and end on another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from backend.queue.service import resume
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.states import State
from jobs.cli.doctor import methods
from jobs.cli.doctor.methods import InProcessEngine
from jobs.runtime.context import JobContext
from jobs.runtime.main import execute
from jobs.submit import submit
from tests.accelerator.trials import begin
from tests.fork_server import elsewhere
from tests.queue.conftest import HOST

TEXT = {
    "model": "toy",
    "segments": 4,
    "context": 64,
    "windows": 4,
    "threads": 1,
    "precision": "float32",  # auto depends on the device of the first attempt
}
CONFIGS = {
    "sds": {**TEXT, "base": "wanda", "adjust_steps": 2, "redense_steps": 2},
    "dlqat": {
        **TEXT,
        "stages": "gptq, dlqat",
        "steps": 2,
        "batch": 2,
        "length": 32,
        "sample_tokens": 0,
        "packed": False,
    },
}
PLACES = {"sds": "second-0001", "dlqat": "gptq-0001"}  # checkpoint that ends the first attempt
ORDERS = {"from the CPU": ("cpu", "sim:0"), "to the CPU": ("sim:0", "cpu")}


def interrupted_runs(folder: str) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Return the results of `run_on` by kind and order. One of the runs runs out of memory."""
    begin(folder)
    upgrade()
    loop = SupervisorLoop(InProcessEngine(1))
    endings = {("dlqat", "to the CPU"): exhaust_memory}
    return {
        (kind, order): run_on(loop, kind, devices, endings.get((kind, order), JobContext.ask_stop))
        for kind in CONFIGS
        for order, devices in ORDERS.items()
    }


def run_on(
    loop: SupervisorLoop,
    kind: str,
    devices: tuple[str, ...],
    interrupt: Callable[[JobContext], None],
) -> tuple[Any, ...]:
    """Run a kind with one attempt per device; each but the last is interrupted. Return the devices
    of the attempts, the checkpoint that the last continued from, the errors, and the figures."""
    job = submit(kind, CONFIGS[kind], HOST)
    used, errors = list[str](), list[Any]()

    def attempt(context: JobContext) -> int:
        device = devices[len(used)]
        used.append(device)
        if len(used) < len(devices):
            interrupt_at(context, PLACES[kind], interrupt)
        found = [] if device == "cpu" else [device]
        with patch("jobs.runtime.environment.accelerators", lambda: found):
            return execute(context)

    with patch.object(methods, "execute", attempt):
        while (job := queries.job(job.id)).state != State.SUCCEEDED:
            if job.state == State.FAILED:
                errors.append(job.error)
                if len(used) == len(devices):
                    break
                resume([job.run], HOST)
            loop.turn()
    last = queries.attempts(job.id)[-1]
    return tuple(used), last.resumed_from, errors, methods.figures(job)


def exhaust_memory(_: JobContext) -> None:
    raise torch.OutOfMemoryError("sim:0 out of memory. Tried to allocate 9.00 GiB.")


def interrupt_at(context: JobContext, place: str, interrupt: Callable[[JobContext], None]) -> None:
    """Interrupt an attempt when a checkpoint is complete."""
    commit = context.checkpoints._committed

    def committed(folder: Path) -> None:
        commit(folder)
        if folder.name == place:
            interrupt(context)

    context.checkpoints._committed = committed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    return elsewhere(interrupted_runs, str(tmp_path_factory.mktemp("resume")))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_run_continues_on_the_other_device(runs: dict[tuple[str, str], Any], kind: str) -> None:
    results = [runs[kind, order] for order in ORDERS]
    for (devices, resumed_from, *_), expected in zip(results, ORDERS.values(), strict=True):
        assert devices == expected and resumed_from
    one, other = (figures for *_, figures in results)
    assert one.keys() == other.keys() and one
    for key, value in one.items():
        assert other[key] == pytest.approx(value, rel=0.01), key


def test_a_run_that_runs_out_of_memory_keeps_its_checkpoints(
    runs: dict[tuple[str, str], Any],
) -> None:
    assert all(not errors for (_, _, errors, _) in (runs["sds", x] for x in ORDERS))
    _, resumed_from, errors, figures = runs["dlqat", "to the CPU"]
    (error,) = errors
    assert resumed_from == PLACES["dlqat"] and figures
    assert "ran out of memory" in error["what"] and "9.00 GiB" in error["why"]
    assert "Finished work is kept" in error["do"]
