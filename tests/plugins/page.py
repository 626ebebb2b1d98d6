"""A page in one file: how many runs there are, as a sentence and as a chart with its data."""

import pandas as pd
import plotly.graph_objects as go

from backend.store import queries
from ui.frame import Page, live
from ui.widgets.panel import Chart, Outputs, Panel, Updates

RUNS = Panel("states", "Runs by state", "How many runs are there in each state?")


def build() -> None:
    page = Outputs(RUNS.build("toy"))
    live(page.named(draw), None, page.components)


def draw() -> Updates:
    """The runs counted by state."""
    states = pd.Series([job.state for job in queries.jobs()], dtype=str)
    frame = states.value_counts().rename_axis("State").reset_index(name="Runs")
    return RUNS.show(Chart(go.Figure(go.Bar(x=frame["State"], y=frame["Runs"])), frame))


PAGES = (Page("Toy page", "toy-page", build, order=45, key="t"),)
