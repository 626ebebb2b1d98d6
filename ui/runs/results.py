"""Results of a run of any kind by stage and metric, and comparison of its stages on the same
windows of text."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache, partial
from typing import Any

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
from jobs.fields.models import is_run, original_model
from jobs.kind import SOURCE, JobConfig, KeyFigure, Kind, capitalized, kinds, strongest
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
from jobs.wording import StageComparison, signed
from ui.format import NONE, duration, number, size, threads
from ui.theme import declared
from ui.widgets.config_form import advanced, extra, owner, title

DENSE = "dense"  # stage name of the model that a run starts from
RUN = "run"  # stage name of the figures of a run as a whole
# config classes whose fields are common to all kinds
SHARED_CONFIGS = ("JobConfig", "ContextLength", "CalibrationText", "EvaluationText")
ALWAYS_SUMMARIZED = 2  # leading method fields in the summary, even at their defaults
UNINFORMATIVE_VALUES = (None, "", "auto", "same")
VALUE_FORMATS: dict[str, Callable[[float | None], str]] = {
    "number": number,
    "share": lambda value: NONE if value is None else percent(value),
    "bytes": size,
    "seconds": duration,
    "count": lambda value: NONE if value is None else f"{value:,.0f}",
}
# families of the metrics that compression is meant to improve
GAINS = (BYTES, *(key.family for key in (BITS_PER_WEIGHT, SPEED_UP, TOKENS_PER_SECOND)))
WINDOW_METRICS = (PERPLEXITY, BITS_PER_BYTE)  # computed from losses of windows, compared in pairs


def percent(value: float) -> str:
    """A share in percent, with two decimals; with two significant digits below 0.1 %."""
    is_small = 0 < abs(value) < 1e-3
    return number(100 * value, 2) if is_small else f"{100 * value:.2f}"


def format_value(metric: Metric, value: float | None) -> str:
    """The value in the unit of the metric's title."""
    return VALUE_FORMATS[metric.form](value)


def format_stderr(metric: Metric, stderr: float | None) -> str:
    """The standard error in the unit of the value; empty if unknown."""
    return number(metric.scale * stderr, 2) if stderr else ""


def display_units(points: pd.DataFrame) -> pd.DataFrame:
    """The points of curves (`frames.curves`) in the units of the screen: shares in percent."""
    scales = {family: metric(MetricKey(family)).scale for family in points["family"].unique()}
    factors = points["family"].map(scales).astype(float)
    return points.assign(value=factors * points["value"].astype(float))


def size_before(source: float, parameters: float) -> str:
    """Size of the model before compression at 16 bits per weight, such as "269 MB in 16 bits".

    Args:
        source: bytes of the source files, in any number of bits; the size if `parameters` is 0.
        parameters: number of parameters, 0 if unknown.
    """
    return f"{size(2 * parameters)} in 16 bits" if parameters else size(source or None)


def size_saved(saved: float, parameters: float) -> str:
    """Size of the saved model: "538 MB in 32 bits (smaller as GGUF)", or "90 MB" if packed."""
    is_float32 = parameters and saved > 0.9 * 4 * parameters
    return f"{size(saved)}{' in 32 bits (smaller as GGUF)' if is_float32 else ''}"


def find_job(run: str) -> Job | None:
    """The run of that name; None if it does not exist."""
    try:
        return queries.job(run) if run else None
    except SlimscopeError:
        return None


def kind_of(job: Job) -> Kind | None:
    """The kind of a run; None if its plugin is no longer installed."""
    return kinds().get(job.kind)


def kind_title(job: Job) -> str:
    """The title of a run's kind; its name if the plugin is no longer installed."""
    kind = kind_of(job)
    return kind.title if kind else job.kind


def stages_of(job: Job) -> dict[str, str]:
    """Labels of a run's stages by name, in the order of the method. The first stage of a run that
    compresses the model of another run is not dense."""
    kind = kind_of(job)
    labels = dict(kind.stages) if kind else {}
    source = source_of(job)
    return labels | {DENSE: source_label(source)} if source and DENSE in labels else labels


def source_of(job: Job) -> Job | None:
    """The run whose saved model a run compresses; None for an original model."""
    kind, model = kind_of(job), str(job.config.get("model") or "")
    is_source = kind is not None and kind.compresses and is_run(model) and model != job.run
    return find_job(model) if is_source else None


def source_label(source: Job) -> str:
    """Label of the saved model of a run, as the first stage of the next: "Source (2:4 pruned)"."""
    settings = setting_summary(source)[:1] or [source.run]
    return f"Source ({settings[0]}{' pruned' * declared(str(source.kept_stage)).pruned})"


def uses_toy_model(job: Job) -> bool:
    """Return True for runs on the toy model, whose figures do not carry over to real models."""
    return original_model(base_model(job)) == TOY


def real_models_first(jobs: Iterable[Job]) -> Iterator[Job]:
    """Runs on real models, followed by runs on the toy model."""
    toys = []
    for job in jobs:
        if uses_toy_model(job):
            toys.append(job)
        else:
            yield job
    yield from toys


def fields_of(kind: str) -> dict[str, FieldInfo]:
    """The config fields of a kind; empty if its plugin is no longer installed."""
    installed = kinds().get(kind)
    return installed.config.model_fields if installed else {}


def setting_title(kind: str, name: str) -> str:
    """The title of a config field; its name if the field is unknown."""
    fields = fields_of(kind)
    return title(name, fields[name]) if name in fields else name


def base_model(job: Job) -> str:
    """The model that was compressed; for an evaluation, the model of the evaluated run."""
    return str((job.environment or {}).get("base") or job.config.get("model") or NONE)


def setting_summary(job: Job) -> list[str]:
    """The method settings of a run, such as "2:4", "wanda" or "group size 128".

    The summary begins with the headline of the kind, or else with the first two method fields.
    Method fields that differ from their defaults follow, and a seed other than 0, which
    distinguishes the runs of a sweep. Fields that are advanced, boolean or common to all kinds,
    and empty values, are left out."""
    kind = kind_of(job)
    fields = _method_fields(kind.config) if kind else []
    headline = kind.headline(job.config) if kind and kind.headline else []
    settings = headline + [
        setting_text(info, name, value)
        for index, (name, info) in enumerate(fields)
        if (value := job.config.get(name)) not in UNINFORMATIVE_VALUES
        if not (kind and name in kind.headline_fields)
        if value != info.default or (index < ALWAYS_SUMMARIZED and not headline)
    ]
    seed = job.config.get("seed")
    return [*settings, f"seed {seed}"] if seed else settings


@lru_cache
def _method_fields(config: type[JobConfig]) -> list[tuple[str, FieldInfo]]:
    """Names and definitions of the method fields of a config; cached, as each row asks for them."""
    return [
        (name, info)
        for name, info in config.model_fields.items()
        if name != "model" and not advanced(info) and info.annotation is not bool
        if owner(config, name).__name__ not in SHARED_CONFIGS
    ]


def setting_text(info: FieldInfo | None, name: str, value: object) -> str:
    """A value with its unit or title: "wanda", "3 bits", "group size 64", "no control"."""
    title, unit = name, ""
    if info:
        title, unit = info.title or name, str(extra(info).get("unit", ""))
    title = title.lower()
    if isinstance(value, bool) or value in (None, ""):
        return title if value else f"no {title}"
    if not isinstance(value, int | float):
        return str(value)
    if not unit or not title.endswith(unit):
        return f"{title} {value:g}"
    return f"{value:g} {unit.removesuffix('s') if value == 1 else unit}"


class RunResults:
    """All results of one run.

    Attributes:
        kept: the stage whose weights the run saved; None if there is none yet.
        ended: the run has succeeded.
        seconds: duration of each step of the run, the longest first.
        labels: labels of the kind's stages, in the order of the method.
        of_models: the stages are versions of a model, rather than parts such as drafter heads.
        rows: results by stage and metric.
    """

    def __init__(
        self,
        kind: Kind | None,
        results: Iterable[StoredResult],
        job: Job | None = None,
        step_times: Iterable[StepTime] = (),
    ) -> None:
        self.kept = job.kept_stage if job else None
        self.ended = job is not None and job.state == State.SUCCEEDED
        times = {time.step: time.seconds for time in step_times}
        self.seconds = dict(sorted(times.items(), key=lambda item: -item[1]))
        self.labels = stages_of(job) if job else dict(kind.stages) if kind else {}
        self.stage_label = kind.stage_label if kind else capitalized
        self.of_models = kind is None or kind.has_models
        self.rows = {(r.stage, r.metric): r for r in results}
        self._kind, self._job = kind, job

    @property
    def key_figure(self) -> KeyFigure | None:
        """The main figure of the run; None until it is measured, or if its kind has none."""
        choose = self._kind and (self._kind.key_figure or self._kind.table_figure)
        values = {stage_and_metric: row.value for stage_and_metric, row in self.rows.items()}
        if self.origin and (DENSE, PERPLEXITY) in values:
            values[SOURCE, PERPLEXITY] = values.pop((DENSE, PERPLEXITY))
            values |= {(DENSE, PERPLEXITY): self.dense} if self.dense else {}
        return choose(values, self.kept or "") if choose else None

    @cached_property
    def origin(self) -> Job | None:
        """The run that compressed the original model, if this run compresses the model of another;
        else None."""
        origin, seen = None, set[str]()
        source = source_of(self._job) if self._job else None
        while source and source.run not in seen:
            seen.add(source.run)
            origin, source = source, source_of(source)
        return origin

    @cached_property
    def dense(self) -> float | None:
        """Perplexity of the original model of `origin`; None if it was measured on another text."""
        own = self.get(DENSE, PERPLEXITY)
        rows = queries.results([self.origin.run]) if self.origin and own else []
        found = (row for row in rows if (row.stage, row.metric) == (DENSE, PERPLEXITY))
        return next((row.value for row in found if own and text_of(row) == text_of(own)), None)

    def get(self, stage: str, key: MetricKey) -> StoredResult | None:
        """The result of a stage; None if it was not measured."""
        return self.rows.get((stage, key))

    def value(self, stage: str | None, key: MetricKey) -> float | None:
        """The value of a metric at a stage; None if it was not measured."""
        row = self.rows.get((stage or "", key))
        return row.value if row else None

    @property
    def saved_bytes(self) -> float | None:
        """Size in bytes of the largest saved model; None if nothing was saved."""
        sizes = (row.value for (_, key), row in self.rows.items() if key.family == BYTES)
        return max(sizes, default=None)

    @property
    def parameters(self) -> float:
        """Number of model parameters, computed from the parameters that were added and their share;
        0 if none were added."""
        added, share = (self.value(self.kept, key) for key in (PARAMETERS, PARAMETER_SHARE))
        return added / share if added and share else 0.0

    @property
    def stages(self) -> list[str]:
        """The stages with results, in the order of the method."""
        measured = {stage for stage, _ in self.rows if stage != RUN}
        return [s for s in self.labels if s in measured] + sorted(measured - set(self.labels))

    @property
    def perplexity(self) -> dict[str, float]:
        """Perplexity by stage."""
        return {stage: row.value for (stage, key), row in self.rows.items() if key == PERPLEXITY}

    @property
    def rivals(self) -> dict[str, float]:
        """Label and perplexity of what the kept stage is compared with: the rivals of the key
        figure, else the best other stage that is pruned if the kept stage is; the model that the
        run started from; and the original model."""
        if not self.of_models or not self.kept or self.final() is None:
            return {}
        is_pruned = declared(self.kept).pruned
        others = [
            stage
            for stage in self.perplexity
            if stage not in (self.kept, self.first) and declared(stage).pruned == is_pruned
        ]
        rivals = self.key_figure.rivals if self.key_figure else ()
        rivals = rivals or (strongest(self.perplexity, others),)
        shown = [s for s in (*rivals, self.first) if s in self.perplexity and s != self.kept]
        compared = {self.label(stage): self.perplexity[stage] for stage in shown}
        return compared | ({"Dense": self.dense} if self.dense else {})

    @property
    def metrics(self) -> list[MetricKey]:
        """The metrics measured at stages, in display order."""
        return ordered(key for stage, key in self.rows if stage != RUN)

    def comparable_stages(self) -> list[list[str]]:
        """Groups of stages that have metrics in common; different groups share no metric.

        Stages that are models form one group, as a missing metric was not measured yet."""
        if self.of_models:
            return [self.stages] if self.stages else []
        keys = {name: {key for stage, key in self.rows if stage == name} for name in self.stages}
        groups: list[list[str]] = []
        for stage in self.stages:
            matches = [g for g in groups if any(keys[member] & keys[stage] for member in g)]
            index = groups.index(matches[0]) if matches else len(groups)
            merged = [*(member for group in matches for member in group), stage]
            groups = [group for group in groups if group not in matches]
            groups.insert(index, merged)
        return groups

    def label(self, stage: str) -> str:
        """The label of a stage on the screen."""
        return self.labels.get(stage) or self.stage_label(stage)

    @property
    def first(self) -> str | None:
        """The reference stage: the original model."""
        return self.stages[0] if self.stages else None

    @property
    def run_level(self) -> dict[MetricKey, StoredResult]:
        """Results of the run as a whole."""
        return {key: row for (stage, key), row in self.rows.items() if stage == RUN}

    @property
    def final_keys(self) -> set[MetricKey]:
        """The metrics with a final result."""
        return {key for _, key in self.rows if self.final_row(key)}

    def final_row(self, key: MetricKey) -> StoredResult | None:
        """The final result of a metric: at the kept stage, or else for the run as a whole.

        A run that succeeded without a kept stage has the result of the only stage with it."""
        row = self.get(self.kept or "", key) or self.get(RUN, key)
        if row or self.kept or not self.ended:
            return row
        candidates = [row for (_, measured), row in self.rows.items() if measured == key]
        return candidates[0] if len(candidates) == 1 else None

    def final(self, key: MetricKey = PERPLEXITY) -> float | None:
        """The value of `final_row`; None without one."""
        row = self.final_row(key)
        return row.value if row else None

    @property
    def interval(self) -> str:
        """The 95 % interval of the key figure with its strongest rival: "undecided, 95 % interval
        −6.2 to +0.5 %"; empty without the losses of windows."""
        figure = self.key_figure
        if not (figure and figure.rivals and self._job and self.kept):
            return ""
        ratio = _ratio(window_losses(self._job), self.kept, figure.rivals[0])
        if ratio is None:
            return ""
        low, high = (signed(100 * (end - 1), 1) for end in (ratio.low, ratio.high))
        return f"{'' if ratio.is_significant else 'undecided, '}95 % interval {low} to {high} %"

    def change(self) -> float | None:
        """Relative change of perplexity from the original model to the kept stage."""
        before, after = self.value(self.first, PERPLEXITY), self.final()
        return after / before - 1 if before and after is not None else None


def text_of(row: StoredResult) -> tuple[Any, ...]:
    """The text that a perplexity was measured on."""
    return row.n, *(row.details.get(key) for key in ("sha256", "corpus", "context"))


def speed_conditions(job: Job, rows: Iterable[StoredResult]) -> str:
    """The conditions of a run's speed measurements; empty if it measured no speed.

    Example: "Speeds: native (AVX-512-BF16) decoder, bfloat16, 1 thread, prefill included." A speed
    means nothing without them, so conditions that were not recorded are named."""
    rows = [*rows]
    details = [row.details for row in rows if row.metric == TOKENS_PER_SECOND]
    if not details:
        return ""
    conditions = job.environment | {key: value for row in details for key, value in row.items()}
    decoder, thread_count, tokens = (conditions.get(x) for x in ("decoder", "threads", "tokens"))
    prompt = conditions.get("prompt")
    parts = [
        f"{decoder} decoder" if decoder else "decoder not recorded",
        conditions.get("dtype") or conditions.get("precision") or "precision not recorded",
        threads(thread_count) if thread_count else "threads not recorded",
        f"{tokens} tokens after a prompt of {prompt}" if "prompt" in conditions else "",
        f"prefill {'included' if job.kind == benchmark.NAME else 'excluded'}",
    ]
    ratio = (
        " Speed-up: the median of the rounds' ratios, not the ratio of the median speeds."
        if any(row.metric == SPEED_UP for row in rows)
        else ""
    )
    return f"Speeds: {', '.join(filter(None, parts))}.{ratio}"


def window_losses(job: Job) -> dict[str, np.ndarray]:
    """Losses of the windows of held-out text, `[windows]`, by stage."""
    return {
        profile.stage: profile.values for profile in tensors.profiles(job.id, "", WINDOW_LOSSES)
    }


def stage_comparison(
    perplexity: Mapping[str, float], losses: Mapping[str, np.ndarray]
) -> StageComparison:
    """A comparison of stages by perplexity, paired by the losses of windows of text."""
    return StageComparison(perplexity, partial(_ratio, losses))


def _ratio(losses: Mapping[str, np.ndarray], stage: str, rival: str) -> PairedRatio | None:
    if stage not in losses or rival not in losses:
        return None
    return paired_ratio(losses[stage], losses[rival])
