"""A sweep: several values for some config fields; every combination is a run.

    slimscope submit sds --sweep pattern=2:4,70% --sweep base=wanda,sparsegpt --sweep seed=0..2

All runs are validated before any is queued, and queued in one transaction. Results of a combination
are aggregated over its seeds:

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
from jobs.kind import Estimate, JobConfig, get_kind, stage_labels
from jobs.metrics import SECONDS
from jobs.submit import check_and_estimate, new_run

MAX_FIELDS = 3
MAX_RUNS = 64
MAX_CHARACTERS = 4000  # length of the list of values of a field
UNEXPLAINED = "Combinations and seeds"  # variance that no setting explains alone
MIN_COMBINATIONS = 3  # fewer do not show the importance of settings
SEED = "seed"  # runs that differ only in their seed are repetitions
RANGE = re.compile(r"(-?\d{1,9})\.\.(-?\d{1,9})")

Sweep = Mapping[str, Sequence[str]]  # field -> values as text


# submission ---------------------------------------------------------------------------------------


def read(kind: str, pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Parse (field, values) pairs, with values such as "2:4, 70%", or "0..2" for integers. Raises
    `ConfigError` with the invalid `field`."""
    fields = get_kind(kind).config.model_fields
    sweep: dict[str, list[str]] = {}
    for name, text in pairs:
        field = name.strip().replace("-", "_")
        if not field:
            raise ConfigError("Some values have no field.", "", "Choose a field.", field)
        if field not in fields:
            raise ConfigError(f"There is no setting {name[:40]!r} to sweep.", "", "", field)
        if field in sweep:
            raise _invalid_sweep(kind, field, "It is given twice.", "Write its values in one list.")
        if len(sweep) == MAX_FIELDS:
            raise _invalid_sweep(kind, field, f"A sweep has at most {MAX_FIELDS} fields.")
        sweep[field] = _parse_values(kind, field, text, fields[field].annotation is int)
    run_count = prod(map(len, sweep.values()))
    if run_count > MAX_RUNS:
        raise _invalid_sweep(
            kind,
            [*sweep][-1],
            f"It has {run_count} runs; the maximum is {MAX_RUNS}.",
            "Give fewer values.",
        )
    return sweep


def _parse_values(kind: str, field: str, text: str, is_integer: bool) -> list[str]:
    """Parse a comma-separated list of values, which may be quoted."""
    values: list[str] = []
    if len(text) > MAX_CHARACTERS:
        why = f"The list has more than {MAX_CHARACTERS:,} characters."
        raise _invalid_sweep(kind, field, why, "Give fewer values.")
    try:
        items = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise _invalid_sweep(
            kind,
            field,
            f"The list cannot be read: {error}.",
            "Write values such as 2:4, 70% or 0..2.",
        ) from error
    for value in items:
        span = RANGE.fullmatch(value.strip()) if is_integer else None
        first, last = (int(span[1]), int(span[2])) if span else (0, 0)
        if span and not 0 <= last - first < MAX_RUNS:
            raise _invalid_sweep(
                kind,
                field,
                f"{value.strip()} does not count up, or has more than {MAX_RUNS} values.",
                "Write a range such as 0..2.",
            )
        values += map(str, range(first, last + 1)) if span else [value.strip()]
    if not all(values) or not values:
        do = "Write values such as 2:4, 70% or 0..2."
        raise _invalid_sweep(kind, field, "A value is missing.", do)
    return values


def _invalid_sweep(kind: str, field: str, why: str, do: str = "") -> ConfigError:
    title = get_kind(kind).config.model_fields[field].title or field
    return ConfigError(f"The sweep of {title} is invalid.", why, do, field)


@dataclass(frozen=True)
class SweepPlan:
    """Planned runs: configs, estimates, and the estimate of the whole sweep (total time, largest
    memory)."""

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


def combinations(sweep: Sweep) -> list[dict[str, str]]:
    """Return every combination of values; a single empty one for an empty sweep."""
    return [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]


def plan(kind: str, values: Mapping[str, Any], sweep: Sweep) -> SweepPlan:
    """Validate and estimate all runs of a sweep; an empty sweep is a single run. Raises
    `SlimscopeError` if a run is invalid or two runs are the same."""
    description_of_config: dict[str, str] = {}
    configs: list[JobConfig] = []
    estimates: list[Estimate] = []
    for combination in combinations(sweep):
        description = ", ".join(f"{field} {value}" for field, value in combination.items())
        try:
            config, estimate = check_and_estimate(kind, {**values, **combination})
        except SlimscopeError as error:
            if not description:
                raise
            raise type(error)(
                error.what, f"In the run with {description}: {error.why}", error.do, error.field
            ) from error
        if (config_json := config.model_dump_json()) in description_of_config:
            raise _invalid_sweep(
                kind,
                [*sweep][-1],
                f"{description} is the same run as {description_of_config[config_json]}.",
                "Write each value once.",
            )
        description_of_config[config_json] = description
        configs.append(config)
        estimates.append(estimate)
    parallel_runs = min(settings().slots, len(estimates))
    total = replace(
        estimates[-1],
        seconds=sum(x.seconds for x in estimates) / parallel_runs,
        low=sum(x.low for x in estimates) / parallel_runs,
        high=sum(x.high for x in estimates) / parallel_runs,
        bytes=max(x.bytes for x in estimates),
        notes=tuple(dict.fromkeys(text for x in estimates for text in x.notes)),
        warnings=tuple(dict.fromkeys(text for x in estimates for text in x.warnings)),
        field_warnings={
            name: x.field_warnings[name] for x in estimates for name in x.field_warnings
        },
        sizes=max((x.sizes for x in estimates if x.sizes), key=itemgetter(1), default=None),
    )
    return SweepPlan(configs, estimates, total)


def queue(
    kind: str,
    values: Mapping[str, Any],
    sweep: Sweep,
    actor: Actor,
    *,
    name: str = "",
    priority: int = 0,
) -> list[Job]:
    """Validate all runs of a sweep and queue them in one transaction.

    Raises:
        ForbiddenError, RateLimitError: the actor lacks permission or submits too often.
        SlimscopeError: a run is invalid; `field` names the invalid field.
    """
    permissions.require_adding(actor)
    gate.changes.spend(actor, spend=False)  # checked first, because validation takes time
    return plan(kind, values, sweep).queue(kind, actor, name, priority)


# results ------------------------------------------------------------------------------------------


Losses = Mapping[int, Mapping[str, Sequence[float]]]  # run id -> stage -> loss of each window


@dataclass(frozen=True)
class SweepRow:
    """A metric of a combination, aggregated over seeds.

    Attributes:
        values: values of the swept fields except the seed.
        stage: stage of the results.
        metric: key of the results.
        mean: mean over seeds.
        spread: sample standard deviation; None for a single run.
        n: number of runs with this result.
    """

    values: dict[str, Any]
    stage: str
    metric: MetricKey
    mean: float
    spread: float | None
    n: int

    @property
    def label(self) -> str:
        """Label of the combination, such as "2:4 · wanda"."""
        return " · ".join(str(value) for value in self.values.values()) or "all runs"


def mean_losses(jobs: Sequence[Job], losses: Losses, stage: str) -> dict[str, list[float]]:
    """Return the loss of each window at a stage, averaged over seeds, for each combination (`repr`
    of its values). Combinations with missing losses or different numbers of windows are skipped."""
    fields, groups = varied(jobs), defaultdict[str, list[Sequence[float]]](list)
    for job in jobs:
        groups[repr(combination(job, fields))].append(losses.get(job.id, {}).get(stage, ()))
    return {
        key: [fmean(window) for window in zip(*seed_losses, strict=True)]
        for key, seed_losses in groups.items()
        if len({len(window_losses) for window_losses in seed_losses}) == 1 and len(seed_losses[0])
    }


def varied(jobs: Sequence[Job]) -> list[str]:
    """Return the config fields in which the runs differ, in order."""
    fields = dict.fromkeys(name for job in jobs for name in job.config)
    return [f for f in fields if any(j.config.get(f) != jobs[0].config.get(f) for j in jobs)]


def combination(job: Job, fields: Iterable[str]) -> dict[str, Any]:
    """Return a run's values of the varied fields, without the seed."""
    return {field: job.config.get(field) for field in fields if field != SEED}


def table(
    jobs: Sequence[Job], results: Iterable[StoredResult], step_times: Iterable[StepTime] = ()
) -> list[SweepRow]:
    """Aggregate all results of a sweep over seeds. Rows are sorted by combination, stage and
    metric, in the order of runs and stages."""
    figures_of_job: dict[int, list[tuple[str, MetricKey, float]]] = {job.id: [] for job in jobs}
    for result in results:
        figures_of_job[result.job_id].append((result.stage, result.metric, result.value))
    for step_time in step_times:
        figures_of_job[step_time.job_id].append(
            ("run", MetricKey(SECONDS, series=step_time.step), step_time.seconds)
        )
    fields = varied(jobs)
    groups: dict[str, tuple[dict[str, Any], dict[tuple[str, MetricKey], list[float]]]] = {}
    for job in jobs:
        values = combination(job, fields)
        _, figures = groups.setdefault(repr(values), (values, {}))
        for stage, metric, value in figures_of_job[job.id]:
            figures.setdefault((stage, metric), []).append(value)
    labels = stage_labels(jobs[0].kind) if jobs else ()
    position_of_stage = {stage: position for position, stage in enumerate(labels)}
    last_position = len(position_of_stage)  # results of the whole run come last
    rows = []
    for values, figures in groups.values():
        for stage, metric in sorted(
            figures, key=lambda key: position_of_stage.get(key[0], last_position)
        ):
            x = figures[stage, metric]
            spread = stdev(x) if len(x) > 1 else None
            rows.append(SweepRow(values, stage, metric, fmean(x), spread, len(x)))
    return rows


def importance(rows: Sequence[SweepRow]) -> dict[str, float]:
    """Return the share of the variance between combinations explained by each setting, largest
    first, followed by the unexplained share. Empty for too few combinations or equal results.

        share = sum over its values of n (mean of the value - mean of all)^2
                / sum over the combinations of (result - mean of all)^2

    The share is the R^2 of a regression on the setting as a categorical variable (eta squared of a
    one-way analysis of variance). In a full grid, all shares including the unexplained one (due to
    combinations of settings, and seeds) add up to 1.
    """
    if len(rows) < MIN_COMBINATIONS or len(rows[0].values) < 2:
        return {}
    mean = fmean(row.mean for row in rows)
    total = sum((row.mean - mean) ** 2 for row in rows)
    if total == 0:
        return {}
    shares = {}
    for field in rows[0].values:
        by_value = defaultdict[str, list[float]](list)
        for row in rows:
            by_value[str(row.values[field])].append(row.mean)
        between = (len(values) * (fmean(values) - mean) ** 2 for values in by_value.values())
        shares[field] = sum(between) / total
    ordered = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return ordered | {UNEXPLAINED: max(0.0, 1 - sum(ordered.values()))}
