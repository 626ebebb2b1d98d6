"""A figure and the frame it is drawn from, as a panel of a page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go


@dataclass(frozen=True)
class Chart:
    """What a panel shows.

    Attributes:
        figure: a figure, a sentence that says why there is none, or None for "nothing to show".
        frame: the figures drawn, a row each; the first column heads the row, as text or `Markup`.
        headline: what the chart shows on this data, its title; the panel's own where it is empty.
        note: how many values are shown, behind the question.
        question: instead of the panel's own.
        theory: what is known about such charts, a sentence with its source.
        name: of its files, where run and panel do not tell enough.
    """

    figure: go.Figure | str | dict[str, Any] | None
    frame: pd.DataFrame | None = None
    note: str = ""
    question: str = ""
    name: str = ""
    headline: str = ""
    theory: str = ""
