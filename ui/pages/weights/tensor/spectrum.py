"""Singular values of a tensor at several stages, with the power law of their tail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ui.charts.chart import Chart
from ui.charts.headlines import of_rank
from ui.charts.series import Series, line_width
from ui.charts.template import layout, legend_rows, line_look, log_axis
from ui.format import number

MIN_SINGULAR_VALUE = 1e-3  # of the largest: smaller singular values are left out of the axis


@dataclass(frozen=True)
class Spectrum:
    """Singular values [rank], descending, of a tensor at one stage."""

    series: Series
    values: np.ndarray

    @property
    def stable_rank(self) -> float:
        """Sum of squares over the largest square."""
        return float((self.values**2).sum() / self.values[0] ** 2)

    def tail(self) -> np.ndarray | None:
        """Both ends of the fitted tail [2, 2]: (rank, value), the rank of the law."""
        stats = self.series.snapshot.stats
        if not {"alpha", "alpha_start"} <= stats.keys():
            return None
        start, alpha = stats["alpha_start"], stats["alpha"]
        members = int((self.values >= start * (1 - 1e-3)).sum())
        ends = np.array([start, self.values[0]])
        ranks = members * (ends / start) ** (-2 * (alpha - 1))
        return np.stack([ranks, ends], 1)


def spectrum_chart(drawn: Sequence[Spectrum]) -> Chart:
    """`spectrum_figure` with its figures as a table, a note and a headline."""
    ranks = [(s.series.label, s.stable_rank) for s in drawn]
    fits = [
        f"{s.series.label} α = {number(s.series.snapshot.stats['alpha'], 3)}"
        for s in drawn
        if "alpha" in s.series.snapshot.stats
    ]
    note = f"n = {len(drawn[0].values)} singular values."
    note += f" Dotted: power law of the tail, {', '.join(fits)}." if fits else ""
    return Chart(spectrum_figure(drawn), spectrum_frame(drawn), note, headline=of_rank(ranks))


def spectrum_figure(drawn: Sequence[Spectrum]) -> go.Figure:
    """Singular value over rank, both on log axes."""
    figure = go.Figure()
    for place, spectrum in enumerate(drawn):
        series = spectrum.series
        figure.add_scatter(
            x=np.arange(1, len(spectrum.values) + 1).tolist(), y=_short(spectrum.values),
            mode="lines", name=series.label,
            line=line_look(series.stroke, width=line_width(place)),
            hovertemplate=f"{series.label} %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
        if (tail := spectrum.tail()) is not None:
            figure.add_scatter(
                x=_short(tail[:, 0]), y=_short(tail[:, 1]), mode="lines", showlegend=False,
                line={"color": series.stroke.colour, "dash": "dot", "width": 1.5},
                hoverinfo="skip",
            )  # fmt: skip
    top = max(float(s.values[0]) for s in drawn)
    low = max(MIN_SINGULAR_VALUE * top, min(float(s.values[s.values > 0].min()) for s in drawn))
    span = [float(np.log10(low)) - 0.05, float(np.log10(top)) + 0.08]
    ranks = [-0.02, float(np.log10(max(len(s.values) for s in drawn))) + 0.02]
    looks = layout(
        view="spectrum",
        xaxis=log_axis("Rank", ranks),
        yaxis=log_axis("Singular value", span),
        hovermode="x unified",
        **legend_rows(len(drawn)),
    )
    return figure.update_layout(looks)


def spectrum_frame(drawn: Sequence[Spectrum]) -> pd.DataFrame:
    """A row a rank, a column a stage."""
    longest = max(len(s.values) for s in drawn)
    columns = {s.series.label: pd.Series(s.values) for s in drawn}
    return pd.DataFrame({"Rank": np.arange(1, longest + 1)} | columns)


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{v:.5g}") for v in values]
