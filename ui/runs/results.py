"""The results of a run, by stage and metric, whatever its kind; and its stages compared on the same
windows of text."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial

import numpy as np
import pandas as pd
from pydantic.fields import FieldInfo

from backend.errors import SlimscopeError
from backend.metric_key import MetricKey
from backend.models.sources.spec import TOY
from backend.statistics.paired import WINDOW_LOSSES, paired_ratio
from backend.statistics.ratio import PairedRatio
from backend.store import queries, tensors
from backend.store.queries import StoredResult
from backend.store.states import State
from backend.store.tables import Job, StepTime
from jobs.benchmark import kind as benchmark
from jobs.fields.models import first_model
from jobs.kind import JobConfig, KeyFigure, Kind, capitalized, kinds
from jobs.metrics import (
    BITS_PER_BYTE,
    BITS_PER_WEIGHT,
    BYTES,
    PARAMETER_SHARE,
    PARAMETERS,
    PERPLEXITY,
    SPEED_UP,
    TOKENS_PER_SECOND,
    Metric,
    metric,
    ordered,
)
from jobs.wording import StageComparison
from ui.format import NONE, duration, number, size, threads
from ui.widgets.config_form import advanced, extra, owner, title

RUN = "run"  # the stage of figures that belong to the run as a whole
SHARED = ("JobConfig", "ContextLength", "CalibrationText", "EvaluationText")
ALWAYS = 2  # of the fields of a method, whatever their values
UNTOLD = (None, "", "auto", "same")
WRITE: dict[str, Callable[[float | None], str]] = {
    "number": number,
    "share": lambda value: NONE if value is None else percent(value),
    "bytes": size,
    "seconds": duration,
    "count": lambda value: NONE if value is None else f"{value:,.0f}",
}
# families of what compression is for
GAINS = (BYTES, *(key.family for key in (BITS_PER_WEIGHT, SPEED_UP, TOKENS_PER_SECOND)))
WINDOW_METRICS = (PERPLEXITY, BITS_PER_BYTE)  # figures of the losses that are compared in pairs


def percent(value: float) -> str:
    """A share in %, with two decimals, or two digits where these would say 0."""
    is_small = 0 < abs(value) < 1e-3
    return number(100 * value, 2) if is_small else f"{100 * value:.2f}"


def format_value(metric: Metric, value: float | None) -> str:
    """The value in the unit of the metric's title."""
    return WRITE[metric.form](value)


def format_stderr(metric: Metric, stderr: float | None) -> str:
    """The standard error in the unit of the value; empty where there is none."""
    return number(metric.scale * stderr, 2) if stderr else ""


def display_units(points: pd.DataFrame) -> pd.DataFrame:
    """The points of curves (`frames.curves`) as their metrics are written: shares in per cent."""
    scales = {family: metric(MetricKey(family)).scale for family in points["family"].unique()}
    factors = points["family"].map(scales).astype(float)
    return points.assign(value=factors * points["value"].astype(float))


def size_before(source: float, parameters: float) -> str:
    """ "269 MB in 16 bits", whether its source holds 4 or 32; the size of the source where the
    `parameters` are not known (0)."""
    return f"{size(2 * parameters)} in 16 bits" if parameters else size(source or None)


def size_saved(saved: float, parameters: float) -> str:
    """ "538 MB in 32 bits (smaller as GGUF)", or its size alone where it is packed."""
    wide = parameters and saved > 0.9 * 4 * parameters
    return f"{size(saved)}{' in 32 bits (smaller as GGUF)' if wide else ''}"


def find_job(run: str) -> Job | None:
    """The run of that name; None where there is none."""
    try:
        return queries.job(run) if run else None
    except SlimscopeError:
        return None


def kind_of(job: Job) -> Kind | None:
    """The kind of a run; None when its plugin is no longer installed."""
    return kinds().get(job.kind)


def kind_title(job: Job) -> str:
    kind = kind_of(job)
    return kind.title if kind else job.kind


def stages_of(job: Job) -> dict[str, str]:
    """Stage -> label, in the order of the method."""
    kind = kind_of(job)
    return dict(kind.stages) if kind else {}


def of_toy(job: Job) -> bool:
    """Whether it works on the toy model, whose figures say nothing of real ones."""
    return first_model(base_model(job)) == TOY


def real_first(jobs: Iterable[Job]) -> Iterator[Job]:
    """Those of real models, then those of the toy."""
    toys = []
    for job in jobs:
        if of_toy(job):
            toys.append(job)
        else:
            yield job
    yield from toys


def fields_of(kind: str) -> dict[str, FieldInfo]:
    """The fields of the config of a kind; none when its plugin is no longer installed."""
    known = kinds().get(kind)
    return known.config.model_fields if known else {}


def setting_title(kind: str, name: str) -> str:
    """The title of a config field, or its name where it is not known."""
    fields = fields_of(kind)
    return title(name, fields[name]) if name in fields else name


def base_model(job: Job) -> str:
    """The model that was compressed; of an evaluation, that of the run it measured."""
    return str((job.environment or {}).get("base") or job.config.get("model") or NONE)


def setting_summary(job: Job) -> list[str]:
    """What was chosen of the method itself, such as "2:4", "wanda" or "group size 128": of the
    fields that are neither advanced nor shared by all kinds the first two (or what the kind tells
    first), and those that are not at their default. A switch or an empty text says nothing by
    itself. A seed that is not 0 tells the runs of a sweep apart."""
    kind = kind_of(job)
    fields = _own_fields(kind.config) if kind else []
    first = kind.headline(job.config) if kind and kind.headline else []
    told = first + [
        _chosen(info.title or name, str(extra(info).get("unit", "")), value)
        for place, (name, info) in enumerate(fields)
        if (value := job.config.get(name)) not in UNTOLD
        if not (kind and name in kind.headline_fields)
        if value != info.default or (place < ALWAYS and not first)
    ]
    seed = job.config.get("seed")
    return [*told, f"seed {seed}"] if seed else told


@lru_cache
def _own_fields(config: type[JobConfig]) -> list[tuple[str, FieldInfo]]:
    """Name and description of what can be chosen of a method; asked for once a row of a table."""
    return [
        (name, info)
        for name, info in config.model_fields.items()
        if name != "model" and not advanced(info) and info.annotation is not bool
        if owner(config, name).__name__ not in SHARED
    ]


def _chosen(title: str, of: str, value: object) -> str:
    """A text as it is, a number with what it counts: "3 bits", "group size 64"."""
    if not isinstance(value, int | float):
        return str(value)
    title = title.lower()
    if not of or not title.endswith(of):
        return f"{title} {value:g}"
    return f"{value:g} {of.removesuffix('s') if value == 1 else of}"


class RunResults:
    """All results of one run, which names the stage it kept; the kind names the stages and their
    order."""

    def __init__(
        self,
        kind: Kind | None,
        results: Iterable[StoredResult],
        job: Job | None = None,
        step_times: Iterable[StepTime] = (),
    ) -> None:
        self.kept = job.kept_stage if job else None  # the stage whose weights the run saved
        self.ended = job is not None and job.state == State.SUCCEEDED
        times = {time.step: time.seconds for time in step_times}
        self.seconds = dict(sorted(times.items(), key=lambda item: -item[1]))  # longest step first
        self.labels = dict(kind.stages) if kind else {}
        self.stage_label = kind.stage_label if kind else capitalized
        self.of_models = kind is None or kind.has_models
        self.rows = {(r.stage, r.metric): r for r in results}
        self._kind = kind

    @property
    def key_figure(self) -> KeyFigure | None:
        """The figure the run is told by; None until it is known, or where its kind has none."""
        tell = self._kind and (self._kind.key_figure or self._kind.table_figure)
        values = {place: row.value for place, row in self.rows.items()}
        return tell(values, self.kept or "") if tell else None

    def get(self, stage: str, key: MetricKey) -> StoredResult | None:
        return self.rows.get((stage, key))

    def value(self, stage: str | None, key: MetricKey) -> float | None:
        row = self.rows.get((stage or "", key))
        return row.value if row else None

    @property
    def saved_bytes(self) -> float | None:
        saved = (row.value for (_, key), row in self.rows.items() if key.family == BYTES)
        return max(saved, default=None)

    @property
    def parameters(self) -> float:
        """Of the model, by what was added to it; 0 where nothing was."""
        added, part = (self.value(self.kept, key) for key in (PARAMETERS, PARAMETER_SHARE))
        return added / part if added and part else 0.0

    @property
    def stages(self) -> list[str]:
        """The stages with results, in the order the model passes through them."""
        measured = {stage for stage, _ in self.rows if stage != RUN}
        return [s for s in self.labels if s in measured] + sorted(measured - set(self.labels))

    @property
    def perplexity(self) -> dict[str, float]:
        """By stage."""
        return {stage: row.value for (stage, of), row in self.rows.items() if of == PERPLEXITY}

    @property
    def metrics(self) -> list[MetricKey]:
        """The metrics measured at stages."""
        return ordered(key for stage, key in self.rows if stage != RUN)

    def alike(self) -> list[list[str]]:
        """The stages in groups that share no metrics. Stages that are models form one group: what
        is missing for one has not been measured yet."""
        if self.of_models:
            return [self.stages] if self.stages else []
        keys = {of: {key for stage, key in self.rows if stage == of} for of in self.stages}
        groups: list[list[str]] = []
        for stage in self.stages:
            near = [g for g in groups if any(keys[other] & keys[stage] for other in g)]
            place = groups.index(near[0]) if near else len(groups)
            merged = [*(s for group in near for s in group), stage]
            groups = [group for group in groups if group not in near]
            groups.insert(place, merged)
        return groups

    def label(self, stage: str) -> str:
        return self.labels.get(stage) or self.stage_label(stage)

    @property
    def first(self) -> str | None:
        """The stage the others are compared with: the original model."""
        return self.stages[0] if self.stages else None

    @property
    def of_run(self) -> dict[MetricKey, StoredResult]:
        """Results of the run as a whole."""
        return {key: row for (stage, key), row in self.rows.items() if stage == RUN}

    @property
    def final_keys(self) -> set[MetricKey]:
        """The metrics `final_row` has a value for."""
        return {key for _, key in self.rows if self.final_row(key)}

    def final_row(self, key: MetricKey) -> StoredResult | None:
        """The result of the kept stage, or else of the run as a whole. A run that ended without
        a kept stage has the result of the only stage it measured."""
        row = self.get(self.kept or "", key) or self.get(RUN, key)
        if row or self.kept or not self.ended:
            return row
        only = [row for (_, of), row in self.rows.items() if of == key]
        return only[0] if len(only) == 1 else None

    def final(self, key: MetricKey = PERPLEXITY) -> float | None:
        row = self.final_row(key)
        return row.value if row else None

    def change(self) -> float | None:
        """Relative change of the perplexity of the kept stage to that of the original model."""
        before, after = self.value(self.first, PERPLEXITY), self.final()
        return after / before - 1 if before and after is not None else None


def speed_conditions(job: Job, rows: Iterable[StoredResult]) -> str:
    """ "Speeds: native (AVX-512-BF16) decoder, bfloat16, 1 thread, prefill included."; empty where
    the run measured none. Without these a speed means nothing: what was not recorded is named."""
    rows = [*rows]
    details = [row.details for row in rows if row.metric == TOKENS_PER_SECOND]
    if not details:
        return ""
    known = job.environment | {key: value for each in details for key, value in each.items()}
    decoder, many, tokens = (known.get(name) for name in ("decoder", "threads", "tokens"))
    parts = [
        f"{decoder} decoder" if decoder else "decoder not recorded",
        known.get("dtype") or known.get("precision") or "precision not recorded",
        threads(many) if many else "threads not recorded",
        f"{tokens} tokens after a prompt of {known['prompt']}" if "prompt" in known else "",
        f"prefill {'included' if job.kind == benchmark.NAME else 'excluded'}",
    ]
    ratio = (
        " Speed-up: the median of the rounds' ratios, not the ratio of the median speeds."
        if any(r.metric == SPEED_UP for r in rows)
        else ""
    )
    return f"Speeds: {', '.join(filter(None, parts))}.{ratio}"


def window_losses(job: Job) -> dict[str, np.ndarray]:
    """Loss of each window [windows], by stage."""
    return {p.stage: p.values for p in tensors.profiles(job.id, "", WINDOW_LOSSES)}


def stage_comparison(job: Job, perplexity: Mapping[str, float]) -> StageComparison:
    return StageComparison(perplexity, partial(_ratio, window_losses(job)))


def _ratio(losses: Mapping[str, np.ndarray], stage: str, rival: str) -> PairedRatio | None:
    if stage not in losses or rival not in losses:
        return None
    return paired_ratio(losses[stage], losses[rival])
