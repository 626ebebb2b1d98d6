"""How long a run takes: its work, the rates of the machine, and factors learned from finished runs.

    seconds = sum over steps of factor(step) * sum over units of amount / rate(unit)

The work of a step is counted from the config: products of a number with a weight (tokens x weights
x passes), bytes moved where those bound it, or seconds where they are given: a time budget, the
start. `jobs.runtime.probe` measures the rates once. What a step costs beyond its work is its
factor: the median of measured / (amount / rate) over the finished runs nearest in work; of this
machine if there are any, else of the reference runs. The less is known, the wider is the range.
Does not import torch.
"""

import hashlib
import math
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from backend.compiler import kernel_version
from backend.models.facts import ModelFacts
from backend.queue.engines import CLUSTERS
from backend.queue.engines.local import installed_gpus
from backend.settings import available_threads, settings
from backend.store import queries
from backend.store.states import State

WORK = "work"  # of the environment of a run
REST = "rest"  # the time of a run that no step accounts for
START_S = 6.0  # to start a process and import torch
RECENT_RUNS, NEAREST_RUNS = 30, 3  # finished runs looked at, and those used of them
TYPICAL = 4.0  # factor of a step that no run has
SIMILAR, LIKE = 1.5, 16.0  # ratio of work to the nearest run, and to the run asked for, at most
LEAST_WIDTH, BLIND_WIDTH = 1.6, 9.0  # of a range: its highest over its lowest
BASES = (  # width of the range that runs give, and how they are called, the most telling first
    (2.0, "{} like this on this machine"),
    (4.0, "reference runs, on another machine or with other threads"),
    (BLIND_WIDTH, "{} of other models on this machine"),
    (BLIND_WIDTH, "reference runs of other models"),
    (BLIND_WIDTH, "the rates of this machine alone"),
    (LEAST_WIDTH, "the time that is given"),
)
ELSEWHERE, NONE, GIVEN = (1, 3, 4), 4, 5  # places in it
BUSY = 0.5  # running processes a core, above which rates are those of a busy machine
WEIGHT_BYTES = 2  # read of each weight for each token that is decoded alone

Unit = Literal["float32", "bfloat16", "memory", "disk", "seconds"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class PhaseWork:
    """Work of one phase: `amount` products, bytes or seconds. `step`: whose recorded time it is
    part of."""

    phase: str
    amount: float
    unit: Unit = "bfloat16"
    step: str = REST


class Rates(BaseModel):
    """Products of a number with a weight, and bytes, a second on one thread; `load`: running
    processes a core when they were measured."""

    model_config = ConfigDict(frozen=True)

    float32: Positive
    bfloat16: Positive
    memory: Positive
    disk: Positive
    load: Amount = 0.0

    def seconds(self, amounts: Mapping[Unit, float], threads: int) -> float:
        """Seconds of this work on `threads`; bfloat16 is not used where float32 is faster."""
        rates: dict[Unit, float] = {
            "float32": threads * self.float32,
            "bfloat16": threads * max(self.bfloat16, self.float32),
            "memory": self.memory,
            "disk": self.disk,
            "seconds": 1.0,
        }
        return sum(amount / rates[unit] for unit, amount in amounts.items())


REFERENCE_RATES = Rates(float32=6.1e10, bfloat16=2.69e11, memory=2.45e10, disk=4.4e8)


class FinishedRun(BaseModel):
    """Work and seconds of a run by step, and where it ran: its machine, threads, version of our
    kernels, and rates; those of the machine of the reference runs where they are not named."""

    kind: str
    model: str
    machine: str
    threads: int = Field(ge=1, le=4096)
    kernels: str = ""
    rates: Rates = REFERENCE_RATES
    steps: dict[str, dict[Unit, Amount]]
    seconds: dict[str, Amount]

    def ideal(self, step: str) -> float:
        """Seconds of the work of a step at the rates of the machine."""
        return self.rates.seconds(self.steps.get(step, {}), self.threads)


RUNS = TypeAdapter(list[FinishedRun])
REFERENCE_RUNS = Path(__file__).with_name("reference_runs.json")


@dataclass(frozen=True)
class Duration:
    """Expected seconds of a run with their range, by phase, and how they are known."""

    seconds: float
    low: float
    high: float
    phases: Mapping[str, float]
    basis: str


def estimate(kind: str, config: Mapping[str, Any], work: Sequence[PhaseWork]) -> Duration:
    """How long a run of this config takes."""
    threads = int(config.get("threads") or settings().threads or available_threads())
    rates = rates_here()
    ranked = _ranked_runs(kind, config, threads, rates)
    blind = rates is REFERENCE_RATES
    phases, by_rank = dict.fromkeys([x.phase for x in work], 0.0), defaultdict[int, float](float)
    log_width = 0.0
    for step, amounts in by_step(work).items():
        factor, width, rank = 1.0, LEAST_WIDTH, GIVEN
        ideal = rates.seconds(amounts, threads)
        if set(amounts) != {"seconds"}:
            rank, runs = _nearest(ranked, step, ideal)
            factors = [x.seconds[step] / x.ideal(step) for x in runs]
            factor = median(factors or [1.0 if step == REST else TYPICAL])
            width = BLIND_WIDTH if blind and rank in ELSEWHERE else BASES[rank][0]
            if rank == 0 and len(runs) == NEAREST_RUNS:
                width = min(width, max(LEAST_WIDTH, max(factors) / min(factors)))
        by_rank[rank] += factor * ideal
        log_width += factor * ideal * math.log(width)
        for each in work:
            if each.step == step:
                phases[each.phase] += factor * rates.seconds({each.unit: each.amount}, threads)
    total, most = sum(by_rank.values()), max(by_rank, key=by_rank.__getitem__)
    half = math.exp(log_width / total / 2)
    number = min(NEAREST_RUNS, sum(rank == most for rank, _ in ranked))
    return Duration(total, total / half, total * half, phases, _basis(most, number, rates))


def _basis(rank: int, number: int, rates: Rates) -> str:
    """What an estimate rests on, in words."""
    basis = BASES[rank][1]
    if rank not in ELSEWHERE:
        return basis.format(f"{number} run{'s' * (number != 1)}")
    if rates is REFERENCE_RATES:
        return f"{basis}; this machine is not measured yet"
    return basis + "; this machine was busy when it was measured" * (rates.load > BUSY)


def _ranked_runs(
    kind: str, config: Mapping[str, Any], threads: int, rates: Rates
) -> list[tuple[int, FinishedRun]]:
    """Runs of the kind with their rank, the place in `BASES` of what they tell."""
    finished, model = finished_runs(kind), config.get("model", "")
    machine = _machine(finished, str(config.get("device", "auto")))
    place = (machine, threads, kernel_version())
    ranked = []
    for run in (*finished, *(x for x in reference_runs() if x.kind == kind)):
        is_own = (run.machine, run.threads, run.kernels) == place
        if is_own:  # at the rates of today: whatever those are, they cancel out
            run = run.model_copy(update={"rates": rates})
        rank = (0 if is_own else 1) if run.model == model else (2 if is_own else 3)
        ranked.append((rank, run))
    return ranked


def _nearest(
    ranked: Sequence[tuple[int, FinishedRun]], step: str, ideal: float
) -> tuple[int, list[FinishedRun]]:
    """The best rank of the runs that have a step, and those of it that are nearest in its work."""
    far = [
        (rank, abs(math.log(seconds / ideal)), run)
        for rank, run in ranked
        if step in run.seconds and (seconds := run.ideal(step)) > 0
        if {*run.steps[step]} != {"seconds"}
    ]
    far = [x for x in far if x[0] or x[1] <= math.log(LIKE)]
    best = min((rank for rank, _, _ in far), default=NONE)
    least = min((distance for rank, distance, _ in far if rank == best), default=0.0)
    near = [run for rank, n, run in far if rank == best and n <= least + math.log(SIMILAR)]
    return best, near[:NEAREST_RUNS]


def decoded_bytes(facts: ModelFacts, tokens: int) -> float:
    """Bytes read to decode so many tokens, one after the other."""
    return float(WEIGHT_BYTES * facts.weights_per_token * tokens)


def by_step(work: Sequence[PhaseWork]) -> dict[str, dict[Unit, float]]:
    """Step -> unit -> amount, the start of the process included."""
    steps = defaultdict[str, dict[Unit, float]](lambda: defaultdict(float))
    for each in (PhaseWork("start", START_S, "seconds"), *work):
        if each.amount:
            steps[each.step][each.unit] += each.amount
    return {step: dict(amounts) for step, amounts in steps.items()}


def finished_runs(kind: str) -> list[FinishedRun]:
    """The runs to learn from, the newest first."""
    ended = queries.jobs([State.SUCCEEDED], kind)
    jobs = [x for x in ended if WORK in x.environment and x.attempts_made == 1][:RECENT_RUNS]
    steps = defaultdict[int, dict[str, float]](dict)
    for time in queries.step_times([job.id for job in jobs]):
        steps[time.job_id][time.step] = time.seconds
    found = []
    for job in jobs:
        whole = ((job.finished_at or 0) - (job.started_at or 0)) / 1000
        seconds = steps[job.id] | {REST: max(whole - sum(steps[job.id].values()), 0.1)}
        place = job.environment
        name = str(place.get("cpu", "")).rpartition(", ")[0]  # without its cores
        about = {
            "kind": kind,
            "model": str(job.config.get("model", "")),
            "machine": name if place.get("device") == "cpu" else place.get("device"),
            "threads": place.get("threads"),
            "seconds": seconds,
        }
        with suppress(ValidationError, TypeError):  # of an imported run
            found.append(FinishedRun.model_validate(place[WORK] | about))
    return found


@lru_cache
def reference_runs() -> tuple[FinishedRun, ...]:
    """Runs that come with the package, quick looks and defaults on one machine."""
    return tuple(RUNS.validate_json(REFERENCE_RUNS.read_bytes()))


def rates_here() -> Rates:
    """The rates of this machine; those of the reference runs before it is measured."""
    try:
        return Rates.model_validate_json(rates_file().read_bytes())
    except (OSError, ValidationError):
        return REFERENCE_RATES


def rates_file() -> Path:
    """The file of a probe of this machine, named after all that changes its rates."""
    key = (processor(), version("torch"), kernel_version())
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
    return settings().cache_dir / f"rates-{digest}.json"


def _machine(finished: Sequence[FinishedRun], device: str) -> str:
    """The machine of a run: its processor, or its GPU as the newest run on one tells."""
    elsewhere = settings().engine in CLUSTERS
    if not elsewhere and (device == "cpu" or not installed_gpus()):
        return processor()
    others = (run.machine for run in finished if run.machine != processor())
    return next(others, "" if device.startswith("cuda") else processor())


@lru_cache
def processor() -> str:
    """The model name of the processor."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        name = names[0].split(":", 1)[1].strip() if names else name
    return name
