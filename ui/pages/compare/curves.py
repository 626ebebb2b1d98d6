"""One curve of several runs over each other."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from backend.store import frames
from ui.charts.chart import Chart
from ui.charts.lines import Line, curve_titles, curves_frame, line_chart, reduced_note
from ui.pages.compare.comparison import RunComparison
from ui.runs.results import display_units, stages_of

MAX_ROWS = 2000  # of the table
SMOOTHING = {"none": 0.0, "some": 0.6, "strong": 0.9}


def curves_of(comparison: RunComparison) -> tuple[dict[str, pd.DataFrame], list[str]]:
    points = {run: display_units(frames.shown_curves(run)) for run in comparison.runs}
    lengths = [df.groupby("name", sort=False).size() for df in points.values()]
    lines = dict.fromkeys(str(name) for each in lengths for name in each.index[each > 1])
    return points, list(lines)


def chosen_curve(comparison: RunComparison, names: list[str], wanted: str | None) -> str:
    kept = f"error/{comparison.base.figures.kept}"
    return next((name for name in (wanted, kept) if name in names), names[0])


def curve_chart(
    comparison: RunComparison,
    points: Mapping[str, pd.DataFrame],
    name: str,
    *,
    log_y: bool,
    smoothing: str | None,
) -> Chart:
    by_run = {run: df[df["name"] == name] for run, df in points.items()}
    drawn = {run: df for run, df in by_run.items() if len(df)}
    titles = curve_titles(name)
    strokes = comparison.strokes
    figure = line_chart(
        [Line(run, df, strokes[run]) for run, df in drawn.items()], view=f"{name}{log_y}",
        x_title=titles.x, y_title=titles.y, log_y=log_y,
        smoothing=SMOOTHING.get(smoothing or "", 0.0),
    )  # fmt: skip
    figure.update_layout(showlegend=True)  # a single line, too, has to say whose it is
    together = pd.concat([df.assign(name=run) for run, df in drawn.items()])
    frame = curves_frame(together, {run: run for run in drawn}, titles.x).head(MAX_ROWS)
    lengths = ", ".join(f"{run} {len(df):,}" for run, df in drawn.items())
    left_out = int((together["value"] <= 0).sum()) if log_y else 0
    hidden = f" Not shown on a log axis: {left_out:,} values of 0 or less." if left_out else ""
    reduced = next(filter(None, map(reduced_note, drawn.values())), "")
    return Chart(figure, frame, f"n = {lengths} points.{hidden}{reduced}")


def curve_label(name: str, comparison: RunComparison) -> str:
    """Label of a curve: "Relative output error · Second pruning (SDS)"."""
    rest, label = name.partition("/")[2], curve_titles(name).label
    stages = {
        s: row.figures.label(s)
        for row in comparison.rows
        for s in stages_of(row.job) or row.figures.stages
    }
    return f"{label} · {stages.get(rest, rest)}" if rest else label
