"""A figure and the frame it is drawn from, as a panel of a page shows them."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go


@dataclass(frozen=True)
class Chart:
    """Content of a panel."""

    figure: go.Figure | str | dict[str, Any] | None  # a sentence says why there is none
    frame: pd.DataFrame | None = None  # figures drawn, a row each, headed by the first column
    note: str = ""  # number of values shown
    question: str = ""  # instead of the panel's own
    name: str = ""  # of its files, where run and panel do not tell enough
    headline: str = ""  # finding on this data, its title; the panel's own if empty
    theory: str = ""  # known fact about such charts, with its source
