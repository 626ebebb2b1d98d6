"""The columns a table of runs can have: shown, sorted by, filtered by and exported alike.

They come from the configs and figures of the runs, so a new kind of run needs no change here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from backend.store.tables import run_name
from jobs.metrics import METRICS, metric
from ui.format import NONE, esc, href
from ui.runs.deltas import delta_html, percent
from ui.runs.html import elapsed, model_name, named_link, tags_html
from ui.runs.results import RUN, format_value, kind_of, kind_title, setting_summary
from ui.runs.rows import RunRow
from ui.widgets.config_form import title
from ui.widgets.html import badge, time_tag

NEWEST = "age"
GROUPS = ("Run", "Figures", "Settings")
HEADLINE = (
    "perplexity", "zero_share", "bits_per_weight", "speed_up", "accepted_length",
    "tokens_per_second",
)  # fmt: skip
ALIASES = {
    "ppl": "perplexity", "sparsity": "zero_share", "zeros": "zero_share", "setting": "choices",
    "speed": "tokens_per_second", "duration": "took", "id": "run", "tag": "tags", "by": "owner",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        value: sorts and is exported.
        html: is shown.
        measure: what a filter compares; a run that has none gives None.
        usual: shown unless somebody chooses columns.
        metric: name of the figure it shows, of which a delta to the baseline's can be told.
    """

    key: str
    title: str
    value: Callable[[RunRow], Any]
    html: Callable[[RunRow], str]
    measure: Callable[[RunRow], Any]
    numeric: bool = False
    group: str = GROUPS[0]
    usual: bool = False
    metric: str = ""

    def delta(self, row: RunRow, base: RunRow | None) -> str:
        """HTML: how far the run's figure lies from the baseline's."""
        return delta_html(self.metric, row, base) if self.metric else ""


def _words(
    key: str,
    title: str,
    value: Callable[[RunRow], Any],
    html: Callable[[RunRow], str] | None = None,
    **options: Any,
) -> Column:
    shown = html or (lambda row: esc(value(row)))
    return Column(key, title, value, shown, **{"measure": value, **options})


def _final(name: str, usual: bool) -> Column:
    known = metric(name)

    def value(row: RunRow) -> float | None:
        return row.figures.final(name)

    return Column(
        name,
        known.title,
        value,
        lambda row: format_value(known, value(row)),
        value,
        True,
        GROUPS[1],
        usual,
        name,
    )


def _dense(row: RunRow) -> float | None:
    return row.figures.value(row.figures.first, "perplexity")


def _change(row: RunRow) -> float | None:
    return row.figures.change()


def _setting(name: str, heading: str, numeric: bool) -> Column:
    def value(row: RunRow) -> Any:
        found = row.job.config.get(name)
        plain = isinstance(found, (int, float, str)) and not isinstance(found, bool)
        return found if plain or found is None else json.dumps(found)

    def html(row: RunRow) -> str:
        return NONE if value(row) is None else esc(value(row))

    return Column(name, heading, value, html, value, numeric, GROUPS[2])


def _clipped(text: str) -> str:
    return f'<span class="clip wide" title="{esc(text)}">{esc(text)}</span>'


def _of_job(name: str, value: Callable[[RunRow], float | None], usual: bool = False) -> Column:
    known = METRICS[name]
    return Column(
        name,
        known.title,
        value,
        lambda row: format_value(known, value(row)),
        value,
        True,
        usual=usual,
    )


def _took(row: RunRow) -> float | None:
    return elapsed(row.job, row.now)


def added(row: RunRow) -> str:
    """When the run was added, for a file."""
    moment = datetime.fromtimestamp(row.job.created_at / 1000, UTC)
    return moment.isoformat(timespec="seconds")


RUN_COLUMN = _words(
    "run", "Run", lambda r: r.job.id, lambda r: named_link(r.job),
    measure=lambda r: r.job.run, usual=True,
)  # fmt: skip
AGE = Column(
    NEWEST, "Age", lambda r: r.job.created_at, lambda r: time_tag(r.job.created_at, r.now),
    lambda r: (r.now - r.job.created_at) / 1000, True, usual=True,
)  # fmt: skip
BEFORE = (
    RUN_COLUMN,
    _words("name", "Name", lambda r: r.job.name),
    _words("kind", "Kind", lambda r: kind_title(r.job),
           measure=lambda r: f"{r.job.kind} {kind_title(r.job)}", usual=True),
    _words("model", "Model", lambda r: str(r.job.config.get("model", "")),
           lambda r: model_name(r.job.config.get("model", NONE)), usual=True),
    _words("choices", "Setting", lambda r: " · ".join(setting_summary(r.job)),
           lambda r: _clipped(" · ".join(setting_summary(r.job))), usual=True),
    _words("state", "State", lambda r: r.job.state, lambda r: badge(r.job.state), usual=True),
    _words("tags", "Tags", lambda r: " ".join(r.job.tags or ()),
           lambda r: tags_html(r.job.tags or ()), measure=lambda r: r.job.tags or ()),
    _words("note", "Note", lambda r: r.job.note or "",
           lambda r: _clipped(r.job.note or "")),
    _words("owner", "By", lambda r: r.job.owner),
    _words("sweep", "Sweep", lambda r: _sweep(r), lambda r: _sweep_link(r)),
)  # fmt: skip
PERPLEXITY = (
    Column("dense", "Perplexity, dense", _dense,
           lambda r: format_value(METRICS["perplexity"], _dense(r)), _dense, True, GROUPS[1], True),
    _final("perplexity", True),
    Column("change", "Change", _change, lambda r: percent(_change(r)) or NONE, _change, True,
           GROUPS[1], True),
)  # fmt: skip
AFTER = (
    _of_job("size", lambda r: r.size),
    _of_job("peak", lambda r: r.job.peak_bytes),
    _of_job("took", _took, usual=True),
    AGE,
)


def _sweep(row: RunRow) -> str:
    first = row.job.sweep
    return run_name(row.job.kind, first) if first else ""


def _sweep_link(row: RunRow) -> str:
    name = _sweep(row)
    return f'<a class="mono" href="{href("sweep", id=name)}">{esc(name)}</a>' if name else ""


def columns(shown: Sequence[RunRow]) -> dict[str, Column]:
    """Key -> column, of all columns these rows have something in, as they stand side by side."""
    found: dict[str, bool] = {}  # metric -> whether of the run as a whole
    for row in shown:
        for stage, name in row.figures.rows:
            found[name] = found.get(name, False) or stage == RUN
    names = [m for m in METRICS if m in found] + sorted(found.keys() - METRICS.keys())
    finals = [_final(n, _usual(n, found[n])) for n in names if n != "perplexity"]
    perplexity = PERPLEXITY if "perplexity" in found else ()
    settings = dict.fromkeys(name for row in shown for name in row.job.config)
    telling = {
        "tags": any(row.job.tags for row in shown),
        "kind": len({row.job.kind for row in shown}) > 1,
    }
    before = [replace(c, usual=telling[c.key]) if c.key in telling else c for c in BEFORE]
    taken = {c.key for c in (*before, *perplexity, *finals, *AFTER)}
    more = [_setting(n, _titled(n, shown), _numeric(n, shown)) for n in settings if n not in taken]
    return {c.key: c for c in (*before, *perplexity, *finals, *more, *AFTER)}


def _usual(name: str, of_run: bool) -> bool:
    return name in HEADLINE or (of_run and "/" not in name and name not in METRICS)


def _titled(name: str, shown: Sequence[RunRow]) -> str:
    for row in shown:
        kind = kind_of(row.job)
        if kind and name in kind.config.model_fields:
            return title(name, kind.config.model_fields[name])
    return name


def _numeric(name: str, shown: Sequence[RunRow]) -> bool:
    values = [row.job.config[name] for row in shown if name in row.job.config]
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def named(key: str, known: Mapping[str, Column]) -> Column | None:
    """The column a person means."""
    key = key.lower()
    return known.get(key) or known.get(ALIASES.get(key, ""))


def picked(keys: Sequence[str], known: Mapping[str, Column]) -> list[Column]:
    """The columns with these keys, in the order of the table; the usual ones where none is named.
    The run itself always leads."""
    wanted = {column.key for key in keys if (column := named(key, known))}
    if not wanted:
        return [c for c in known.values() if c.usual]
    return [c for c in known.values() if c.key in wanted or c.key == RUN_COLUMN.key]
