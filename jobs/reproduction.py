"""Reproduction of a run with its original config, settings and texts, and comparison of the two.

The config names the texts, and the settings locate them. The record of a run contains their sha256,
which reveals changed texts. The same config, texts, threads and versions give identical weights on
the same type of machine.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from backend.errors import SlimscopeError
from backend.live.address import WORKBENCH
from backend.queue import gate, permissions, service
from backend.queue.actor import Actor
from backend.queue.launcher import VARIABLES
from backend.store import queries
from backend.store.json_column import check_intact
from backend.store.states import State
from backend.store.tables import KEPT_REASON, Job
from jobs.benchmark.report import decoder_reports
from jobs.estimates import WORK
from jobs.fields.models import needed_runs
from jobs.kind import get_kind, kinds, stage_labels
from jobs.metrics import metric
from jobs.submit import estimate, validate_config

Outcome = Literal["equal", "different", "open"]
WEIGHTS = "weights_sha256"
IGNORED = {  # keys of the environment that do not describe where a run took place
    "settings",
    VARIABLES,
    service.ESTIMATED_SECONDS,
    service.ESTIMATED_BYTES,
    *service.SIZES,
    "text",
    "warnings",
    WEIGHTS,
    KEPT_REASON,
    WORKBENCH,
    WORK,
}
MAX_LISTED = 4  # differences listed in the summary


def reproduce(run: str | int, actor: Actor) -> Job:
    """Queue a new run with the config, plan and settings of an existing run.

    The new run checks if its model and texts are available, since its settings may differ from the
    current ones.

    Raises:
        ForbiddenError, RateLimitError: the actor lacks permission or submits too often.
        ConfigError: the config is no longer valid.
    """
    original = queries.job(run)
    permissions.require_adding(actor)
    gate.changes.spend(actor, spend=False)  # checked first, because validation takes time
    check_intact(original.config)
    config = validate_config(original.kind, original.config)
    record = config.model_dump(mode="json")
    new_run = service.NewRun(record, needed_runs(record), queries.plan(original.id))
    cost = None
    with suppress(SlimscopeError):  # no estimate under the current settings
        cost = estimate(get_kind(original.kind), config)
    return service.enqueue(
        original.kind, new_run, actor, name=original.name, parent=original, cost=cost
    )


@dataclass(frozen=True)
class Difference:
    """A difference between two runs; None if a run does not have the value."""

    what: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Reproduction:
    """Comparison of a run with its reproduction.

    Attributes:
        first: name of the original run.
        second: name of the reproduction.
        outcome: "equal" if weights, texts and all figures are equal; "open" until both runs have
            succeeded.
        weights: different weights.
        texts: different texts.
        results: different figures and details, without measured times and speeds.
        compared: number of compared figures.
        config: different config fields.
        environment: differences in device, threads, versions; they do not affect the outcome.
    """

    first: str
    second: str
    outcome: Outcome
    weights: Difference | None
    texts: tuple[Difference, ...]
    results: tuple[Difference, ...]
    compared: int
    config: tuple[Difference, ...]
    environment: tuple[Difference, ...]

    @property
    def differences(self) -> list[Difference]:
        """All differences: results first, then possible causes."""
        weights = [self.weights] if self.weights else []
        return [*weights, *self.texts, *self.results, *self.config, *self.environment]

    def __str__(self) -> str:
        both = f"{self.first} and {self.second}"
        if self.outcome == "open":
            return f"{both} can be compared after both have succeeded."
        if self.outcome == "equal":
            return (
                f"{both} are equal: weights, texts and all {self.compared} figures. {self._why()}"
            )
        parts = ["different weights"] if self.weights else []
        parts += [f"different {text.what}" for text in self.texts]
        if number := len(self.results):
            parts.append(f"{number} different figure{'s' * (number != 1)}")
        return f"{both} differ: {', '.join(parts)}. {self._why()}"

    def _why(self) -> str:
        differences = [*self.config, *self.environment]
        if not differences:
            return "Recorded config and environment are the same."
        listed = "; ".join(f"{x.what} {x.first} → {x.second}" for x in differences[:MAX_LISTED])
        if len(differences) > MAX_LISTED:
            listed += f"; and {len(differences) - MAX_LISTED} more"
        return f"Differences in config and environment: {listed}."

    def record(self) -> dict[str, Any]:
        """Return JSON data, including the summary as `text`."""
        return asdict(self) | {"text": str(self)}


def compare(first: str | int, second: str | int) -> Reproduction:
    """Compare two runs by their records."""
    first_run, second_run = queries.job(first), queries.job(second)
    first_values, first_notes = _figures(first_run)
    second_values, second_notes = _figures(second_run)
    weights = next(_differences(_weights(first_run), _weights(second_run)), None)
    texts = tuple(_differences(_texts(first_run), _texts(second_run)))
    results = (*_differences(first_values, second_values), *_differences(first_notes, second_notes))
    is_equal = not (weights or texts or results)
    both_succeeded = first_run.state == second_run.state == State.SUCCEEDED
    return Reproduction(
        first_run.run,
        second_run.run,
        "open" if not both_succeeded else "equal" if is_equal else "different",
        weights,
        texts,
        results,
        len(first_values | second_values),
        tuple(_differences(_config(first_run), _config(second_run))),
        tuple(_differences(_environment(first_run), _environment(second_run))),
    )


def reproduced(job: Job) -> Reproduction | None:
    """Compare a reproduction with the original run; None if the run is not a reproduction."""
    return compare(job.parent, job.id) if job.parent is not None else None


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield the keys with different values, in order."""
    for name in {**first, **second}:
        if first.get(name) != second.get(name):
            yield Difference(name, first.get(name), second.get(name))


def _weights(job: Job) -> dict[str, Any]:
    return {"sha256 of the weights": job.environment.get(WEIGHTS)}


def _texts(job: Job) -> dict[str, Any]:
    texts = job.environment.get("text") or {}
    return {f"{role} text": text.get("sha256") for role, text in texts.items()}


def _figures(job: Job) -> tuple[dict[str, float], dict[str, Any]]:
    """Return all results except measured times and speeds, and their details."""
    stages = stage_labels(job.kind)
    values: dict[str, float] = {}
    details: dict[str, Any] = {}
    for row in queries.results([job.id]):
        if not metric(row.metric).timed:
            label = f"{metric(row.metric).label}, {stages.get(row.stage, row.stage)}"
            values[label] = row.value
            details |= {f"{label}: {name}": value for name, value in row.details.items()}
    if job.kept_stage:
        details["kept stage"] = job.kept_stage
    for report in decoder_reports(job.id):
        details |= {f"{report.label}: {name}": value for name, value in report.untimed.items()}
    return values, details


def _config(job: Job) -> dict[str, Any]:
    """Return the config of a run, with defaults for fields that did not exist yet."""
    kind = kinds().get(job.kind)
    fields = kind.config.model_fields if kind else {}
    return {name: info.default for name, info in fields.items()} | job.config


def _environment(job: Job) -> dict[str, Any]:
    """Return the machine and versions of a run as a flat dict: "torch" instead of "versions"."""
    environment: dict[str, Any] = {}
    for name, value in job.environment.items():
        if name not in IGNORED:
            environment |= value if isinstance(value, Mapping) else {name: value}
    return environment
