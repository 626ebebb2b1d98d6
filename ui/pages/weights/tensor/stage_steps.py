"""One tensor's histogram as it passes through the stages, to be moved through with a slider.

The figure holds the stop it starts at; `layout.meta.scrub` holds all of them, and the browser goes
from one to the next (`assets/scripts/scrubber.js`). Nothing between two stops is measured: the
200 ms of the transition only help the eye.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from ui.charts.headlines import of_zeros
from ui.charts.histograms import PER_BIN
from ui.charts.series import Series, ceiling, on_shared_bins, reach, step_line
from ui.charts.template import axis, layout, tint
from ui.theme import LIGHT, LineStyle


def stage_steps_figure(
    series: Sequence[Series], sentences: Sequence[str], at: str = ""
) -> go.Figure:
    """The histogram at one stop, the first stop behind it as an outline. There is a sentence for
    each stop; the stage `at` is the one to begin with, or the first."""
    drawn = on_shared_bins(series)
    stops = [_stop(s, sentence) for s, sentence in zip(drawn, sentences, strict=True)]
    start = next((i for i, s in enumerate(drawn) if s.snapshot.stage == at), 0)
    first, now = drawn[0], drawn[start]
    moving = step_line(
        first.centres, now.heights, LineStyle(now.stroke.colour), 2, fill=0.3, name=now.label,
        hovertemplate="%{y:.3f} %<extra></extra>",
    )  # fmt: skip
    behind = step_line(
        first.centres, first.heights, LineStyle(LIGHT.muted, "dot"), 1, name=first.label,
        hoverinfo="skip",
    )  # fmt: skip
    looks = layout(
        view=f"{first.snapshot.tensor}/story",
        meta={"scrub": {"trace": 1, "at": start, "stops": stops}},
        xaxis=axis("Weight", showgrid=False, range=reach(drawn)),
        yaxis=axis(PER_BIN, range=[0, ceiling(drawn)]),
        hovermode="x",
    )
    return go.Figure([behind, moving], looks)


def _stop(series: Series, sentence: str) -> dict[str, Any]:
    return {
        "name": series.snapshot.stage,
        "label": series.label,
        "title": of_zeros([(series.label, series.zero_share)]),
        "said": sentence,
        "y": [round(float(h), 5) for h in series.heights],
        "colour": series.stroke.colour,
        "fill": tint(series.stroke.colour, 0.3),
    }
