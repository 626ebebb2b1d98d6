"""Estimated duration of a run from its work, the rates of the machine, and finished runs.

    seconds = sum over steps of factor(step) * sum over units of amount / rate(unit)

The work of a step follows from the config: multiplications with a weight (tokens x weights x
passes), bytes for memory-bound or disk-bound work, or seconds for fixed times such as time budgets.
`jobs.runtime.probe` measures the rates once per machine. The factor of a step is the median of
measured / (amount / rate) over the finished runs with the most similar work, preferably on this
machine, otherwise reference runs. One or two runs here, which may have run beside other work, are
averaged with reference runs. The range is wider if less is known. Does not import torch.
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

WORK = "work"  # key in the environment of a run
REST = "rest"  # step for the time that no other step accounts for
START_S = 6.0  # starting a process and importing torch
RECENT_RUNS, NEAREST_RUNS = 30, 3  # finished runs considered, and used
DEFAULT_FACTOR = 4.0  # factor of a step without finished runs
MAX_RATIO_TO_NEAREST = 1.5  # runs with more or less work than the nearest run are ignored
MAX_RATIO_TO_ESTIMATED = 16.0  # limit for runs of this machine relative to the estimated run
MIN_WIDTH, MAX_WIDTH = 1.6, 9.0  # width of a range: highest / lowest
BASES = (  # (width of the range, description) by rank; the most reliable basis first
    (2.0, "{} like this on this machine"),
    (4.0, "reference runs, on another machine or with another number of threads"),
    (MAX_WIDTH, "{} of other models on this machine"),
    (MAX_WIDTH, "reference runs of other models"),
    (MAX_WIDTH, "only the speed of this machine"),
    (MIN_WIDTH, "the configured time"),
)
REFERENCE_RANK, OTHER_MACHINE_RANKS, NO_RUNS_RANK, FIXED_TIME_RANK = 1, (1, 3, 4), 4, 5
BUSY = 0.5  # running processes per core on a busy machine, whose measured rates are too low
WEIGHT_BYTES = 2  # bytes read per weight to decode a token

Unit = Literal["float32", "bfloat16", "memory", "disk", "seconds"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class PhaseWork:
    """Work of a phase.

    Attributes:
        phase: name of the phase.
        amount: multiplications, bytes or seconds.
        unit: precision of the multiplications, where the bytes are moved, or "seconds".
        step: step whose recorded time includes this work.
    """

    phase: str
    amount: float
    unit: Unit = "bfloat16"
    step: str = REST


class Rates(BaseModel):
    """Speed of a machine: multiplications per second on one thread by precision, and bytes per
    second from memory and disk. `load` is the number of running processes per core during the
    measurement."""

    model_config = ConfigDict(frozen=True)

    float32: Positive
    bfloat16: Positive
    memory: Positive
    disk: Positive
    load: Amount = 0.0

    def seconds(self, amounts: Mapping[Unit, float], threads: int) -> float:
        """Return the seconds for this work on `threads`. float32 replaces bfloat16 if it is
        faster."""
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
    """A finished run used for estimates.

    Attributes:
        kind: kind of the run.
        model: spec of its model.
        machine: processor or GPU.
        threads: number of threads.
        kernels: version of the native kernels.
        rates: rates of the machine; by default those of the reference machine.
        steps: step -> unit -> amount of work.
        seconds: step -> measured seconds.
    """

    kind: str
    model: str
    machine: str
    threads: int = Field(ge=1, le=4096)
    kernels: str = ""
    rates: Rates = REFERENCE_RATES
    steps: dict[str, dict[Unit, Amount]]
    seconds: dict[str, Amount]

    def ideal(self, step: str) -> float:
        """Return the seconds of a step's work at the rates of the machine."""
        return self.rates.seconds(self.steps.get(step, {}), self.threads)


RUNS = TypeAdapter(list[FinishedRun])
REFERENCE_RUNS = Path(__file__).with_name("reference_runs.json")


@dataclass(frozen=True)
class Duration:
    """Expected seconds of a run: estimate, range, seconds by phase, and basis in words."""

    seconds: float
    low: float
    high: float
    phases: Mapping[str, float]
    basis: str


def estimate(kind: str, config: Mapping[str, Any], work: Sequence[PhaseWork]) -> Duration:
    """Estimate the duration of a run with this config."""
    threads = int(config.get("threads") or settings().threads or available_threads())
    rates = rates_here()
    ranked = _ranked_runs(kind, config, threads, rates)
    unmeasured = rates is REFERENCE_RATES
    phases, by_rank = dict.fromkeys([x.phase for x in work], 0.0), defaultdict[int, float](float)
    log_width = 0.0
    for step, amounts in by_step(work).items():
        factor, width, rank = 1.0, MIN_WIDTH, FIXED_TIME_RANK
        ideal = rates.seconds(amounts, threads)
        if set(amounts) != {"seconds"}:
            rank, runs = _nearest(ranked, step, ideal)
            factors = [x.seconds[step] / x.ideal(step) for x in runs]
            factor = median(factors or [1.0 if step == REST else DEFAULT_FACTOR])
            width = BASES[rank][0]
            shipped = [(n, run) for n, run in ranked if n and run in reference_runs()]
            others, references = _nearest(shipped, step, ideal)
            if rank == 0 and others == REFERENCE_RANK and len(runs) < NEAREST_RUNS:
                usual = median(x.seconds[step] / x.ideal(step) for x in references)
                factor, deviation = _tempered(factor, usual, len(runs))
                width = max(width, deviation**2)
            if unmeasured and rank in OTHER_MACHINE_RANKS:
                width = MAX_WIDTH
            if rank == 0 and len(runs) == NEAREST_RUNS:
                width = min(width, max(MIN_WIDTH, max(factors) / min(factors)))
        by_rank[rank] += factor * ideal
        log_width += factor * ideal * math.log(width)
        for phase_work in work:
            if phase_work.step == step:
                phases[phase_work.phase] += factor * rates.seconds(
                    {phase_work.unit: phase_work.amount}, threads
                )
    total, main_rank = sum(by_rank.values()), max(by_rank, key=by_rank.__getitem__)
    range_factor = math.exp(log_width / total / 2)
    number = min(NEAREST_RUNS, sum(rank == main_rank for rank, _ in ranked))
    return Duration(
        total, total / range_factor, total * range_factor, phases, _basis(main_rank, number, rates)
    )


def _tempered(own: float, usual: float, runs: int) -> tuple[float, float]:
    """Return the factor of a step after few runs here, which may have run beside other work, and
    its ratio to the measured one: the logarithmic mean with reference runs, which count once."""
    factor: float = (own**runs * usual) ** (1 / (runs + 1))
    return factor, max(factor / own, own / factor)


def _basis(rank: int, run_count: int, rates: Rates) -> str:
    """Describe the basis of an estimate in words."""
    basis = BASES[rank][1]
    if rank not in OTHER_MACHINE_RANKS:
        return basis.format(f"{run_count} run{'s' * (run_count != 1)}")
    if rates is REFERENCE_RATES:
        return f"{basis}; this machine is not measured yet"
    return basis + "; this machine was busy when it was measured" * (rates.load > BUSY)


def _ranked_runs(
    kind: str, config: Mapping[str, Any], threads: int, rates: Rates
) -> list[tuple[int, FinishedRun]]:
    """Return the finished runs of a kind with their rank, an index of `BASES`."""
    finished, model = finished_runs(kind), config.get("model", "")
    machine = _machine(finished, str(config.get("device", "auto")))
    environment = (machine, threads, kernel_version())
    ranked = []
    for run in (*finished, *(x for x in reference_runs() if x.kind == kind)):
        is_own = (run.machine, run.threads, run.kernels) == environment
        if is_own:  # current rates: they cancel out in the estimate
            run = run.model_copy(update={"rates": rates})
        rank = (0 if is_own else 1) if run.model == model else (2 if is_own else 3)
        ranked.append((rank, run))
    return ranked


def _nearest(
    ranked: Sequence[tuple[int, FinishedRun]], step: str, ideal: float
) -> tuple[int, list[FinishedRun]]:
    """Return the best rank among runs with this step, and its runs with the most similar work."""
    candidates = [
        (rank, abs(math.log(seconds / ideal)), run)
        for rank, run in ranked
        if step in run.seconds and (seconds := run.ideal(step)) > 0
        if {*run.steps[step]} != {"seconds"}
    ]
    candidates = [
        candidate
        for candidate in candidates
        if candidate[0] or candidate[1] <= math.log(MAX_RATIO_TO_ESTIMATED)
    ]
    best = min((rank for rank, _, _ in candidates), default=NO_RUNS_RANK)
    smallest_distance = min(
        (distance for rank, distance, _ in candidates if rank == best), default=0.0
    )
    nearest = [
        run
        for rank, n, run in candidates
        if rank == best and n <= smallest_distance + math.log(MAX_RATIO_TO_NEAREST)
    ]
    return best, nearest[:NEAREST_RUNS]


def decoded_bytes(facts: ModelFacts, tokens: int) -> float:
    """Return the bytes read to decode `tokens` one after the other."""
    return float(WEIGHT_BYTES * facts.weights_per_token * tokens)


def by_step(work: Sequence[PhaseWork]) -> dict[str, dict[Unit, float]]:
    """Sum the work by step and unit, including the start of the process."""
    steps = defaultdict[str, dict[Unit, float]](lambda: defaultdict(float))
    for phase_work in (PhaseWork("start", START_S, "seconds"), *work):
        if phase_work.amount:
            steps[phase_work.step][phase_work.unit] += phase_work.amount
    return {step: dict(amounts) for step, amounts in steps.items()}


def finished_runs(kind: str) -> list[FinishedRun]:
    """Return recent runs of a kind that estimates can learn from, newest first."""
    succeeded = queries.jobs([State.SUCCEEDED], kind)
    jobs = [x for x in succeeded if WORK in x.environment and x.attempts_made == 1][:RECENT_RUNS]
    steps = defaultdict[int, dict[str, float]](dict)
    for time in queries.step_times([job.id for job in jobs]):
        steps[time.job_id][time.step] = time.seconds
    runs = []
    for job in jobs:
        total_s = ((job.finished_at or 0) - (job.started_at or 0)) / 1000
        seconds = steps[job.id] | {REST: max(total_s - sum(steps[job.id].values()), 0.1)}
        environment = job.environment
        machine = environment.get("device")
        if machine == "cpu":
            machine = str(environment.get("cpu", "")).rpartition(", ")[0]  # without the cores
        facts = {
            "kind": kind,
            "model": str(job.config.get("model", "")),
            "machine": machine,
            "threads": environment.get("threads"),
            "seconds": seconds,
        }
        with suppress(ValidationError, TypeError):  # an imported run may be invalid
            runs.append(FinishedRun.model_validate(environment[WORK] | facts))
    return runs


@lru_cache
def reference_runs() -> tuple[FinishedRun, ...]:
    """Load the reference runs of the package: quick looks and defaults on one machine."""
    return tuple(RUNS.validate_json(REFERENCE_RUNS.read_bytes()))


def rates_here() -> Rates:
    """Return the measured rates of this machine, or the reference rates."""
    try:
        return Rates.model_validate_json(rates_file().read_bytes())
    except (OSError, ValidationError):
        return REFERENCE_RATES


def rates_file() -> Path:
    """Return the file with the measured rates. Its name depends on everything that changes them."""
    key = (processor(), version("torch"), kernel_version())
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
    return settings().cache_dir / f"rates-{digest}.json"


def _machine(finished: Sequence[FinishedRun], device: str) -> str:
    """Return the machine of a new run: the processor, or the GPU of the newest run on one."""
    on_cluster = settings().engine in CLUSTERS
    if not on_cluster and (device == "cpu" or not installed_gpus()):
        return processor()
    other_machines = (run.machine for run in finished if run.machine != processor())
    return next(other_machines, "" if device.startswith("cuda") else processor())


@lru_cache
def processor() -> str:
    """Return the model name of the processor."""
    name = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [
            line for line in cpu_info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0].split(":", 1)[1].strip() if names else name
    return name
