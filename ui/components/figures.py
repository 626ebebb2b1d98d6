"""The figures a run ended with, by stage and metric, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from backend.store.tables import Job, Result
from jobs.kinds import Kind, kinds
from ui.components.config_form import advanced, owner
from ui.format import duration, number, share

RUN = "run"  # the stage of figures that belong to the run as a whole
KEPT, SECONDS = "kept", "seconds/"
INTERNAL = {KEPT, "work"}  # figures that serve estimates and other figures
SHARED = ("JobConfig", "TextConfig")


@dataclass(frozen=True)
class Metric:
    """How a figure is called and written; its unit stands in the title."""

    title: str
    write: Callable[[float | None], str] = number


METRICS: dict[str, Metric] = {
    "perplexity": Metric("Perplexity"),
    "bits_per_byte": Metric("Bits per byte"),
    "heldout_loss": Metric("Held-out loss"),
    "relative_error": Metric("Relative error"),
    "zero_share": Metric("Zeros", share),
}


def metric(name: str) -> Metric:
    """The metric of that name; one nobody described is called by its name."""
    known = METRICS.get(name)
    if known or not name.startswith(SECONDS):
        return known or Metric(name.replace("_", " ").replace("/", ", ").capitalize())
    return Metric(name.removeprefix(SECONDS).replace("_", " ").capitalize(), duration)


def kind_of(job: Job) -> Kind | None:
    """The kind of a run; None when its plugin is not installed any more."""
    return kinds().get(job.kind)


def kind_title(job: Job) -> str:
    kind = kind_of(job)
    return kind.title if kind else job.kind


def choices(job: Job) -> list[str]:
    """What was chosen of the method itself, such as "2:4" and "wanda": fields that are neither
    advanced nor shared by all kinds."""
    kind = kind_of(job)
    if kind is None:
        return []
    return [
        str(job.config[name])
        for name, info in kind.config.model_fields.items()
        if name != "model" and name in job.config and not advanced(info)
        if owner(kind.config, name).__name__ not in SHARED
    ]


class Figures:
    """All results of one run.

    Args:
        kind: names the stages and their order; None keeps the order of the rows.
    """

    def __init__(self, kind: Kind | None, results: Iterable[Result]) -> None:
        self.labels = dict(kind.stages) if kind else {}
        self.rows = {(r.stage, r.metric): r for r in results}

    def get(self, stage: str, name: str) -> Result | None:
        return self.rows.get((stage, name))

    def value(self, stage: str | None, name: str) -> float | None:
        row = self.rows.get((stage or "", name))
        return row.value if row else None

    @property
    def stages(self) -> list[str]:
        """The stages that have figures, in the order the model passes through them."""
        found = {stage for stage, _ in self.rows if stage != RUN}
        return [s for s in self.labels if s in found] + sorted(found - set(self.labels))

    @property
    def metrics(self) -> list[str]:
        """The metrics measured at stages, the known ones first."""
        found = {name for stage, name in self.rows if stage != RUN}
        return [m for m in METRICS if m in found] + sorted(found - set(METRICS))

    def label(self, stage: str) -> str:
        return self.labels.get(stage, stage.replace("_", " ").capitalize())

    @property
    def first(self) -> str | None:
        """The stage everything is compared with: the untouched model."""
        return self.stages[0] if self.stages else None

    @property
    def kept(self) -> str | None:
        """The stage whose weights the run kept; None until it has said so."""
        row = self.get(RUN, KEPT)
        return str(row.details["kept"]) if row else None

    @property
    def of_run(self) -> dict[str, Result]:
        """Figures of the run as a whole, without times."""
        return {
            name: row
            for (stage, name), row in self.rows.items()
            if stage == RUN and name not in INTERNAL and not name.startswith(SECONDS)
        }

    @property
    def seconds(self) -> dict[str, float]:
        """Step -> seconds it took, the longest first."""
        found = {
            name.removeprefix(SECONDS): row.value
            for (stage, name), row in self.rows.items()
            if stage == RUN and name.startswith(SECONDS)
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def final(self, name: str = "perplexity") -> float | None:
        """The figure of the kept stage."""
        return self.value(self.kept, name)

    def change(self, name: str = "perplexity") -> float | None:
        """By which share the kept stage differs from the untouched model."""
        before, after = self.value(self.first, name), self.final(name)
        return after / before - 1 if before and after is not None else None
