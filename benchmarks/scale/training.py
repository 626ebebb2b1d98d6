"""Steps of DL-QAT on one process and on several, which share the cores and the batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from backend.checkpoints import Checkpoints
from backend.metric_key import MetricKey
from backend.models.blocks import all_linears
from backend.quantization.config import DLQATConfig
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.plan import plan
from backend.reporter import SilentReporter
from backend.training import distributed
from benchmarks.dlqat import VOCABULARY, build

SKIPPED = 2  # steps: the first compile kernels
CONFIG = {
    "steps": 8,
    "batch": 4,
    "length": 64,
    "rank": 16,
    "precision": "float32",
    "start": "rounded",
    "space": "minmax",
    "stages": ["dlqat"],
}


class StepClock(SilentReporter):
    """Keeps losses, and the time at which each was known."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.times: list[float] = []

    def metric(self, key: MetricKey, value: float, step: int) -> None:
        if key == MetricKey("loss", "dlqat"):
            self.losses.append(value)
            self.times.append(time.perf_counter())


def measure(world: int, threads: int) -> dict[str, Any]:
    """Median milliseconds of a step, milliseconds of processor time of a step, and the losses.
    `threads`: of each process."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "benchmarks.scale", "--work", folder, "--world", str(world)]
        line += ["--threads", str(threads)]
        patient = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # others may need the cores
        started = [
            subprocess.Popen([*line, "--number", str(number)], stdout=subprocess.PIPE, env=patient)
            for number in range(world)
        ]
        told = [json.loads(each.communicate()[0].splitlines()[-1]) for each in started]
    first = told[0]
    return {
        "processes": world,
        "threads": threads,
        "ms": first["ms"],
        "CPU ms": sum(each["CPU ms"] for each in told),
        "losses": first["losses"],
    }


def work(number: int, world: int, threads: int, folder: Path) -> dict[str, Any]:
    """What one process does, and how long it takes."""
    torch.set_num_threads(threads)
    if world > 1:
        distributed.join(number, world, folder / "rendezvous")
    random = torch.Generator().manual_seed(0)
    config, reporter = DLQATConfig.model_validate(CONFIG), StepClock()
    shape = (config.steps * config.batch, config.length)
    rows = torch.randint(3, VOCABULARY, shape, generator=random)
    model, checkpoints = build("25m"), Checkpoints(folder / str(world))
    facts = SimpleNamespace(linears=all_linears(model), architecture=type(model).__name__)
    qat = DLQAT(model, rows[:2], rows, rows, config, plan(config, facts), checkpoints)
    qat.prepare(reporter)
    began = _processor_s()
    if distributed.is_first():
        (stage,) = qat.stages
        qat.make(stage, reporter)
        distributed.announce("")
    else:
        qat.follow()
    spent = _processor_s() - began
    steps = [later - one for one, later in pairwise(reporter.times[SKIPPED:])]
    return {
        "ms": 1000 * median(steps) if steps else 0.0,
        "losses": reporter.losses,
        "CPU ms": 1000 * spent / config.steps,
    }


def _processor_s() -> float:
    return sum(os.times()[:2])
