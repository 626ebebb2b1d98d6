"""A sweep: some fields of a kind's config are given several values, every combination is a run.

    slimscope submit sds --sweep pattern=2:4,70% --sweep base=wanda,sparsegpt --sweep seed=0..2

All runs are validated before any is queued, and queued in one transaction. What comes out is told
for each combination over its seeds:

    mean = sum x_i / n
    spread = sqrt(sum (x_i - mean)^2 / (n - 1))    the sample standard deviation
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from operator import itemgetter
from statistics import fmean, stdev
from typing import Any

from backend.errors import ConfigError, SlimscopeError
from backend.metric_key import MetricKey
from backend.queue import gate, permissions, service
from backend.queue.actor import Actor
from backend.settings import settings
from backend.store.queries import StoredResult
from backend.store.tables import Job, StepTime
from jobs.kind import Estimate, JobConfig, kind_named, stage_labels
from jobs.metrics import SECONDS
from jobs.submit import checked, new_run

MOST_FIELDS = 3
MOST_RUNS = 64
LETTERS = 4000  # of the list of values of one field
REST = "Together, and seeds"  # what no setting explains alone
FEWEST = 3  # combinations, below which nothing can be told apart
SEED = "seed"  # runs that differ in nothing else are repetitions of one another
RANGE = re.compile(r"(-?\d{1,9})\.\.(-?\d{1,9})")

Sweep = Mapping[str, Sequence[str]]  # field -> its values as they were written


# before the work ----------------------------------------------------------------------------------


def read(kind: str, pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The sweep that (field, values) pairs write: "2:4, 70%", or "0..2" for whole numbers. Raises
    `ConfigError` with the `field` at fault."""
    fields = kind_named(kind).config.model_fields
    sweep: dict[str, list[str]] = {}
    for name, text in pairs:
        field = name.strip().replace("-", "_")
        if not field:
            raise ConfigError("Some values have no field.", "", "Choose the field.", field)
        if field not in fields:
            raise ConfigError(f"There is no setting {name[:40]!r} to sweep.", "", "", field)
        if field in sweep:
            raise _bad_sweep(kind, field, "It is named twice.", "Write all its values in one list.")
        if len(sweep) == MOST_FIELDS:
            raise _bad_sweep(kind, field, f"At most {MOST_FIELDS} fields are swept at a time.")
        sweep[field] = _values(kind, field, text, fields[field].annotation is int)
    runs = prod(map(len, sweep.values()))
    if runs > MOST_RUNS:
        raise _bad_sweep(
            kind, [*sweep][-1], f"{runs} runs are more than {MOST_RUNS}.", "Sweep less."
        )
    return sweep


def _values(kind: str, field: str, text: str, whole: bool) -> list[str]:
    """The values in a list; commas inside quotes do not part them."""
    values: list[str] = []
    if len(text) > LETTERS:
        raise _bad_sweep(kind, field, f"The list has more than {LETTERS:,} letters.", "Sweep less.")
    try:
        items = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise _bad_sweep(
            kind,
            field,
            f"The list cannot be read: {error}.",
            "Write values as in 2:4, 70% or 0..2.",
        ) from error
    for value in items:
        span = RANGE.fullmatch(value.strip()) if whole else None
        first, last = (int(span[1]), int(span[2])) if span else (0, 0)
        if span and not 0 <= last - first < MOST_RUNS:
            raise _bad_sweep(
                kind,
                field,
                f"{value.strip()} does not count up, or gives more than {MOST_RUNS} values.",
                "Write it as in 0..2.",
            )
        values += map(str, range(first, last + 1)) if span else [value.strip()]
    if not all(values) or not values:
        raise _bad_sweep(kind, field, "A value is missing.", "Write values as in 2:4, 70% or 0..2.")
    return values


def _bad_sweep(kind: str, field: str, why: str, do: str = "") -> ConfigError:
    title = kind_named(kind).config.model_fields[field].title or field
    return ConfigError(f"{title} cannot be swept like this.", why, do, field)


@dataclass(frozen=True)
class SweepPlan:
    """Runs to be queued, what each will cost, and all together: their time, the largest memory."""

    configs: list[JobConfig]
    estimates: list[Estimate]
    estimate: Estimate

    @property
    def warnings(self) -> list[str]:
        """Risks of the runs, each once."""
        return [*self.estimate.warnings, *self.estimate.field_warnings.values()]

    def queue(self, kind: str, actor: Actor, name: str = "", priority: int = 0) -> list[Job]:
        """Add the runs to the queue, all or none. Raises ForbiddenError, RateLimitError: the actor
        may not, or not so often."""
        runs = [*map(new_run, self.configs, self.estimates)]
        cost = self.estimate
        return service.enqueue_all(kind, runs, actor, name=name, priority=priority, cost=cost)


def plan(kind: str, values: Mapping[str, Any], sweep: Sweep) -> SweepPlan:
    """The configs of all runs and what they will cost; an empty sweep is a single run. Raises
    `SlimscopeError` if one of the runs cannot be carried out, or two are the same."""
    seen: dict[str, str] = {}
    configs: list[JobConfig] = []
    estimates: list[Estimate] = []
    for chosen in product(*sweep.values()):
        combination = dict(zip(sweep, chosen, strict=True))
        described = ", ".join(f"{field} {value}" for field, value in combination.items())
        try:
            config, estimate = checked(kind, {**values, **combination})
        except SlimscopeError as error:
            if not described:
                raise
            raise type(error)(
                error.what, f"In the run with {described}: {error.why}", error.do, error.field
            ) from error
        if (same := config.model_dump_json()) in seen:
            raise _bad_sweep(
                kind,
                [*sweep][-1],
                f"{described} is the same run as {seen[same]}.",
                "Write each value once.",
            )
        seen[same] = described
        configs.append(config)
        estimates.append(estimate)
    side_by_side = min(settings().slots, len(estimates))
    together = replace(
        estimates[-1],
        seconds=sum(e.seconds for e in estimates) / side_by_side,
        low=sum(e.low for e in estimates) / side_by_side,
        high=sum(e.high for e in estimates) / side_by_side,
        bytes=max(e.bytes for e in estimates),
        notes=tuple(dict.fromkeys(text for e in estimates for text in e.notes)),
        warnings=tuple(dict.fromkeys(text for e in estimates for text in e.warnings)),
        field_warnings={
            name: e.field_warnings[name] for e in estimates for name in e.field_warnings
        },
        sizes=max((e.sizes for e in estimates if e.sizes), key=itemgetter(1), default=None),
    )
    return SweepPlan(configs, estimates, together)


def queue(
    kind: str,
    values: Mapping[str, Any],
    sweep: Sweep,
    actor: Actor,
    *,
    name: str = "",
    priority: int = 0,
) -> list[Job]:
    """Validates all runs, then adds them to the queue, all or none. Raises ForbiddenError,
    RateLimitError: the actor may not, or not so often; SlimscopeError: one of the runs cannot be
    carried out; `field` says where it is wrong."""
    permissions.require_adding(actor)
    gate.changes.spend(actor, spend=False)  # before the config is looked into, which takes time
    return plan(kind, values, sweep).queue(kind, actor, name, priority)


# after the work -----------------------------------------------------------------------------------


Losses = Mapping[int, Mapping[str, Sequence[float]]]  # job -> stage -> loss of each window


@dataclass(frozen=True)
class SweepRow:
    """One figure of one combination, over its seeds."""

    values: dict[str, Any]  # field -> value, of those that differ between the runs, but the seed
    stage: str
    metric: MetricKey
    mean: float
    spread: float | None  # sample standard deviation; None of a single run
    n: int  # runs that have this figure

    @property
    def label(self) -> str:
        """The combination in words: "2:4 · wanda"."""
        return " · ".join(str(value) for value in self.values.values()) or "all runs"


def mean_losses(jobs: Sequence[Job], losses: Losses, stage: str) -> dict[str, list[float]]:
    """Combination (`repr` of its values) -> loss of each window at a stage, the mean over seeds;
    none of combinations whose runs have not all stored them, of as many windows."""
    fields, found = varied(jobs), defaultdict[str, list[Sequence[float]]](list)
    for job in jobs:
        found[repr(combination(job, fields))].append(losses.get(job.id, {}).get(stage, ()))
    return {
        key: [fmean(window) for window in zip(*of_seeds, strict=True)]
        for key, of_seeds in found.items()
        if len({len(each) for each in of_seeds}) == 1 and len(of_seeds[0])
    }


def varied(jobs: Sequence[Job]) -> list[str]:
    """The config fields in which the runs differ, in the order of the config."""
    fields = dict.fromkeys(name for job in jobs for name in job.config)
    return [f for f in fields if any(j.config.get(f) != jobs[0].config.get(f) for j in jobs)]


def combination(job: Job, fields: Iterable[str]) -> dict[str, Any]:
    """What `job` has of the varied fields, without the seed."""
    return {field: job.config.get(field) for field in fields if field != SEED}


def table(
    jobs: Sequence[Job], results: Iterable[StoredResult], step_times: Iterable[StepTime] = ()
) -> list[SweepRow]:
    """Mean and spread over seeds of every figure of a sweep: by combination in the order of the
    runs, then by stage, then by metric."""
    of_job: dict[int, list[tuple[str, MetricKey, float]]] = {job.id: [] for job in jobs}
    for result in results:
        of_job[result.job_id].append((result.stage, result.metric, result.value))
    for time in step_times:
        of_job[time.job_id].append(("run", MetricKey(SECONDS, series=time.step), time.seconds))
    fields = varied(jobs)
    groups: dict[str, tuple[dict[str, Any], dict[tuple[str, MetricKey], list[float]]]] = {}
    for job in jobs:
        values = combination(job, fields)
        _, figures = groups.setdefault(repr(values), (values, {}))
        for stage, metric, value in of_job[job.id]:
            figures.setdefault((stage, metric), []).append(value)
    labels = stage_labels(jobs[0].kind) if jobs else ()
    places = {stage: place for place, stage in enumerate(labels)}
    last = len(places)  # where the figures of the run as a whole stand
    return [
        SweepRow(values, stage, metric, fmean(x), stdev(x) if len(x) > 1 else None, len(x))
        for values, figures in groups.values()
        for (stage, metric), x in sorted(figures.items(), key=lambda f: places.get(f[0][0], last))
    ]


def importance(rows: Sequence[SweepRow]) -> dict[str, float]:
    """Setting -> share of the differences between the combinations, the largest first, then the
    rest; empty where there are too few combinations, or no differences.

        share = sum over its values of n (mean of the value - mean of all)^2
                / sum over the combinations of (result - mean of all)^2

    It is the R^2 of a regression on the setting alone, each value a variable of its own (eta
    squared of a one-way analysis of variance). In a full grid the shares add up with the rest,
    which settings explain only together, or seeds.
    """
    if len(rows) < FEWEST or len(rows[0].values) < 2:
        return {}
    middle = fmean(row.mean for row in rows)
    total = sum((row.mean - middle) ** 2 for row in rows)
    if total == 0:
        return {}
    shares = {}
    for field in rows[0].values:
        by_value = defaultdict[str, list[float]](list)
        for row in rows:
            by_value[str(row.values[field])].append(row.mean)
        between = (len(found) * (fmean(found) - middle) ** 2 for found in by_value.values())
        shares[field] = sum(between) / total
    ordered = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return ordered | {REST: max(0.0, 1 - sum(ordered.values()))}
