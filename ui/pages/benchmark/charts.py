"""Decoders side by side: how fast they are, where the time of a decoding step goes, how many tokens
a step yields, and what the size of the tree does."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from backend.metric_key import MetricKey
from jobs.benchmark.report import DecoderReport
from jobs.metrics import TREE
from ui.charts.chart import Chart
from ui.charts.headlines import of_break_even, of_parts, of_speed
from ui.charts.template import axis, category_axis, layout, legend_row, legend_rows, reference_line
from ui.format import esc
from ui.pages.benchmark.data import DrafterInfo
from ui.theme import BLUE, GREEN, LIGHT, ORANGE, PINK, name_colours

BAR, FEW_BARS = 40, 5  # pixels of a bar with its name; so many fit a view as it is
ROOM, MORE_ROOM = 1.4, 1.9  # times the longest bar, for the text beside it
JITTER = 0.6  # of a task's row, over which its dots are spread
PARTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {  # part of a decoding step -> label, colour
        "draft": ("Draft", ORANGE),
        "verify": ("Verify", BLUE),
        "accept": ("Accept", GREEN),
        "cache": ("Cache", PINK),
    }
)
ACCEPTED, SPEED_UP, EVEN = "accepted", "speed-up", "break even"
CURVES = ((ACCEPTED, 1, "solid"), (EVEN, 1, "dot"), (SPEED_UP, 2, "solid"))
Lines = Mapping[MetricKey, pd.DataFrame]  # the points of each curve
NODES = [2**n for n in range(9)]
NODE_TICKS: dict[str, Any] = {  # of a log axis
    "tickvals": NODES, "ticktext": [*map(str, NODES)], "showgrid": False,
}  # fmt: skip


def colours(decoders: Sequence[DecoderReport]) -> dict[str, str]:
    return name_colours(d.name for d in decoders)


def drafting(decoders: Sequence[DecoderReport]) -> list[DecoderReport]:
    return [d for d in decoders if d.drafts]


def bar_label(decoder: DecoderReport) -> str:
    """Label of a bar, short for narrow screens."""
    if not decoder.kind:
        return esc(decoder.label)
    return f"{esc(decoder.title)}<br>{esc(decoder.run)}".replace(" + ", " +<br>")


def speed_up(decoders: Sequence[DecoderReport], note: str) -> Chart:
    """Speed-up over vanilla; the lowest and highest repetition as a line through the bar."""
    frame = pd.DataFrame(
        [(d.label, d.speed_up, *d.speed_up_range(), d.speed, 100 * d.same)
         for d in decoders],
        columns=["Decoder", "Speed-up, ×", "Lowest", "Highest", "Tokens/s", "Same texts, %"],
    )  # fmt: skip
    up, low, high = frame["Speed-up, ×"], frame["Lowest"], frame["Highest"]
    bars = _bars(
        decoders, up, error_x=_range(up, low, high, LIGHT.text),
        customdata=[*zip(low, high, (d.accepted for d in decoders), strict=True)],
        hovertemplate="<b>%{y}</b><br>%{x:.2f}× (%{customdata[0]:.2f} to %{customdata[1]:.2f})"
        "<br>%{customdata[2]:.2f} tokens per step<extra></extra>",
    )  # fmt: skip
    texts = [f"{value:.2f}×" for value in up]
    looks = _bar_layout("speed", "Speed-up over vanilla, ×", decoders, high, texts)
    figure = go.Figure(bars, looks | {"shapes": [reference_line(x=1, layer="below")]})
    rows = [(d.label, d.speed_up, d.faster) for d in drafting(decoders)]
    return Chart(figure, frame, note, headline=of_speed(rows))


def gain(
    decoders: Sequence[DecoderReport], drafters: Mapping[str, DrafterInfo], default: bool, note: str
) -> Chart:
    """Tokens per step as a bar, break-even as a line, prediction as a ring. `default`: the trees
    follow the drafter's confidence."""
    known = [drafters.get(d.name, DrafterInfo()) for d in decoders]
    frame = pd.DataFrame(
        [(d.label, d.accepted, k.expected(d, default), d.break_even, d.nodes, k.parameters, k.steps)
         for d, k in zip(decoders, known, strict=True)],
        columns=["Decoder", "Tokens per step", "Predicted", "Break-even", "Tree nodes",
                 "Parameters", "Training steps"],
    )  # fmt: skip
    bars = _bars(
        decoders, frame["Tokens per step"],
        hovertemplate="<b>%{y}</b><br>%{x:.2f} tokens per step<extra></extra>",
    )  # fmt: skip
    marks = go.Scatter(
        x=frame["Break-even"], y=bars.y, mode="markers",
        marker={"symbol": "line-ns", "size": 32, "line": {"width": 3, "color": LIGHT.text}},
        hovertemplate="<b>%{y}</b><br>breaks even at %{x:.2f} tokens per step<extra></extra>",
    )  # fmt: skip
    frame["Predicted"] = frame["Predicted"].astype(float)
    rings = go.Scatter(
        x=frame["Predicted"], y=bars.y, mode="markers",
        marker={"symbol": "circle-open", "size": 12, "line": {"width": 2, "color": LIGHT.text}},
        hovertemplate="<b>%{y}</b><br>%{x:.2f} tokens per step were predicted<extra></extra>",
    )  # fmt: skip
    reach = frame[["Tokens per step", "Break-even", "Predicted"]].max(axis=1)
    texts = [f"{value:.2f}" for value in frame["Tokens per step"]]
    looks = _bar_layout("gain", "Tokens per step", decoders, reach, texts)
    rows = [(d.label, d.accepted, d.break_even) for d in drafting(decoders)]
    figure = go.Figure([bars, marks, rings], looks)
    return Chart(figure, frame, note, headline=of_break_even(rows))


def step_time(decoders: Sequence[DecoderReport], note: str) -> Chart:
    """Mean milliseconds of one decoding step, by its parts; per token beside the bar."""
    titles = {part: f"{label}, ms" for part, (label, _) in PARTS.items()}
    frame = pd.DataFrame(
        {"Decoder": d.label, **{t: d.milliseconds.get(part, 0.0) for part, t in titles.items()}}
        for d in decoders
    )
    traces = [
        _bars(
            decoders, frame[titles[part]], name=label, marker={"color": colour},
            hovertemplate=f"<b>%{{y}}</b><br>{label}: %{{x:.2f}} ms<extra></extra>",
        )
        for part, (label, colour) in PARTS.items()
    ]  # fmt: skip
    whole = frame[[*titles.values()]].sum(axis=1)
    texts = [f"{t / d.accepted:.1f} ms/token" for t, d in zip(whole, decoders, strict=True)]
    looks = _bar_layout("time", "Milliseconds per step", decoders, whole, texts, MORE_ROOM)
    row = legend_row(traceorder="normal")
    figure = go.Figure(traces, looks | {"margin": {"t": row.pop("top")}, "barmode": "stack"} | row)
    slowest = max(decoders, key=lambda d: sum(d.milliseconds.values()))
    parts = {label: slowest.milliseconds.get(part, 0.0) for part, (label, _) in PARTS.items()}
    return Chart(figure, frame, note, headline=of_parts(slowest.label, parts))


def _bars(decoders: Sequence[DecoderReport], values: pd.Series, **options: Any) -> go.Bar:
    paint = colours(decoders)
    marker = {"color": [paint[d.name] for d in decoders]}
    names = [*map(bar_label, decoders)]
    return go.Bar(x=values, y=names, orientation="h", width=0.5, **{"marker": marker} | options)


def _range(value: pd.Series, low: pd.Series, high: pd.Series, colour: str) -> dict[str, Any]:
    return {"color": colour, "thickness": 1, "array": high - value, "arrayminus": value - low}


def _bar_layout(
    view: str,
    title: str,
    decoders: Sequence[DecoderReport],
    ends: pd.Series,
    texts: Sequence[str],
    room: float = ROOM,
) -> dict[str, Any]:
    notes = [
        {"x": end, "y": bar_label(d), "text": text, "xshift": 8, "font": {"color": LIGHT.text},
         "bgcolor": LIGHT.paper}
        for d, end, text in zip(decoders, ends, texts, strict=True)
    ]  # fmt: skip
    return layout(
        view=view,
        more=BAR * max(0, len(decoders) - FEW_BARS),
        annotations=notes,
        xaxis=axis(title, range=[0, room * ends.max()]),
        yaxis=category_axis(),
    )


def by_task(decoders: Sequence[DecoderReport], note: str) -> Chart:
    """One row a task, one dot a decoder: speed-up with its range."""
    drafters = drafting(decoders)
    frame = pd.DataFrame(
        [(d.label, name.replace("_", " "), up, *d.speed_up_range(name), n)
         for d in drafters for name, (up, n) in d.tasks.items()],
        columns=["Decoder", "Task", "Speed-up, ×", "Lowest", "Highest", "Tokens per step"],
    )  # fmt: skip
    tasks = [*dict.fromkeys(frame["Task"])]
    paint, figure = colours(decoders), go.Figure()
    for place, decoder in enumerate(drafters):
        rows = frame[frame["Decoder"] == decoder.label]
        up = rows["Speed-up, ×"]
        shift = JITTER * ((place + 0.5) / len(drafters) - 0.5)
        figure.add_scatter(
            x=up,
            y=[tasks.index(task) + shift for task in rows["Task"]],
            name=esc(decoder.label), mode="markers", cliponaxis=False,
            marker={"size": 9, "color": paint[decoder.name]},
            error_x=_range(up, rows["Lowest"], rows["Highest"], paint[decoder.name]),
            customdata=[*map(esc, rows["Task"])],
            hovertemplate="<b>%{customdata}</b><br>%{fullData.name}: %{x:.2f}<extra></extra>",
        )  # fmt: skip
    rows_axis = axis(
        tickvals=[*range(len(tasks))], ticktext=[*map(esc, tasks)], showgrid=False,
        range=[len(tasks) - 0.5, -0.5], tickfont={"color": LIGHT.text},
    )  # fmt: skip
    looks = _with_legend("tasks", drafters, axis("Speed-up over vanilla, ×"), rows_axis)
    figure.update_layout(looks, shapes=[reference_line(x=1)])
    return Chart(figure, frame, note)


def _with_legend(
    view: str, lines: Sequence[object], xaxis: dict[str, Any], yaxis: dict[str, Any]
) -> dict[str, Any]:
    rows = legend_rows(len(lines), grow=True)
    return layout(view=view, xaxis=xaxis, yaxis=yaxis, **rows)


# the size of the tree -----------------------------------------------------------------------------


def sizes_of(curves: Lines, decoder: str) -> dict[str, pd.Series]:
    """Series -> values by tree size, of one drafter; nothing where sizes were not tried."""
    keys = {series: MetricKey(TREE, decoder, series, "nodes") for series, *_ in CURVES}
    rows = {series: curves[key] for series, key in keys.items() if key in curves}
    return {series: points.set_index("step")["value"] for series, points in rows.items()}


def tree_sizes(curves: Lines, decoders: Sequence[DecoderReport]) -> Chart:
    """Over the size of the tree: tokens per step with its break-even, and below the speed-up."""
    paint = colours(decoders)
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.08, shared_xaxes=True)
    tried = [(d, sizes) for d in decoders if (sizes := sizes_of(curves, d.name))]
    for decoder, sizes in tried:
        for name, row, dash in CURVES:
            colour, label = paint[decoder.name], esc(decoder.label)
            figure.add_scatter(
                x=[int(n) for n in sizes[name].index], y=[*sizes[name]], name=label,
                mode="lines+markers", legendgroup=label, showlegend=name == ACCEPTED,
                line={"color": colour, "dash": dash}, row=row, col=1, cliponaxis=False,
                marker={"size": 7, "color": colour if dash == "solid" else LIGHT.paper,
                        "line": {"color": colour, "width": 2}},
                hovertemplate=f"<b>{label}</b><br>%{{x}} nodes, {name}: %{{y:.2f}}<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(type="log", **NODE_TICKS)
    figure.update_xaxes(axis("Tree nodes", log=True), row=2, col=1)
    figure.update_yaxes(axis("Tokens per step", nticks=5), row=1, col=1)
    figure.update_yaxes(axis("Speed-up, ×", nticks=5), row=2, col=1)
    figure.update_layout(layout(view="sizes", **legend_rows(len(tried), grow=True)))
    frame = pd.DataFrame(
        [(d.label, nodes, *(sizes[name][nodes] for name in (ACCEPTED, EVEN, SPEED_UP)))
         for d, sizes in tried for nodes in sizes[ACCEPTED].index],
        columns=["Decoder", "Tree nodes", "Tokens per step", "Break-even", "Speed-up, ×"],
    )  # fmt: skip
    return Chart(figure, frame)
