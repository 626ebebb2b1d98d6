"""What the chart component sends to the browser."""

import json

import numpy as np
import plotly.graph_objects as go
import pytest

from ui.static import SCRIPT_URL, SCRIPTS
from ui.widgets.html import WIDGETS
from ui.widgets.panel import PlotlyView

HOSTILE = "${document.body.dataset.x=1}<img src=x onerror=alert(1)>{{value}}`"


@pytest.fixture
def view() -> PlotlyView:
    return PlotlyView("A chart", 300)


def test_a_figure_becomes_plain_json_and_nothing_says_why(view: PlotlyView) -> None:
    figure = go.Figure(go.Scatter(x=np.arange(3), y=[1.0, None, 3.0]))
    sent = view.postprocess(figure)
    assert json.loads(json.dumps(sent)) == sent
    assert sent["data"][0]["y"] == [1.0, None, 3.0]
    assert view.postprocess(sent) is sent
    assert view.postprocess(None) == "Nothing to show yet."
    assert view.postprocess("No run.") == "No run."
    assert view.postprocess("") == "", "data is on its way"
    assert "min-height:300px" in view.html_template
    assert view.apply_default_css is False


def test_labels_and_words_around_a_chart_are_escaped_and_figures_exact() -> None:
    hostile = PlotlyView(HOSTILE, 300)
    assert not any(token in hostile.html_template for token in ("${", "{{", "`", "<img"))
    assert "<img" not in WIDGETS.chart_note(HOSTILE, HOSTILE)
    table = WIDGETS.data_table([HOSTILE], [["a"]], HOSTILE)
    assert "<img" not in table and "${" not in table
    table = WIDGETS.data_table(["Stage", "Std"], [["Dense", ("0.14", 0.1432)]], "name")
    assert '<th scope="col" class="num">Std</th>' in table
    assert '<th scope="row">Dense</th><td class="num" data-value="0.1432">0.14</td>' in table
    assert 'data-csv="name"' in table


def test_the_script_is_ours_and_uploads_nothing() -> None:
    script = (SCRIPTS / "slimscope.js").read_text()
    for setting in ("showSendToCloud: false", 'plotlyServerURL: ""', "displaylogo: false"):
        assert setting in script
    view = PlotlyView("x", 300)
    assert view.head == f'<script src="{SCRIPT_URL}"></script>'
