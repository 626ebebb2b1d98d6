"""Trial of every method on a GPU: short runs of the toy model, each on the GPU and on the CPU.

`gpu.trial` starts this module as a process with a data folder of its own."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

from backend.errors import ComputeError
from backend.metric_key import MetricKey
from backend.models.devices import accelerator_module, peak_memory
from backend.printable import readable_bytes
from backend.queue.actor import Actor
from backend.queue.engines.base import LaunchRequest, PollResult, Ref
from backend.queue.engines.local import LocalEngine, reference
from backend.queue.launcher import SUPERVISOR
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.states import State
from backend.store.tables import Job
from jobs.cli.doctor.machine import HealthCheck
from jobs.metrics import ACCEPTED_LENGTH, HELDOUT_LOSS, PERPLEXITY, ZERO_SHARE
from jobs.runtime.context import claim
from jobs.runtime.main import execute
from jobs.submit import submit

COMPARED = (PERPLEXITY, HELDOUT_LOSS, ACCEPTED_LENGTH, ZERO_SHARE)
MAX_DEVIATION = 0.1  # of a figure from that of the CPU; lower precision explains less
TEXT = {"segments": 4, "context": 64, "windows": 4}
TRAINING = {"steps": 4, "batch": 2}


class Method(NamedTuple):
    """A run of the toy model. `runs`: config field -> kind whose run on the same device it uses."""

    title: str
    kind: str
    values: Mapping[str, Any]
    runs: Mapping[str, str] = {}


METHODS = (
    Method(
        "prune, re-dense, prune",
        "sds",
        {**TEXT, "base": "alps", "adjust_steps": 2, "redense_steps": 2, "control": True},
    ),
    Method(
        "quantize, train",
        "dlqat",
        {
            **TEXT,
            **TRAINING,
            "stages": "rtn, gptq, block-wise, dlqat, dlqat-kd, lora",
            "length": 32,
            "sample_tokens": 4,
            "packed": False,
        },
    ),
    Method(
        "train a drafter",
        "amphista",
        {
            **TRAINING,
            "answers": 8,
            "heldout": 4,
            "answer_tokens": 8,
            "minutes": 0,
            "draft_vocabulary": 64,
        },
    ),
    Method(
        "decode with a drafter",
        "benchmark",
        {"count": 2, "max_new_tokens": 8, "rounds": 1, "nodes": 2},
        {"drafters": "amphista"},
    ),
    Method(
        "evaluate",
        "evaluation",
        {"context": 64, "windows": 4, "sample_tokens": 4, "dense": "toy", "speed": False},
        {"model": "sds"},
    ),
    Method(
        "sensitivity profile",
        "profile",
        {"context": 64, "segments": 4, "formats": "int3-g64, int4-g64, 50%, 2:4"},
    ),
    Method("weight statistics", "statistics", {}),
)


class InProcessEngine(LocalEngine):
    """Runs each attempt in this process, during the launch."""

    def launch(self, launch: LaunchRequest) -> Ref:
        context = claim(launch.attempt_id)
        context.start()
        self._code = execute(context)
        return reference(os.getpid())

    def poll(self, refs: Sequence[Ref]) -> list[PollResult]:
        """Every attempt has ended."""
        return [PollResult("exited", self._code) for _ in refs]


def run_methods(methods: Sequence[Method] = METHODS) -> Iterator[HealthCheck]:
    """Yield the result of each method. The data folder receives its runs."""
    upgrade()
    lock = SUPERVISOR.hold()  # else a submission starts another, which would launch these runs
    loop, runs = SupervisorLoop(InProcessEngine(1)), dict[tuple[str, str], Job]()
    try:
        for method in methods:
            yield _checked(loop, method, runs)
    finally:
        if lock:
            lock.release()


def _checked(loop: SupervisorLoop, method: Method, runs: dict[tuple[str, str], Job]) -> HealthCheck:
    try:
        return compare_devices(loop, method, runs)
    except Exception as error:  # other methods may work
        return HealthCheck(method.title, False, str(error))


def compare_devices(
    loop: SupervisorLoop, method: Method, runs: dict[tuple[str, str], Job]
) -> HealthCheck:
    """Run a method on the GPU, then on the CPU, and compare their figures. `runs` receives both."""
    started = time.perf_counter()
    if module := accelerator_module():
        module.reset_peak_memory_stats()
    on_gpu = runs[method.kind, "auto"] = run_method(loop, method, "auto", runs)
    text = f"{time.perf_counter() - started:5.1f} s  {readable_bytes(peak_memory()):>8}"
    on_cpu = runs[method.kind, "cpu"] = run_method(loop, method, "cpu", runs)
    deviation = largest_deviation(figures(on_gpu), figures(on_cpu))
    text += f"  deviates by {deviation:.2%} from the CPU".replace("%", " %")
    return HealthCheck(method.title, deviation <= MAX_DEVIATION, text)


def run_method(
    loop: SupervisorLoop, method: Method, device: str, runs: Mapping[tuple[str, str], Job]
) -> Job:
    """Run a method on a device and return its job. Raises ComputeError: the run failed."""
    used = {field: runs[kind, device].run for field, kind in method.runs.items()}
    values = {"model": "toy", "threads": 1, **method.values, **used, "device": device}
    job = submit(method.kind, values, Actor("doctor", "host"))
    while job.state not in (State.SUCCEEDED, State.FAILED):
        loop.turn()
        job = queries.job(job.id)
    if job.error:
        raise ComputeError(f"Failed on {job.environment.get('device')}.", job.error["why"], "")
    return job


def largest_deviation(measured: Mapping[Any, float], expected: Mapping[Any, float]) -> float:
    """Return the largest relative deviation of the figures that both have: a stage may have the
    name of a run."""
    common = (key for key in expected.keys() & measured.keys() if expected[key])
    return max((abs(measured[key] / expected[key] - 1) for key in common), default=0.0)


def figures(job: Job) -> dict[tuple[str, MetricKey], float]:
    """Return the figures of a run that are compared."""
    rows = queries.results([job.id])
    return {(r.stage, r.metric): r.value for r in rows if r.metric in COMPARED}


if __name__ == "__main__":
    output = sys.stdout
    with redirect_stdout(sys.stderr):  # logs of the runs
        for check in run_methods():
            print(json.dumps(vars(check)), file=output, flush=True)
