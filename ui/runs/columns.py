"""Columns of the table of runs, for display, sorting, filters and export.

The columns are derived from configs and results, so a new kind needs no change here."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup, escape

from backend.metric_key import MetricKey
from backend.store.states import State
from jobs.kind import KeyFigure
from jobs.metrics import DISK, DURATION, METRICS, PEAK, PERPLEXITY, SIZE, metric, ordered
from jobs.profile import kind as profile
from jobs.wording import distinguishable
from ui.charts.headlines import lower
from ui.format import NONE
from ui.runs.deltas import delta_html, percent
from ui.runs.groups import sweep_name
from ui.runs.html import elapsed, model_name, named_link, tags_html
from ui.runs.profiles import first_to_break
from ui.runs.results import RUN, format_value, kind_title, setting_summary, setting_title
from ui.runs.rows import RunRow
from ui.templates import fragments
from ui.widgets.html import badge, time_tag

HTML = fragments("runs/runs.html")
NEWEST = "age"
RESULTS = "Results"
GROUPS = ("Run", RESULTS, "Settings")
ALIASES = {  # further names of columns in filters
    "setting": "choices",
    "id": "run",
    "tag": "tags",
    "by": "owner",
    **{alias: described.name for described in METRICS.values() for alias in described.aliases},
}


@dataclass(frozen=True)
class Column:
    """A column of the table of runs.

    Attributes:
        key: name in addresses and filters.
        title: heading.
        value: value of a row for sorting and export.
        cell: displayed text or `Markup` of a row.
        measure: value of a row for filters; None without a value.
        numeric: the values are numbers.
        group: heading in the menu of columns, one of `GROUPS`.
        is_default: shown unless the user has selected columns.
        metric: metric of the displayed figure, which is compared with the baseline's.
        field: name in a CSV file, with the unit; the key if empty.
    """

    key: str
    title: str
    value: Callable[[RunRow], Any]
    cell: Callable[[RunRow], object]
    measure: Callable[[RunRow], Any]
    numeric: bool = False
    group: str = GROUPS[0]
    is_default: bool = False
    metric: MetricKey | None = None
    field: str = ""

    def html(self, row: RunRow) -> Markup:
        """The escaped cell of a row."""
        return escape(self.cell(row))

    def delta(self, row: RunRow, base: RunRow | None) -> Markup:
        """Difference of a row's figure from the baseline's; empty without a metric."""
        return delta_html(self.metric, row, base) if self.metric else Markup()


def _text(
    key: str,
    title: str,
    value: Callable[[RunRow], Any],
    cell: Callable[[RunRow], object] | None = None,
    **options: Any,
) -> Column:
    return Column(key, title, value, cell or value, **{"measure": value, **options})


def _figure(key: MetricKey, value: Callable[[RunRow], float | None], **options: Any) -> Column:
    """A column of figures with title, unit and format of a metric."""
    described = metric(key)

    def cell(row: RunRow) -> str:
        return format_value(described, value(row))

    options = {"field": described.field, **options}
    return Column(described.name, described.title, value, cell, value, numeric=True, **options)


def _final(key: MetricKey, is_default: bool) -> Column:
    """A column of the final figures of a metric."""
    return _figure(
        key, lambda row: row.figures.final(key), group=RESULTS, is_default=is_default, metric=key
    )


def _setting(name: str, heading: str, numeric: bool) -> Column:
    def value(row: RunRow) -> Any:
        setting = row.job.config.get(name)
        is_scalar = isinstance(setting, (int, float, str)) and not isinstance(setting, bool)
        return setting if is_scalar or setting is None else json.dumps(setting)

    def cell(row: RunRow) -> Any:
        return NONE if value(row) is None else value(row)

    return Column(name, heading, value, cell, value, numeric, GROUPS[2])


def _summary(row: RunRow) -> str:
    return " · ".join(setting_summary(row.job))


def _result(row: RunRow) -> str:
    figure = _key_figure(row)
    return f"{figure.value} {figure.label}" if figure else ""


def _result_cell(row: RunRow) -> Markup:
    """The key figure with its rivals; of a run that did not succeed, its state and its error."""
    job, figures = row.job, row.figures
    error = "" if job.state == State.SUCCEEDED else str((job.error or {}).get("what") or "")
    rivals = figures.rivals
    shown = [figures.final(), *rivals.values()] if rivals else []
    texts = distinguishable([value for value in shown if value is not None], 2)
    names = [lower(name) for name in (metric(PERPLEXITY).title, *rivals)]
    return HTML.result(job.shown_state, _key_figure(row), [*zip(names, texts, strict=False)], error)


def _key_figure(row: RunRow) -> KeyFigure | None:
    layer = first_to_break(row.job.run) if row.job.kind == profile.NAME else ""
    return KeyFigure(layer, "breaks first", "") if layer else row.figures.key_figure


RUN_COLUMN = _text(
    "run",
    "Run",
    lambda r: r.job.id,
    lambda r: named_link(r.job),
    measure=lambda r: r.job.run,
    is_default=True,
)
AGE = Column(
    NEWEST,
    "Age",
    lambda r: r.head.created_at,
    lambda r: time_tag(r.job.created_at, r.now),
    lambda r: (r.now - r.job.created_at) / 1000,
    True,
    is_default=True,
    field="added_utc",
)
LEADING_COLUMNS = (
    RUN_COLUMN,
    _text("name", "Name", lambda r: r.job.name),
    _text(
        "kind",
        "Kind",
        lambda r: kind_title(r.job),
        measure=lambda r: f"{r.job.kind} {kind_title(r.job)}",
    ),
    _text(
        "model",
        "Model",
        lambda r: str(r.job.config.get("model", "")),
        lambda r: model_name(r.job.config.get("model", NONE)),
    ),
    _text("choices", "Setting", _summary, lambda r: HTML.clipped(_summary(r))),
    _text("state", "State", lambda r: r.job.state, lambda r: badge(r.job.shown_state)),
    _text("result", "Result", _result, _result_cell, is_default=True),
    _text(
        "tags",
        "Tags",
        lambda r: " ".join(r.job.tags or ()),
        lambda r: tags_html(r.job.tags or ()),
        measure=lambda r: r.job.tags or (),
    ),
    _text("note", "Note", lambda r: r.job.note or "", lambda r: HTML.clipped(r.job.note or "")),
    _text("owner", "By", lambda r: r.job.owner),
    _text("archived", "Archived", lambda r: "yes" if r.job.archived_at else "no"),
    _text("deleted", "Deleted", lambda r: "yes" if r.job.removed_at else "no"),
    _text("sweep", "Sweep", sweep_name, lambda r: HTML.sweep_name(sweep_name(r))),
)
PERPLEXITY_COLUMNS = (
    replace(
        _figure(PERPLEXITY, lambda r: r.figures.value(r.figures.first, PERPLEXITY)),
        key="dense",
        title="Perplexity, dense",
        group=RESULTS,
        is_default=False,
        field=f"{PERPLEXITY}_dense",
    ),
    _final(PERPLEXITY, True),
    Column(
        "change",
        "vs. source model",
        lambda r: r.figures.change(),
        lambda r: percent(r.figures.change()) or NONE,
        lambda r: r.figures.change(),
        True,
        RESULTS,
        field=f"{PERPLEXITY}_change_share",
    ),
)
TRAILING_COLUMNS = (
    _figure(SIZE, lambda r: r.size),
    _figure(DISK, lambda r: r.job.disk_bytes),
    _figure(PEAK, lambda r: r.job.peak_bytes),
    _figure(DURATION, lambda r: elapsed(r.job, r.now)),
    AGE,
)


def columns(rows: Iterable[RunRow]) -> dict[str, Column]:
    """The columns for which these rows have a value, by key, in display order."""
    shapes = list(dict.fromkeys(row.shape for row in rows))
    is_run_level: dict[MetricKey, bool] = {}  # True if a run as a whole has the metric
    is_number: dict[str, bool] = {}  # True if the config field is a number in every run
    for shape in shapes:
        for stage, key in shape.result_keys:
            is_run_level[key] = is_run_level.get(key, False) or stage == RUN
        for name, numeric in shape.settings:
            is_number[name] = is_number.get(name, True) and numeric
    finals = [  # by default only metrics of whole runs that `METRICS` does not list
        _final(key, is_run_level[key] and not key.series and key.family not in METRICS)
        for key in ordered(is_run_level)
        if key != PERPLEXITY
    ]
    perplexity = PERPLEXITY_COLUMNS if PERPLEXITY in is_run_level else ()
    kinds = dict.fromkeys(shape.kind for shape in shapes)
    keys = {column.key for column in (*LEADING_COLUMNS, *perplexity, *finals, *TRAILING_COLUMNS)}
    settings = [
        _setting(name, _setting_heading(name, kinds), numeric)
        for name, numeric in is_number.items()
        if name not in keys
    ]
    columns = (*LEADING_COLUMNS, *perplexity, *finals, *settings, *TRAILING_COLUMNS)
    return {column.key: column for column in columns}


def _setting_heading(name: str, kinds: Iterable[str]) -> str:
    titles = (setting_title(kind, name) for kind in kinds)
    return next((title for title in titles if title != name), name)


def find_column(name: str, columns: Mapping[str, Column]) -> Column | None:
    """The column with this key or alias, in any case; None if there is none."""
    key = name.lower()
    return columns.get(key) or columns.get(ALIASES.get(key, ""))


def visible_columns(keys: Sequence[str], columns: Mapping[str, Column]) -> list[Column]:
    """The columns with these keys, or the default ones, in table order; the run is always first."""
    selected = {column.key for key in keys if (column := find_column(key, columns))}
    if not selected:
        return [column for column in columns.values() if column.is_default]
    selected.add(RUN_COLUMN.key)
    return [column for column in columns.values() if column.key in selected]
