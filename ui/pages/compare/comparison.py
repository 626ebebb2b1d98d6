"""Runs side by side against one baseline: settings that differ, and results."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup
from pydantic.fields import FieldInfo

from backend.metric_key import MetricKey
from backend.statistics.paired import paired_ratio
from backend.statistics.ratio import PairedRatio
from backend.store.queries import StoredResult
from jobs.metrics import (
    PEAK,
    PERPLEXITY,
    SIZE,
    TOOK,
    ZERO_SHARE,
    Metric,
    metric,
    ordered,
)
from ui.charts.chart import Chart
from ui.format import NONE, number
from ui.pages.help.page import explained
from ui.runs.deltas import delta, delta_html, difference_html, incomparable_because
from ui.runs.html import elapsed, model_and_settings
from ui.runs.results import (
    GAINS,
    WINDOW_METRICS,
    fields_of,
    format_stderr,
    format_value,
    kind_title,
    setting_title,
    speed_conditions,
    window_losses,
)
from ui.runs.rows import RunRow
from ui.runs.view import csv_text
from ui.runs.weights import weights_of
from ui.templates import fragments
from ui.theme import LIGHT, OKABE_ITO, YELLOW, LineStyle
from ui.widgets.config_form import spoken

HTML = fragments("pages/compare/page.html")
PAIRED = Metric(
    MetricKey("paired_perplexity"),
    "Perplexity ÷ baseline",
    "Ratio of the perplexities on the same windows of text, with its 95 % interval.",
    "lower",
)
ALWAYS = {PAIRED.key.family, SIZE.family, *GAINS}  # shown even where only some runs have them
COLOURS = [c for c in OKABE_ITO if c != YELLOW]  # yellow cannot be seen on white
BASELINE = LineStyle(LIGHT.text)  # grey is the dense model
ENVIRONMENT = ("device", "cpu", "threads", "python", "versions")
EXPORTED = ("section", "name", "run", "value", "stderr", "delta", "not_compared")


class ComparedRun(NamedTuple):
    row: RunRow
    description: Markup
    stroke: LineStyle


@dataclass(frozen=True)
class RunComparison:
    rows: Sequence[RunRow]
    base: RunRow

    @property
    def runs(self) -> list[str]:
        return [row.job.run for row in self.rows]

    @property
    def strokes(self) -> dict[str, LineStyle]:
        others = [run for run in self.runs if run != self.base.job.run]
        coloured = {run: LineStyle(COLOURS[i % len(COLOURS)]) for i, run in enumerate(others)}
        return {run: coloured.get(run, BASELINE) for run in self.runs}

    @property
    def columns(self) -> list[ComparedRun]:
        drawn = self.strokes
        return [ComparedRun(r, model_and_settings(r.job), drawn[r.job.run]) for r in self.rows]


def settings_of(row: RunRow) -> dict[str, Any]:
    config = {setting_title(row.job.kind, name): value for name, value in row.job.config.items()}
    environment = {k: v for k, v in (row.job.environment or {}).items() if k in ENVIRONMENT}
    versions = environment.pop("versions", None)
    machine = {f"{name.capitalize()} used": value for name, value in environment.items()}
    if isinstance(versions, Mapping):
        machine |= {f"Version of {name}": value for name, value in versions.items()}
    return {"Kind": kind_title(row.job), **config, **machine}


def differing(comparison: RunComparison) -> dict[str, list[Any]]:
    """Values by title, one a run, of settings that differ; None: no such setting."""
    settings = [settings_of(row) for row in comparison.rows]
    titles = dict.fromkeys(name for one in settings for name in one)
    values = {name: [one.get(name) for one in settings] for name in titles}
    return {name: each for name, each in values.items() if any(v != each[0] for v in each)}


def config_card(comparison: RunComparison) -> Markup:
    """A row for each setting that differs; those of only some runs are folded away."""
    found, place = differing(comparison), comparison.rows.index(comparison.base)
    same = len({name for row in comparison.rows for name in settings_of(row)}) - len(found)
    known = {
        setting_title(row.job.kind, name): info
        for row in comparison.rows
        for name, info in fields_of(row.job.kind).items()
    }
    rows = {
        name: [(_value(v, known.get(name)), v != values[place]) for v in values]
        for name, values in found.items()
    }
    shared = {name: cells for name, cells in rows.items() if None not in found[name]}
    single = {name: cells for name, cells in rows.items() if name not in shared}
    return HTML.settings(comparison.columns, comparison.base, shared, single, same)


def _value(value: Any, info: FieldInfo | None = None) -> str:
    return NONE if value is None else spoken(info, value)


class ComparedFigure(NamedTuple):
    """Cell of the results; `delta` is its difference to the baseline's."""

    value: str
    stderr: str = ""
    delta: str = ""


def measured(comparison: RunComparison) -> list[MetricKey]:
    """Metrics any of the runs ended with."""
    return ordered(key for row in comparison.rows for key in row.figures.final_keys)


def figure_rows(comparison: RunComparison) -> list[tuple[Metric, list[ComparedFigure]]]:
    """A figure a run of each metric that was measured."""
    ratios = paired_ratios(comparison)
    rows = [
        (shown, [*map(partial(_figure, shown, comparison.base), comparison.rows, ratios)])
        for shown in map(metric, measured(comparison))
    ]
    if any(ratios):
        rows.insert(1, (PAIRED, [*map(_ratio, ratios)]))  # behind the perplexity, which comes first
    return rows


def kept_labels(comparison: RunComparison) -> list[str]:
    return [r.figures.label(r.figures.kept) if r.figures.kept else NONE for r in comparison.rows]


def metrics_card(comparison: RunComparison) -> Markup:
    rows = [*figure_rows(comparison), *_figures_of_jobs(comparison)]
    single = [
        row for row in rows if row[0].key.family not in ALWAYS and NONE in (f.value for f in row[1])
    ]
    shared = [row for row in rows if row not in single]
    kept = kept_labels(comparison)
    found = {r.job.run: speed_conditions(r.job, r.figures.rows.values()) for r in comparison.rows}
    told: dict[str, list[str]] = {}
    for run, text in found.items():
        told.setdefault(text, []).append(run)
    told.pop("", None)
    conditions = [f"{', '.join(x)}: {text}" if len(told) > 1 else text for text, x in told.items()]
    return HTML.results(
        comparison.columns, comparison.base, kept, shared, single, conditions, explained
    )


def paired_ratios(comparison: RunComparison) -> list[PairedRatio | None]:
    """Perplexity of each run over the baseline's on the same windows; None where not comparable."""
    alike = on_one_text(comparison)
    losses = [
        window_losses(row.job).get(row.figures.kept or "") if row in alike else None
        for row in comparison.rows
    ]
    base = losses[comparison.rows.index(comparison.base)]
    return [
        paired_ratio(mine, base)
        if mine is not None and base is not None and mine is not base
        else None
        for mine in losses
    ]


def _ratio(ratio: PairedRatio | None) -> ComparedFigure:
    if ratio is None:
        return ComparedFigure(NONE)
    span = f"{number(ratio.low, 3)} to {number(ratio.high, 3)}"
    said = span if ratio.told_apart else f"{span}: not significantly different"
    return ComparedFigure(number(ratio.value, 3), delta=HTML.interval(said))


def _figure(shown: Metric, base: RunRow, row: RunRow, ratio: PairedRatio | None) -> ComparedFigure:
    figure = row.figures.final_row(shown.key)
    if figure is None:
        zeros = _zeros(row) if shown.key == ZERO_SHARE else None
        return ComparedFigure(format_value(shown, zeros))
    # of losses on the same windows, a difference whose interval holds 1 is neither better nor worse
    told_apart = shown.key not in WINDOW_METRICS or ratio is None or ratio.told_apart
    return ComparedFigure(
        format_value(shown, figure.value),
        format_stderr(shown, figure.stderr),
        delta_html(shown.key, row, base, relative=True, told_apart=told_apart),
    )


def _zeros(row: RunRow) -> float | None:
    """Those among the recorded weights of the kept stage, of a run that was not to prune."""
    weights = weights_of(row.job.run)
    return weights.zero_share(row.figures.kept or "") if weights else None


def _figures_of_jobs(comparison: RunComparison) -> Iterator[tuple[Metric, list[ComparedFigure]]]:
    """What is known of every run without having been recorded as a figure."""
    rows, place = comparison.rows, comparison.rows.index(comparison.base)
    known: dict[MetricKey, list[float | None]] = {
        TOOK: [elapsed(row.job, row.now) for row in rows],
        PEAK: [row.job.peak_bytes for row in rows],
        SIZE: [row.size for row in rows],
    }
    for shown, values in zip(map(metric, known), known.values(), strict=True):
        bases = [None if i == place else values[place] for i in range(len(values))]
        if any(values):
            yield shown, [*map(partial(_of_job, shown), values, bases)]


def _of_job(shown: Metric, value: float | None, base: float | None) -> ComparedFigure:
    text = format_value(shown, value)
    if value is None or base is None:
        return ComparedFigure(text)
    difference = difference_html(shown, delta(shown, value, base), value, relative=True)
    return ComparedFigure(text, delta=difference)


def on_one_text(comparison: RunComparison) -> list[RunRow]:
    base = comparison.base
    rows = [row for row in comparison.rows if row.figures.final() is not None]
    return [r for r in rows if base in rows and not incomparable_because(r, base, PERPLEXITY)]


def results_chart(comparison: RunComparison) -> Chart:
    rows = [["Kept stage", *kept_labels(comparison)]]
    rows += [[shown.title, *(f.value for f in each)] for shown, each in figure_rows(comparison)]
    return Chart(None, pd.DataFrame(rows, columns=["Figure", *comparison.runs]))


def settings_chart(comparison: RunComparison) -> Chart:
    rows = [[name, *map(_value, values)] for name, values in differing(comparison).items()]
    frame = pd.DataFrame(rows, columns=["Setting", *comparison.runs])
    return Chart(None if rows else "All settings are the same.", frame)


def records(comparison: RunComparison) -> list[dict[str, Any]]:
    settings = [
        {"section": "setting", "name": name, "run": run, "value": value}
        for name, values in differing(comparison).items()
        for run, value in zip(comparison.runs, values, strict=True)
    ]
    figures = [
        _record(key, figure, row, comparison.base)
        for key in measured(comparison)
        for row in comparison.rows
        if (figure := row.figures.final_row(key))
    ]
    return settings + figures


def _record(key: MetricKey, figure: StoredResult, row: RunRow, base: RunRow) -> dict[str, Any]:
    against = base.figures.final(key)
    why = incomparable_because(row, base, key) if against is not None else "no baseline"
    change = None if against is None or why else figure.value - against
    values = ("figure", str(key), row.job.run, figure.value, figure.stderr, change, why)
    return dict(zip(EXPORTED, values, strict=True))


def to_csv(comparison: RunComparison) -> str:
    lines = [[record.get(key) for key in EXPORTED] for record in records(comparison)]
    return csv_text(lines, EXPORTED)


def to_json(comparison: RunComparison) -> str:
    base, lines = comparison.base.job.run, records(comparison)
    whole = {"baseline": base, "runs": comparison.runs, "lines": lines}
    return json.dumps(whole, indent=1, ensure_ascii=False)
