"""One curve of several runs over each other, as the page Compare shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd
import plotly.graph_objects as go

from backend.store import frames
from jobs.metrics import metric
from ui.format import NONE, number
from ui.pages.compare.charts import SMOOTHING, overlaid
from ui.pages.compare.comparison import RunComparison
from ui.runs.results import display_units, kind_of
from ui.runs.rows import RunRow
from ui.widgets.chart import note_html
from ui.widgets.html import Cell, data_table

ASK = "Where do the runs part ways?"
MOST_ROWS = 2000
X_TITLES = {"error": "Block"}
TITLES = {"error": "Relative output error"}


def curves_of(of: RunComparison) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The points of every run, and the curves that one or more of them has drawn."""
    points = {run: display_units(frames.curves(run)) for run in of.runs}
    return points, list(dict.fromkeys(name for df in points.values() for name in _lines(df)))


def _lines(points: pd.DataFrame) -> list[str]:
    """The curves with more than a single point."""
    lengths = points.groupby("name", sort=False).size()
    return [str(name) for name in lengths.index[lengths > 1]]


def chosen_curve(of: RunComparison, offered: list[str], wanted: str | None) -> str:
    """The wanted curve, else the error of the stage the baseline kept, else the first."""
    kept = f"error/{of.base.figures.kept}"
    return next((name for name in (wanted, kept) if name in offered), offered[0])


def drawn_curve(
    of: RunComparison,
    points: Mapping[str, pd.DataFrame],
    name: str,
    *,
    log_y: bool,
    smoothing: str | None,
) -> tuple[go.Figure, str, str]:
    """Figure, note and table of one curve."""
    found = {run: df[df["name"] == name] for run, df in points.items()}
    held = {run: df for run, df in found.items() if len(df)}
    group = name.split("/")[0]
    x_title = X_TITLES.get(group, "Step")
    figure = overlaid(
        held,
        of.strokes,
        x_title=x_title,
        y_title=_title(group),
        log_y=log_y,
        smoothing=SMOOTHING.get(smoothing or "", 0.0),
        view=f"{name}{log_y}",
    )
    lengths = ", ".join(f"{run} {len(df):,}" for run, df in held.items())
    counted = f"n = {lengths} points.{_left_out(held.values()) if log_y else ''}"
    return figure, note_html(ASK, counted), _table(held, name, x_title)


def _left_out(held: Iterable[pd.DataFrame]) -> str:
    """What an axis in powers of ten cannot show."""
    n = sum(int((df["value"] <= 0).sum()) for df in held)
    return f" Values of 0 or less that are not shown: {n:,}." if n else ""


def _title(group: str) -> str:
    return TITLES.get(group, metric(group).title)


def curve_label(name: str, of: RunComparison) -> str:
    """What a curve is called: "Relative output error · Second pruning (SDS)"."""
    group, _, rest = name.partition("/")
    labels = {stage: row.figures.label(stage) for row in of.rows for stage in _stages(row)}
    return f"{_title(group)} · {labels.get(rest, rest)}" if rest else _title(group)


def _stages(row: RunRow) -> list[str]:
    kind = kind_of(row.job)
    return [*kind.stages] if kind else row.figures.stages


def _table(held: Mapping[str, pd.DataFrame], name: str, x_title: str) -> str:
    wide = pd.concat([df.assign(run=run) for run, df in held.items()])
    wide = wide.pivot_table("value", "step", "run")[[*held]].head(MOST_ROWS)
    rows: list[list[Cell]] = [
        [str(step), *(cell(None if pd.isna(v) else float(v)) for v in row)]
        for step, row in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    return data_table([x_title, *held], rows, name.replace("/", "-"))


def cell(value: float | None) -> Cell:
    """A figure and what it stands for; a dash where there is none."""
    return NONE if value is None else (number(value), value)
