"""A run once more, with its frozen config, settings and texts, and whether the same came out.

The config names the texts and the settings say where they lie; the record of a run holds their
sha256, so a text that has changed since is told as such. Same config, texts, threads and versions
on the same kind of machine give the same weights, byte for byte.
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
from jobs.fields.models import needed_runs
from jobs.kind import Estimate, JobConfig, kind_named, kinds, stage_labels
from jobs.metrics import metric
from jobs.submit import estimate, validated

Outcome = Literal["equal", "different", "open"]
WEIGHTS = "weights_sha256"
NOT_A_PLACE = {  # of the environment
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
}
SHOWN = 4


def reproduce(run: str | int, actor: Actor) -> Job:
    """Adds a new run with the frozen config, plan and settings of an old one, which stays as it is.

    Whether its model and texts are still there is for the run to find out: under its own settings,
    which need not be today's. Raises ForbiddenError, RateLimitError: the actor may not, or not so
    often; ConfigError: the config is none any more."""
    old = queries.job(run)
    permissions.require_adding(actor)
    gate.changes.spend(actor, spend=False)  # before the config is looked into, which takes time
    check_intact(old.config)
    config = validated(old.kind, old.config)
    stored = config.model_dump(mode="json")
    again = service.NewRun(stored, needed_runs(stored), queries.plan(old.id))
    cost = _cost(old.kind, config)
    return service.enqueue(old.kind, again, actor, name=old.name, parent=old, cost=cost)


def _cost(kind: str, config: JobConfig) -> Estimate | None:
    """What it will take; None where it cannot be told under today's settings."""
    with suppress(SlimscopeError):
        return estimate(kind_named(kind), config)
    return None


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same; None where a run does not have it."""

    what: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Reproduction:
    """How a run and its reproduction compare.

    Attributes:
        outcome: equal when weights, texts and all figures are; open until both have succeeded.
        results: figures that differ, of `compared`, and what is noted of them; those that a clock
            measured are left out.
        environment: what differs in device, threads, versions and so on; told, not judged.
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
        """All of them: outcome first, then what may have caused it."""
        weights = [self.weights] if self.weights else []
        return [*weights, *self.texts, *self.results, *self.config, *self.environment]

    def __str__(self) -> str:
        both = f"{self.first} and {self.second}"
        if self.outcome == "open":
            return f"{both} can be compared once both have succeeded."
        if self.outcome == "equal":
            return (
                f"{both} are equal: weights, texts and all {self.compared} figures. {self._why()}"
            )
        return f"{both} differ: {', '.join(self._what())}. {self._why()}"

    def _what(self) -> list[str]:
        parts = ["other weights"] if self.weights else []
        parts += [f"another {text.what}" for text in self.texts]
        return [*parts, *([f"{len(self.results)} figures differ"] if self.results else [])]

    def _why(self) -> str:
        changed = [*self.config, *self.environment]
        if not changed:
            return "Config and environment are the same as far as they are recorded."
        named = "; ".join(f"{d.what} {d.first} → {d.second}" for d in changed[:SHOWN])
        more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        return f"What differs around it: {named}{more}."

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"text": str(self)}


def compare(first: str | int, second: str | int) -> Reproduction:
    """Compares two runs by what is recorded of them."""
    one, other = queries.job(first), queries.job(second)
    (mine, my_notes), (theirs, their_notes) = _figures(one), _figures(other)
    weights = next(_different(_weights(one), _weights(other)), None)
    texts = tuple(_different(_texts(one), _texts(other)))
    results = (*_different(mine, theirs), *_different(my_notes, their_notes))
    same = not (weights or texts or results)
    ended = one.state == other.state == State.SUCCEEDED
    return Reproduction(
        one.run,
        other.run,
        "open" if not ended else "equal" if same else "different",
        weights,
        texts,
        results,
        len(mine | theirs),
        tuple(_different(_config(one), _config(other))),
        tuple(_different(_place(one), _place(other))),
    )


def reproduced(job: Job) -> Reproduction | None:
    """The comparison of a run with the one it repeats; None when it repeats none."""
    return compare(job.parent, job.id) if job.parent is not None else None


def _different(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Difference]:
    """What has not the same value in both, in their order."""
    for what in {**one, **other}:
        if one.get(what) != other.get(what):
            yield Difference(what, one.get(what), other.get(what))


def _weights(job: Job) -> dict[str, Any]:
    return {"sha256 of the weights": job.environment.get(WEIGHTS)}


def _texts(job: Job) -> dict[str, Any]:
    texts = job.environment.get("text") or {}
    return {f"{role} text": about.get("sha256") for role, about in texts.items()}


def _figures(job: Job) -> tuple[dict[str, float], dict[str, Any]]:
    """Every figure that is not a matter of the clock, and what is noted of each."""
    stages = stage_labels(job.kind)
    values: dict[str, float] = {}
    notes: dict[str, Any] = {}
    for row in queries.results([job.id]):
        if not metric(row.metric).timed:
            what = f"{metric(row.metric).label}, {stages.get(row.stage, row.stage)}"
            values[what] = row.value
            notes |= {f"{what}: {name}": value for name, value in row.details.items()}
    if job.kept_stage:
        notes["kept stage"] = job.kept_stage
    for report in decoder_reports(job.id):
        notes |= {f"{report.label}: {name}": value for name, value in report.untimed.items()}
    return values, notes


def _config(job: Job) -> dict[str, Any]:
    """The config as it is read today: a field that is newer than the run has its default."""
    kind = kinds().get(job.kind)
    fields = kind.config.model_fields if kind else {}
    return {name: info.default for name, info in fields.items()} | job.config


def _place(job: Job) -> dict[str, Any]:
    """Where a run took place, without its nesting: "torch" of "versions"."""
    flat: dict[str, Any] = {}
    for name, value in job.environment.items():
        if name not in NOT_A_PLACE:
            flat |= value if isinstance(value, Mapping) else {name: value}
    return flat
