"""One tensor's histogram as it passes through the stages, to be moved through with a slider.

The figure holds the stop it starts at; `layout.meta.scrub` holds all of them, and the browser goes
from one to the next (`assets/slimscope.js`). Nothing between two stops is measured: the 200 ms of
the transition only help the eye.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from ui.charts.histograms import PER_BIN
from ui.charts.series import Series, ceiling, reach, shared
from ui.charts.template import axis, layout, tint
from ui.theme import LIGHT


def stage_steps_figure(series: Sequence[Series], said: Sequence[str], at: str = "") -> go.Figure:
    """The histogram at one stop, the first stop behind it as an outline.

    Args:
        series: the stops, in the order the tensor passed through them.
        said: a sentence for each.
        at: stage of the stop to begin with; else the first.
    """
    drawn = shared(series)
    stops = [_stop(s, words) for s, words in zip(drawn, said, strict=True)]
    start = next((i for i, s in enumerate(drawn) if s.snapshot.stage == at), 0)
    first, now = drawn[0], drawn[start]
    limit = ceiling(drawn)
    centres = first.centres.tolist()
    moving = go.Scatter(
        x=centres,
        y=now.heights.tolist(),
        mode="lines",
        line={"shape": "hvh", "color": now.stroke.colour, "width": 2},
        fill="tozeroy",
        fillcolor=tint(now.stroke.colour, 0.3),
        name=now.label,
        hovertemplate="%{y:.3f} %<extra></extra>",
    )
    behind = go.Scatter(
        x=centres,
        y=first.heights.tolist(),
        mode="lines",
        line={"shape": "hvh", "color": LIGHT.muted, "width": 1, "dash": "dot"},
        name=first.label,
        hoverinfo="skip",
    )
    return go.Figure(
        [behind, moving],
        layout(
            view=f"{first.snapshot.tensor}/story",
            meta={"scrub": {"trace": 1, "at": start, "stops": stops}},
            xaxis=axis("Weight", showgrid=False, range=reach(drawn)),
            yaxis=axis(PER_BIN, range=[0, limit]),
            hovermode="x",
        ),
    )


def _stop(series: Series, words: str) -> dict[str, Any]:
    return {
        "name": series.snapshot.stage,
        "label": series.label,
        "said": words,
        "y": [round(float(h), 5) for h in series.heights],
        "colour": series.stroke.colour,
        "fill": tint(series.stroke.colour, 0.3),
    }
