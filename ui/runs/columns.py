"""Columns of the table of runs, for display, sorting, filters and export. They follow from configs
and results, so a new kind needs no change here."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup, escape

from backend.metric_key import MetricKey
from backend.store.tables import run_name
from jobs.kind import KeyFigure
from jobs.metrics import DISK, METRICS, PEAK, PERPLEXITY, SIZE, TOOK, metric, ordered
from jobs.profile import kind as profile
from ui.format import NONE
from ui.runs.deltas import delta_html, percent
from ui.runs.html import elapsed, model_name, named_link, tags_html
from ui.runs.profiles import first_to_break
from ui.runs.results import RUN, format_value, kind_title, setting_summary, setting_title
from ui.runs.rows import RunRow
from ui.templates import fragments
from ui.widgets.html import time_tag

HTML = fragments("runs/runs.html")
NEWEST = "age"
GROUPS = ("Run", "Results", "Settings")
ALIASES = {  # other names a filter may use
    "setting": "choices",
    "id": "run",
    "tag": "tags",
    "by": "owner",
    **{alias: known.name for known in METRICS.values() for alias in known.aliases},
}


@dataclass(frozen=True)
class Column:
    """One column."""

    key: str
    title: str
    value: Callable[[RunRow], Any]  # sorts and is exported
    cell: Callable[[RunRow], object]  # what is shown, as text or `Markup`
    measure: Callable[[RunRow], Any]  # compared by filters; None without a value
    numeric: bool = False
    group: str = GROUPS[0]
    usual: bool = False  # shown unless columns are chosen
    metric: MetricKey | None = None  # the figure shown, which is compared with the baseline's
    field: str = ""  # its name in a CSV file, with the unit where there is one; else the key

    def html(self, row: RunRow) -> Markup:
        return escape(self.cell(row))

    def delta(self, row: RunRow, base: RunRow | None) -> Markup:
        return delta_html(self.metric, row, base) if self.metric else Markup()


def _text(
    key: str,
    title: str,
    value: Callable[[RunRow], Any],
    cell: Callable[[RunRow], object] | None = None,
    **options: Any,
) -> Column:
    return Column(key, title, value, cell or value, **{"measure": value, **options})


def _figure(shown: MetricKey, value: Callable[[RunRow], float | None], **options: Any) -> Column:
    """A column of figures, titled and written as the metric `shown`."""
    described = metric(shown)

    def cell(row: RunRow) -> str:
        return format_value(described, value(row))

    named = {"field": described.field, **options}
    return Column(described.name, described.title, value, cell, value, numeric=True, **named)


def _final(key: MetricKey, usual: bool) -> Column:
    """The figure each run ended with."""
    return _figure(
        key, lambda row: row.figures.final(key), group=GROUPS[1], usual=usual, metric=key
    )


def _setting(name: str, heading: str, numeric: bool) -> Column:
    def value(row: RunRow) -> Any:
        setting = row.job.config.get(name)
        plain = isinstance(setting, (int, float, str)) and not isinstance(setting, bool)
        return setting if plain or setting is None else json.dumps(setting)

    def cell(row: RunRow) -> Any:
        return NONE if value(row) is None else value(row)

    return Column(name, heading, value, cell, value, numeric, GROUPS[2])


def _summary(row: RunRow) -> str:
    return " · ".join(setting_summary(row.job))


def _result(row: RunRow) -> str:
    figure = _figure_told(row)
    return f"{figure.value} {figure.label}" if figure else ""


def _figure_told(row: RunRow) -> KeyFigure | None:
    layer = first_to_break(row.job.run) if row.job.kind == profile.NAME else ""
    return KeyFigure(layer, "breaks first", "") if layer else row.figures.key_figure


def _sweep(row: RunRow) -> str:
    first = row.job.sweep
    return run_name(row.job.kind, first) if first else ""


RUN_COLUMN = _text(
    "run",
    "Run",
    lambda r: r.job.id,
    lambda r: named_link(r.job),
    measure=lambda r: r.job.run,
    usual=True,
)
AGE = Column(
    NEWEST,
    "Age",
    lambda r: r.head.created_at,
    lambda r: time_tag(r.job.created_at, r.now),
    lambda r: (r.now - r.job.created_at) / 1000,
    True,
    usual=True,
    field="added_utc",
)
BEFORE = (
    RUN_COLUMN,
    _text("name", "Name", lambda r: r.job.name),
    _text(
        "kind",
        "Kind",
        lambda r: kind_title(r.job),
        measure=lambda r: f"{r.job.kind} {kind_title(r.job)}",
        usual=True,
    ),
    _text(
        "model",
        "Model",
        lambda r: str(r.job.config.get("model", "")),
        lambda r: model_name(r.job.config.get("model", NONE)),
        usual=True,
    ),
    _text("choices", "Setting", _summary, lambda r: HTML.clipped(_summary(r)), usual=True),
    _text(
        "state", "State", lambda r: r.job.state, lambda r: HTML.state(r.job.shown_state), usual=True
    ),
    _text("result", "Result", _result, lambda r: HTML.result(_figure_told(r)), usual=True),
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
    _text("sweep", "Sweep", _sweep, lambda r: HTML.sweep_name(_sweep(r))),
)
PERPLEXITY_COLUMNS = (
    replace(
        _figure(PERPLEXITY, lambda r: r.figures.value(r.figures.first, PERPLEXITY)),
        key="dense",
        title="Perplexity, dense",
        group=GROUPS[1],
        usual=False,
        field=f"{PERPLEXITY}_dense",
    ),
    _final(PERPLEXITY, True),
    Column(
        "change",
        "Change to its source",
        lambda r: r.figures.change(),
        lambda r: percent(r.figures.change()) or NONE,
        lambda r: r.figures.change(),
        True,
        GROUPS[1],
        True,
        field=f"{PERPLEXITY}_change_share",
    ),
)
AFTER = (
    _figure(SIZE, lambda r: r.size),
    _figure(DISK, lambda r: r.job.disk_bytes),
    _figure(PEAK, lambda r: r.job.peak_bytes),
    _figure(TOOK, lambda r: elapsed(r.job, r.now), usual=True),
    AGE,
)


def columns(rows: Iterable[RunRow]) -> dict[str, Column]:
    """Columns by key, in order, for which these rows have a value."""
    shapes = list(dict.fromkeys(row.shape for row in rows))
    of_run: dict[MetricKey, bool] = {}  # metric -> whether of the run as a whole
    settings: dict[str, bool] = {}  # field -> whether a number in every run
    for shape in shapes:
        for stage, key in shape.places:
            of_run[key] = of_run.get(key, False) or stage == RUN
        for name, numeric in shape.settings:
            settings[name] = settings.get(name, True) and numeric
    finals = [  # at first those of whole runs that no kind shares
        _final(k, of_run[k] and not k.series and k.family not in METRICS)
        for k in ordered(of_run)
        if k != PERPLEXITY
    ]
    perplexity = PERPLEXITY_COLUMNS if PERPLEXITY in of_run else ()
    kinds = dict.fromkeys(shape.kind for shape in shapes)
    informative = {"tags": any(shape.tagged for shape in shapes), "kind": len(kinds) > 1}
    before = [replace(c, usual=informative[c.key]) if c.key in informative else c for c in BEFORE]
    taken = {c.key for c in (*before, *perplexity, *finals, *AFTER)}
    more = [_setting(n, _titled(n, kinds), settings[n]) for n in settings if n not in taken]
    return {c.key: c for c in (*before, *perplexity, *finals, *more, *AFTER)}


def _titled(name: str, kinds: Iterable[str]) -> str:
    titles = (setting_title(kind, name) for kind in kinds)
    return next((title for title in titles if title != name), name)


def find_column(name: str, columns: Mapping[str, Column]) -> Column | None:
    key = name.lower()
    return columns.get(key) or columns.get(ALIASES.get(key, ""))


def visible_columns(keys: Sequence[str], columns: Mapping[str, Column]) -> list[Column]:
    """Columns with these keys, or the usual ones, in table order; the run always leads."""
    wanted = {column.key for key in keys if (column := find_column(key, columns))}
    if not wanted:
        return [c for c in columns.values() if c.usual]
    return [c for c in columns.values() if c.key in wanted or c.key == RUN_COLUMN.key]
