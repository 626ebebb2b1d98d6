"""The weights of one tensor on the weight axis: its stages over each other."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from ui.charts.chart import Chart
from ui.charts.headlines import of_zeros
from ui.charts.series import (
    Series,
    bins_frame,
    ceiling,
    cut_off_peaks,
    cutoff_lines,
    cutoff_note,
    line_width,
    on_shared_bins,
    reach,
    series_note,
    step_line,
)
from ui.charts.template import axis, layout, legend_rows

MAX_STAGES = 4
PER_BIN = "Share of all weights per bin, %"


def overlay(series: Sequence[Series], *, log_y: bool = False) -> go.Figure:
    """Histograms over each other; the first is filled, the shape the others are seen against."""
    drawn = on_shared_bins(series)
    tensor = drawn[0].snapshot.tensor if drawn else ""
    view = f"{tensor}/{'log' if log_y else 'linear'}"
    decades: dict[str, Any] = {"dtick": 1} if log_y else {"range": [0, ceiling(drawn)]}
    looks = layout(
        view=tensor,
        hovermode="x unified",
        yaxis=axis(PER_BIN, log=log_y, nticks=6, uirevision=view, **decades),
        xaxis=axis(
            "Weight", showgrid=False, range=None if log_y else reach(drawn), uirevision=view
        ),
        **legend_rows(len(drawn)),
        **cutoff_lines(drawn),
    )
    return go.Figure([_outline(s, place, log_y) for place, s in enumerate(drawn)], looks)


def overlay_chart(series: Sequence[Series], *more: str, figure: go.Figure | None = None) -> Chart:
    """`overlay`, or another figure of the same histograms, with its data and what it leaves out."""
    binned = on_shared_bins(series)
    notes = (series_note(binned), cut_off_peaks(binned), cutoff_note(binned), *more)
    title = of_zeros([(s.label, s.zero_share) for s in series])
    note = " ".join(filter(None, notes))
    return Chart(figure or overlay(series), bins_frame(binned), note, headline=title)


def _outline(series: Series, place: int, log_y: bool) -> go.Scatter:
    """The histogram of a stage as a step line; the dense tensor, drawn first, as a filled shape. A
    log axis leaves out empty bins. `place`: in the order of drawing."""
    filled = place == 0 and series.is_dense
    return step_line(
        series.centres,
        [None if log_y and h == 0 else float(h) for h in series.heights],
        series.stroke,
        1 if filled else line_width(place),
        fill=0.25 if filled and not log_y else 0.0,
        customdata=series.snapshot.counts.tolist(),
        name=series.title,
        hovertemplate=f"{series.label} %{{y:.3f}} %, n = %{{customdata:,.0f}}<extra></extra>",
    )
