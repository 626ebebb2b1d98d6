"""One figure of every channel of a tensor, at several stages, outliers marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ui.charts.chart import Chart
from ui.charts.headlines import of_outliers
from ui.charts.series import line_width
from ui.charts.template import axis, layout, legend_rows, line_look
from ui.format import count, share
from ui.theme import LineStyle

MAX_POINTS = 1000  # of a line; beyond, each stretch keeps its lowest and highest channel
FENCE = 3.0  # Tukey's outer fence, in interquartile ranges
NAMED = 8  # outliers in the note
LISTED = 100  # channels in the table
KINDS = {"row": "output", "column": "input"}
UNITS = {"norm": "Norm of a channel's weights", "max": "Largest |weight| of a channel",
         "zeros": "Exact zeros of a channel, %"}  # fmt: skip


@dataclass(frozen=True)
class Channels:
    """One figure of all channels at one stage; shares are in %."""

    label: str
    stroke: LineStyle
    stage: str
    values: np.ndarray


def channels_chart(
    drawn: Sequence[Channels],
    zeros: Sequence[Channels],
    *,
    side: str,
    measure: str,
    by_size: bool,
    log_y: bool,
) -> Chart:
    """`channel_lines` with the outliers of the first stage ringed, a table and a note; `zeros` as
    for `outliers_note`."""
    outliers = find_outliers(drawn[0].values)
    figure = channel_lines(
        drawn, side=side, measure=measure, by_size=by_size, log_y=log_y, outliers=outliers.tolist()
    )
    note = f"{channels_note(drawn, log_y)} {outliers_note(outliers, zeros)}"
    first, median = drawn[0], float(np.median(drawn[0].values))
    kind = f"{KINDS[side]} channel"
    times = float(first.values.max()) / median if median else 0.0
    title = of_outliers(kind, first.label, len(outliers), times) if median else ""
    return Chart(figure, channels_frame(drawn, by_size), note, headline=title)


def channel_lines(
    drawn: Sequence[Channels],
    *,
    side: str,
    measure: str,
    by_size: bool = True,
    log_y: bool = False,
    outliers: Sequence[int] = (),
) -> go.Figure:
    """A line a stage over the channels.

    Args:
        side, measure: keys of `SIDES` and `MEASURES`.
        by_size: each line from its largest channel to its smallest; else by number.
        outliers: channels that are marked on every line.
    """
    title = "Rank, each stage from its largest channel on" if by_size else "Number of the channel"
    scale: dict[str, Any] = {} if log_y else {"rangemode": "tozero"}
    marked = [_marks(c, by_size, outliers) for c in drawn] if len(outliers) else []
    looks = layout(
        view=f"{side}/{measure}/{by_size}/{log_y}",
        xaxis=axis(title, showgrid=False, rangemode="nonnegative"),
        yaxis=axis(UNITS[measure], log=log_y, nticks=6, **scale),
        hovermode="x unified",
        **legend_rows(len(drawn)),
    )
    return go.Figure([_line(c, by_size, place) for place, c in enumerate(drawn)] + marked, looks)


def ranked(channels: Channels, by_size: bool) -> np.ndarray:
    """The channels in the order they are drawn."""
    values = channels.values
    return np.argsort(-values, kind="stable") if by_size else np.arange(len(values))


def find_outliers(values: np.ndarray) -> np.ndarray:
    """Channels beyond Tukey's outer fences, the farthest first."""
    low, high = np.percentile(values, [25, 75])
    far = np.maximum(values - high, low - values)
    beyond = np.flatnonzero(far > FENCE * (high - low)) if high > low else np.arange(0)
    return beyond[np.argsort(-far[beyond], kind="stable")]


def outliers_note(outliers: np.ndarray, zeros: Sequence[Channels]) -> str:
    """Which channels stand out, and whether they were spared: `zeros` holds the share of zeros
    of every channel at each stage drawn, %."""
    if not len(outliers):
        return f"No channel lies beyond the outer fences ({FENCE:g} interquartile ranges)."
    names = ", ".join(map(str, outliers[:NAMED])) + (" …" if len(outliers) > NAMED else "")
    many = "1 outlier (ring)" if len(outliers) == 1 else f"{count(len(outliers))} outliers (rings)"
    words = [f"{many}: {names}."]
    for stage in zeros:
        others = np.delete(stage.values, outliers)
        if stage.values.max() > 0 and len(others):
            of_them, of_rest = stage.values[outliers].mean(), others.mean()
            words.append(
                f"{stage.label}: {share(of_them / 100)} of their weights are zero, "
                f"{share(of_rest / 100)} of the others'."
            )
    return " ".join(words)


def envelope(values: np.ndarray, most: int = MAX_POINTS) -> np.ndarray:
    """Places to draw: all, or the lowest and the highest of each of `most` / 2 stretches."""
    if len(values) <= most:
        return np.arange(len(values))
    stretches = np.array_split(np.arange(len(values)), most // 2)
    ends = [(s[values[s].argmin()], s[values[s].argmax()]) for s in stretches]
    return np.unique(np.array(ends))


def _line(channels: Channels, by_size: bool, place: int) -> go.Scatter:
    order = ranked(channels, by_size)
    values = channels.values[order]
    kept = envelope(values)
    width = line_width(place) if by_size else 1.0
    return go.Scatter(
        x=kept.tolist(), y=values[kept].tolist(), customdata=order[kept].tolist(), mode="lines",
        line=line_look(channels.stroke, width=width), name=channels.label,
        hovertemplate=f"{channels.label}, channel %{{customdata}}: %{{y:.4g}}<extra></extra>",
    )  # fmt: skip


def _marks(channels: Channels, by_size: bool, outliers: Sequence[int]) -> go.Scatter:
    order = ranked(channels, by_size)
    spots = np.flatnonzero(np.isin(order, outliers))
    ring = {"symbol": "circle-open", "size": 7, "color": channels.stroke.colour}
    return go.Scatter(
        x=spots.tolist(), y=channels.values[order][spots].tolist(), mode="markers",
        marker=ring | {"line": {"width": 1.5}}, showlegend=False, hoverinfo="skip",
    )  # fmt: skip


def channels_frame(drawn: Sequence[Channels], by_size: bool) -> pd.DataFrame:
    """The first channels as a table, in the order of the first stage drawn."""
    order = ranked(drawn[0], by_size)[:LISTED]
    return pd.DataFrame({"Channel": order} | {c.label: c.values[order] for c in drawn})


def channels_note(drawn: Sequence[Channels], log_y: bool = False) -> str:
    """In words: how many channels, and whether all of them are drawn."""
    n = len(drawn[0].values)
    each = f", the lowest and highest of each {2 * n / MAX_POINTS:.0f} drawn"
    words = [f"n = {count(n)} channels{each if n > MAX_POINTS else ''}."]
    zero = sum(int((c.values <= 0).sum()) for c in drawn)
    words += [f"Zeros that a log axis leaves out: {count(zero)}."] if log_y and zero else []
    return " ".join(words)
