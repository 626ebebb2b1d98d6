"""The charts of the Trade-offs page: of a view each makes a figure, a note and a frame."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.errors import SlimscopeError
from backend.sensitivity.budget import Mix
from backend.sensitivity.profile import Format
from ui.charts.chart import Chart, axis, layout, legend_row, log_axis, reference_line
from ui.charts.heatmap import block_heatmap
from ui.charts.lines import dots, log_span
from ui.format import NBSP, NONE, count, esc, href, number, of_unit, share, threads
from ui.format import runs as count_runs
from ui.pages.trade_offs.selection import SIZE, SPEED, Landmark, TradeoffView, landmarks_file
from ui.runs.profiles import MeasuredRun, format_colors, layers_table, short_labels
from ui.theme import BLUE, GREEN, LIGHT, VERMILLION
from ui.widgets.html import WIDGETS
from ui.widgets.panel import Panel

RATIO = "Perplexity over dense"
NAMED = 6  # runs whose setting is written beside them
FRONT = Panel(
    "front",
    "Size against quality",
    "What does a smaller model cost, and which mix of formats is "
    "best? Click the line for a mix, a square for its run.",
    440,
    theory="The line is the lower convex hull over all mixes (Everett 1963): a Lagrange multiplier "
    "prices each byte. Assumes that the losses of layers add up.",
)
MAP = Panel("map", "Formats of the mix", "Which layers are spared?", 300)
USUAL_TOP, ROOM = 4.0, 1.2  # of the vertical axis; over a budget or run that is worse


def front_chart(view: TradeoffView) -> Chart:
    """Predicted front, formats alone, the mix of the budget, and measured runs."""
    across, mixes, uniform, runs = view.across, view.mixes, view.front.uniform, view.measured
    title, x_of = across.title, across.x_of
    colors = format_colors([*uniform])
    alone, labels = [*uniform.values()], short_labels([*uniform])
    best = go.Scatter(
        x=[x_of(mix) for mix in mixes],
        y=[mix.ratio for mix in mixes],
        name="Best mixes",
        mode="lines",
        line={"color": LIGHT.text, "width": 2},
        customdata=[str(mix.budget(across.kind)) for mix in mixes],
        hovertext=[f"<b>Best mix</b><br>{_said(mix)}" for mix in mixes],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    each = dots(
        [x_of(mix) for mix in alone],
        [mix.ratio for mix in alone],
        [*colors.values()],
        "circle",
        [f"<b>{form.label}</b>, all layers<br>{_said(mix)}" for form, mix in uniform.items()],
        name="One format",
        text=labels,
        textposition="top right",
        customdata=[str(mix.budget(across.kind)) for mix in alone],
        textfont={"color": LIGHT.muted},
    ).update(mode="markers+text")
    traces = [best, each]
    if runs:
        traces.append(_runs(runs, title))
    if view.landmarks:
        traces.append(_landmarks(view.landmarks))
    if not isinstance(view.answer, SlimscopeError):
        asked, mix = view.answer
        said = [f"<b>{esc(asked)}</b><br>{_said(mix)}"]
        star = dots([x_of(mix)], [mix.ratio], VERMILLION, "star", said, 16, name="Budget")
        traces.append(star)
    limits, top = _ranges(view)
    looks = layout(
        view=f"{view.selection.run}/{view.method}",
        hovermode="closest",
        xaxis=axis(title, showgrid=False, range=limits),
        yaxis=log_axis(RATIO, log_span([1.0, top]), " ×"),
        shapes=[reference_line(y=1)],
        **legend_row(),
    )
    beyond = sum(mix.ratio > top for mix in (*mixes, *alone))
    note = f"n = {len(mixes)} mixes and {len(alone)} formats, predicted"
    note += f" ({beyond} above {of_unit(top, '×', 2)} are in the table alone)" if beyond else ""
    measured = (
        f"{count_runs(len(runs))}, measured: training and other methods move them off the line"
    )
    if across is not SPEED:
        note += f"; {measured if runs else 'no run of this model has ended yet'}"
    elif view.profile.times:
        note += f"; by the native decoder on {threads(view.profile.times.threads)}"
    note += (
        f"; llama.cpp's files as measured by {landmarks_file()['source']}."
        if view.landmarks
        else "."
    )
    return Chart(
        go.Figure(traces, looks),
        _front_frame(view, title),
        note,
        name=f"{view.selection.run}-{view.method}-front",
        headline=finding(view),
    )


def _ranges(view: TradeoffView) -> tuple[list[float], float]:
    """Of the horizontal axis, and the worst perplexity over dense: where choices are made. Mixes
    that ruin the model, and 16 bits, would leave no room for the others."""
    shown = [run.ratio for run in view.measured] + [file.ratio for file in view.landmarks]
    if not isinstance(view.answer, SlimscopeError):
        shown.append(view.answer[1].ratio)
    every, x_of = [*view.mixes, *view.front.uniform.values()], view.across.x_of
    top = min(max([USUAL_TOP, *(ROOM * y for y in shown)]), max([1.1, *(x.ratio for x in every)]))
    widest = [*view.front.uniform.values()][-1 if view.pruned else -2]  # the last is dense
    xs = [x_of(x) for x in every if x.ratio <= top and x.nbytes <= widest.nbytes]
    xs = [run.x for run in view.measured] + (xs or [x_of(x) for x in every])
    room = 0.06 * (max(xs) - min(xs)) or 1.0
    return [min(xs) - room, max(xs) + room], top


def finding(view: TradeoffView) -> str:
    """What the best mix of the budget loses, and the one format for all layers that it beats most
    clearly: of those that cost as much or more and lose more, the one that costs most; or else the
    one that costs most nearly as much."""
    if isinstance(view.answer, SlimscopeError):
        return ""
    mix = view.answer[1]
    cost, pairs = _cost(view, mix), [*view.front.uniform.items()]
    near = min(pairs, key=lambda pair: (abs(_cost(view, pair[1]) - cost), pair[1].ratio))
    beaten = [x for x in pairs if x[1].ratio > mix.ratio and _cost(view, x[1]) >= cost]
    form, one = max(beaten, key=lambda x: (_cost(view, x[1]), -x[1].ratio), default=near)
    said = f"{_amount(view, mix)} at +{share(mix.ratio - 1)} perplexity, predicted"
    alone = f"{form.width.bits}{NBSP}bits" if form.width else form.label.replace("%", f"{NBSP}%")
    dense = form.width and any(one.formats[x.name] == Format() for x in view.outside)
    beside = f", embedding in 16{NBSP}bits" if dense else ""
    return f"{said}; {alone} in all layers{beside}: {_amount(view, one)} at +{share(one.ratio - 1)}"


def _cost(view: TradeoffView, mix: Mix) -> float:
    """What the horizontal axis shows, to three decimals, such that less is better."""
    x = round(view.across.x_of(mix), 3)
    return x if view.across is SIZE else -x


def _amount(view: TradeoffView, mix: Mix) -> str:
    return view.across.said(view.across.x_of(mix))


def _said(mix: Mix) -> str:
    time = f"<br>predicted {number(mix.milliseconds, 3)} ms a token" if mix.milliseconds else ""
    return (
        f"{number(mix.nbytes / 1e6)} MB, {number(mix.bits, 3)} bits a weight{time}<br>"
        f"{share(mix.sparsity)} zeros<br>predicted {number(mix.ratio)}\u00a0× dense"
    )


def _runs(runs: Sequence[MeasuredRun], title: str) -> go.Scatter:
    """Squares; their `customdata` is the address of the run."""
    return dots(
        [run.x for run in runs],
        [run.ratio for run in runs],
        BLUE,
        "square",
        [
            f"<b>{esc(run.run)}</b> {esc(run.label)}<br>{title} {number(run.x, 3)}"
            f"<br>measured {number(run.ratio)}\u00a0× dense"
            for run in runs
        ],
        name="Your runs, measured",
        customdata=[str(href("run", id=run.run)) for run in runs],
        text=[esc(run.run) if place < NAMED else "" for place, run in enumerate(runs)],
        textposition="top left",
        textfont={"color": LIGHT.text},
    ).update(mode="markers+text")


def _landmarks(files: Sequence[Landmark]) -> go.Scatter:
    """Diamonds with their intervals."""
    hover = [
        f"<b>llama.cpp's {x.file}</b><br>{number(x.megabytes)} MB<br>measured "
        f"{number(x.ratio)} ({number(x.low)} to {number(x.high)}) × dense"
        for x in files
    ]
    marks = dots(
        [x.megabytes for x in files],
        [x.ratio for x in files],
        GREEN,
        "diamond",
        hover,
        name="llama.cpp, measured",
        text=[x.file for x in files],
        textposition="bottom center",
        textfont={"color": LIGHT.text},
        error_y={
            "type": "data",
            "array": [x.high - x.ratio for x in files],
            "arrayminus": [x.ratio - x.low for x in files],
            "thickness": 1,
            "width": 3,
        },
    )
    return marks.update(mode="markers+text")


def _front_frame(view: TradeoffView, title: str) -> pd.DataFrame:
    answer = view.answer
    mixes = [] if isinstance(answer, SlimscopeError) else [(f"Budget {answer[0]}", answer[1])]
    mixes += [(f"{form.label}, all layers", mix) for form, mix in view.front.uniform.items()]
    mixes += [("Best mix", mix) for mix in view.mixes]
    rows: list[tuple[object, ...]] = [
        (WIDGETS.run_link(run), run.x, run.ratio, "measured", run.label) for run in view.measured
    ]
    rows += [
        (f"llama.cpp's {x.file}", x.megabytes, x.ratio, landmarks_file()["source"], NONE)
        for x in view.landmarks
    ]
    rows += [(what, view.across.x_of(mix), mix.ratio, "predicted", NONE) for what, mix in mixes]
    return pd.DataFrame(rows, columns=["Of", title, RATIO, "How known", "Setting"])


def map_chart(view: TradeoffView) -> Chart:
    """Blocks by matrices, colored by the format each takes in the mix of the budget."""
    if isinstance(view.answer, SlimscopeError):
        return Chart(view.answer.what)
    mix, formats = view.answer[1], [*view.front.uniform]
    colors = [*format_colors(formats).values()]
    profile, rows = view.blocks, layers_table(view.blocks)
    chosen = [mix.formats[x.name] for x in profile.layers]
    losses = [
        float(profile.predicted[row, profile.formats.index(form)]) if form != Format() else 0.0
        for row, form in enumerate(chosen)
    ]
    hover = [
        f"<b>{esc(name)}</b><br>{form.label}<br>predicted loss {number(loss, 3)} nats a token"
        for name, form, loss in zip(rows["tensor"], chosen, losses, strict=True)
    ]
    places = [formats.index(form) for form in chosen]
    figure = block_heatmap(
        rows.assign(value=places),
        hover,
        (-0.5, len(formats) - 0.5),
        view=view.selection.budget,
        title="Format" if view.pruned else "Bits",
        picked=None,
    )
    steps = np.repeat(np.linspace(0, 1, len(formats) + 1), 2)[1:-1].tolist()
    figure.update_traces(
        colorscale=[[at, colors[place // 2]] for place, at in enumerate(steps)],
        colorbar={"tickvals": [*range(len(formats))], "ticktext": short_labels(formats)},
    )
    figure.update_layout(meta={})
    frame = rows.assign(
        format=[str(form) for form in chosen],
        loss=losses,
        bits=[
            x.bits_per_weight(one.columns) for x, one in zip(chosen, profile.layers, strict=True)
        ],
    ).rename(
        columns={
            "tensor": "Layer",
            "block": "Block",
            "module": "Matrix",
            "n": "Weights",
            "format": "Format",
            "bits": "Bits a weight",
            "loss": "Predicted loss, nats a token",
        }
    )
    note = f"n = {count(len(rows))} layers."
    return Chart(
        figure,
        frame,
        note,
        name=f"{view.selection.run}-{view.method}-mix",
        headline=_spared(view, mix),
    )


def _spared(view: TradeoffView, mix: Mix) -> str:
    """Which kind of matrix is compressed least, and which most."""
    rows = layers_table(view.blocks)
    pairs = [(x, mix.formats[x.name]) for x in view.blocks.layers]
    left = [-f.sparsity if view.pruned else f.bits_per_weight(x.columns) for x, f in pairs]
    means = (rows["n"] * left).groupby(rows["module"]).sum() / rows.groupby("module")["n"].sum()
    low, high = float(means.min()), float(means.max())
    if high - low < 1e-3:
        return "All matrices are compressed alike"
    names = [str(end).rpartition(".")[2] for end in (means.idxmax(), means.idxmin())]
    said = [share(-end) + " zeros" if view.pruned else number(end, 3) for end in (high, low)]
    unit = "" if view.pruned else " bits a weight"
    return f"{names[0]} is spared most, {said[0]}{unit}; {names[1]} least, {said[1]}"


CHARTS: dict[Panel, Callable[[TradeoffView], Chart]] = {FRONT: front_chart, MAP: map_chart}
