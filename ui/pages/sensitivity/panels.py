"""The charts of the Sensitivity page: of a view each makes a figure, a note and a frame."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.sensitivity.profile import Format, spearman
from ui.charts.chart import (
    Chart,
    axis,
    layout,
    legend_row,
    log_axis,
    reference_line,
    round_ticks,
    tick_text,
)
from ui.charts.heatmap import block_heatmap
from ui.charts.lines import dots, log_span, rows_axis
from ui.format import NBSP, count, esc, number, of_unit, share
from ui.pages.sensitivity.selection import (
    ERROR,
    FIGURES,
    FISHER,
    MEASURED,
    PREDICTED,
    SensitivityView,
)
from ui.runs.profiles import format_colors, ordered
from ui.theme import BLUE, LIGHT, VERMILLION
from ui.widgets.panel import Panel

FIRST = 15  # layers drawn one by one
HEIGHT = 400
MAP = Panel(
    "map",
    "All layers",
    "What does this layer alone lose, all others dense?",
    HEIGHT,
    theory="The loss to expect is half the mean square, over held-out tokens, of the gradient at "
    "a layer's outputs times their error (Optimal Brain Damage, LeCun et al. 1990; SqueezeLLM, Kim "
    "et al. 2024).",
)
WORST = Panel(
    "worst", "The first to break", "Which layers break first? The table has all of them.", HEIGHT
)
CURVE = Panel("curve", "The picked layer", "How far can this layer be compressed?")
AGREEMENT = Panel(
    "agreement",
    "Estimate and measurement",
    "Can the cheap estimate be trusted? Each dot is a layer.",
    theory="The estimate is of second order: it is best where the loss is small.",
)
NOT_MEASURED = "The divergence is measured in {} alone: choose that, or another figure."
NONE_MEASURED = "This profile holds estimates alone: it measured no format."


def map_chart(view: SensitivityView) -> Chart:
    """Blocks by matrices, colored on a log scale."""
    rows, figure = view.known, view.figure
    if rows.empty:
        return Chart(_unmeasured(view))
    values = np.log10(np.maximum(rows["value"], _floor(rows["value"])))
    low, high = float(values.min()), float(values.max())
    high = high if high - low > 1e-3 else low + 0.1
    hover = [
        f"<b>{esc(x.tensor)}</b><br>{esc(view.form.label)}: {figure.label.lower()} "
        f"{figure.say(x.value)}"
        for x in rows.itertuples()
    ]
    drawn = block_heatmap(
        rows.assign(value=values),
        hover,
        (low, high),
        title=f"{figure.title} (log scale)",
        view=f"{view.selection.figure}/{view.form}",
        picked=view.selection.layer,
    )
    ticks = round_ticks(10**low, 10**high)
    places = {"tickvals": np.log10(ticks).tolist(), "ticktext": [*map(tick_text, ticks)]}
    drawn.update_traces(colorbar=places)
    blocks = rows["block"].nunique()
    many = f"{blocks} block{'' if blocks == 1 else 's'}"
    note = f"n = {count(len(rows))} layers in {many}, {view.form.label}."
    return Chart(drawn, _frame(view), note, name=_name(view, "map"), headline=finding(view))


def finding(view: SensitivityView) -> str:
    """What the most sensitive layer costs, and how many of the least sensitive cost as much."""
    rows, figure, words = view.known, view.figure, _words(view.form)
    worst = rows.iloc[0]
    name = view.tensors[worst.tensor]
    if not figure.adds:
        return f"{name} {figure.verb} {figure.say(worst.value)} of its output at {words}"
    said = f"{name} alone {figure.verb} {figure.say(worst.value)} at {words}"
    many = int((rows["value"][::-1].cumsum() <= worst.value).sum())
    alike = f", as much as the {many} least sensitive layers together" if many > 1 else ""
    return said.replace(" a token", "") + alike


def worst_chart(view: SensitivityView) -> Chart:
    """The most sensitive layers, a dot each; the others are in the table."""
    rows, figure = view.known, view.figure
    if rows.empty:
        return Chart(_unmeasured(view))
    first = rows.head(FIRST)
    labels = [view.tensors[name] for name in first["tensor"]]
    values = [*np.maximum(first["value"], _floor(rows["value"]))]
    hover = [
        f"<b>{esc(x.tensor)}</b><br>{figure.say(x.value)}<br>n = {count(x.n)} weights"
        for x in first.itertuples()
    ]
    colors = [VERMILLION if x == view.selection.layer else BLUE for x in first["tensor"]]
    trace = dots(values, labels, colors, "circle", hover, customdata=[*first["tensor"]])
    across = log_axis(figure.title, log_span(values))
    looks = layout(
        view=f"{view.selection.figure}/worst", xaxis=across, yaxis=rows_axis(labels) | {"dtick": 1}
    )
    headline = ""
    if figure.adds and (whole := float(rows["value"].sum())):
        part = share(float(first["value"].sum()) / whole, 0)
        headline = f"{len(first)} of {count(len(rows))} layers carry {part} of the loss"
    note = f"n = {len(first)} of {count(len(rows))} layers; orange: the picked one. A click picks."
    return Chart(
        go.Figure(trace, looks), _frame(view), note, name=_name(view, "layers"), headline=headline
    )


def curve_chart(view: SensitivityView) -> Chart:
    """Loss of the picked layer over its formats of the same kind as the chosen one."""
    formats = ordered([x for x in view.profile.formats if x.quantized == view.form.quantized])
    columns = [view.profile.formats.index(form) for form in formats]
    x = [_place(form, view.layer.columns) for form in formats]
    predicted = view.figures(PREDICTED)[:, columns]
    measured = view.figures(MEASURED)[view.row, columns]
    own, median = predicted[view.row], np.nanmedian(predicted, 0)
    label, names = view.tensors[view.layer.name], [str(form) for form in formats]
    colors = format_colors(view.profile.formats)
    said = [
        f"{esc(form.label)}: {number(value, 3)} nats{'' if np.isnan(kl) else ', measured'}"
        for form, value, kl in zip(formats, own, measured, strict=True)
    ]
    marks = {
        "size": 11,
        "color": [colors[form] for form in formats],
        "symbol": ["circle-open" if np.isnan(kl) else "circle" for kl in measured],
        "line": {"width": 2},
    }
    traces = [
        _line(x, median, LIGHT.muted, "Median of all layers", dash="dot"),
        _line(x, own, LIGHT.text, label).update(
            mode="lines+markers",
            marker=marks,
            hovertext=said,
            customdata=names,
            hoverinfo="all",
            hovertemplate="%{hovertext}<extra></extra>",
        ),
    ]
    title = "Bits a weight, scales included" if view.form.quantized else "Sparsity, %"
    positive = [float(v) for v in (*own, *median) if v > 0]
    looks = layout(
        view=f"{view.layer.name}/{view.form.quantized}",
        xaxis=axis(title, showgrid=False),
        yaxis=log_axis("Predicted loss, nats a token", log_span(positive)),
        shapes=[reference_line(x=_place(view.form, view.layer.columns), dash="dot")],
        **legend_row(),
    )
    frame = pd.DataFrame(
        {
            "Format": names,
            title: x,
            f"{label}, predicted": own,
            f"{label}, measured KL": measured,
            "Median of all layers": median,
        }
    )
    place = formats.index(view.form)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = own[place] / median[place]
    headline = f"{label} at {_words(view.form)}: {of_unit(float(times), '×', 2)} the median layer"
    note = f"n = {len(formats)} formats. Open dots: the Fisher estimate, scaled."
    note += "" if np.isnan(measured).all() else " Filled: measured."
    return Chart(
        go.Figure(traces, looks),
        frame,
        note,
        name=_name(view, view.layer.name),
        headline=headline if np.isfinite(times) else "",
    )


def agreement_chart(view: SensitivityView) -> Chart:
    """Estimate against measured divergence, log on both axes, in the chosen format or, if it was
    not measured, in the first that was."""
    if not view.measured:
        return Chart(NONE_MEASURED)
    form = view.form if view.form in view.measured else view.measured[0]
    column = view.profile.formats.index(form)
    name = ERROR if view.selection.figure == ERROR else FISHER
    found = {key: view.figures(key)[:, column] for key in (FISHER, ERROR, MEASURED)}
    rho = {key: spearman(found[key], found[MEASURED]) for key in (FISHER, ERROR)}
    seen = (found[name] > 0) & (found[MEASURED] > 0)
    layers = [x for x, is_seen in zip(view.profile.layers, seen, strict=True) if is_seen]
    x, y = found[name][seen], found[MEASURED][seen]
    picked = [one.name == view.selection.layer for one in layers]
    said = [
        f"<b>{esc(one.name)}</b><br>{FIGURES[name].label} {FIGURES[name].say(a)}"
        f"<br>measured {number(b, 3)} nats"
        for one, a, b in zip(layers, x, y, strict=True)
    ]
    trace = go.Scatter(
        x=x.tolist(),
        y=y.tolist(),
        mode="markers",
        hovertext=said,
        customdata=[one.name for one in layers],
        hovertemplate="%{hovertext}<extra></extra>",
        marker={
            "size": [11 if p else 7 for p in picked],
            "opacity": 0.75,
            "color": [VERMILLION if p else BLUE for p in picked],
        },
    )
    looks = layout(
        view=f"{name}/{form}",
        xaxis=log_axis(FIGURES[name].title, log_span([*x])),
        yaxis=log_axis(FIGURES[MEASURED].title, log_span([*y])),
    )
    drawn = go.Figure(trace, looks)
    if name == FISHER and len(x):
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        drawn.add_trace(_line(ends, np.array(ends), LIGHT.muted, "Equal", dash="dash"))
    frame = pd.DataFrame(
        {
            "Layer": [one.name for one in view.profile.layers],
            **{FIGURES[key].title: values for key, values in found.items()},
        }
    )
    headline = (
        f"{FIGURES[FISHER].label} and measured KL: rank correlation {number(rho[FISHER], 2)}; "
        f"relative output error {number(rho[ERROR], 2)}"
    )
    note = f"n = {count(len(x))} layers at {_words(form)}."
    return Chart(drawn, frame, note, name=_name(view, "agreement"), headline=headline)


def _line(x: list[float], y: np.ndarray, color: str, name: str, dash: str = "solid") -> go.Scatter:
    return go.Scatter(
        x=x,
        y=[float(v) if v > 0 else None for v in y],
        name=name,
        mode="lines",
        line={"color": color, "dash": dash, "width": 1.5},
        hoverinfo="skip",
    )


def _place(form: Format, columns: int) -> float:
    """On the axis of bits or of sparsity, %."""
    return form.bits_per_weight(columns) if form.quantized else 100 * form.sparsity


def _words(form: Format) -> str:
    """A format as it is said: "2 bits", "50 %", "2:4"."""
    if form.width and not form.pattern:
        return f"{form.width.bits}{NBSP}bits"
    return form.label.replace("%", f"{NBSP}%")


def _floor(values: pd.Series) -> float:
    """The least that a log scale shows."""
    positive = values[values > 0]
    return float(positive.min()) if len(positive) else 1e-12


def _unmeasured(view: SensitivityView) -> str:
    measured = " and ".join(map(str, view.measured))
    return NOT_MEASURED.format(measured) if measured else NONE_MEASURED


def _frame(view: SensitivityView) -> pd.DataFrame:
    """All layers with all figures, the most sensitive first."""
    columns = {"tensor": "Layer", "block": "Block", "n": "Weights"}
    columns |= {name: figure.title for name, figure in FIGURES.items()}
    return view.table[[*columns]].rename(columns=columns)


def _name(view: SensitivityView, what: str) -> str:
    return f"{view.selection.run}-{view.form}-{what}"


CHARTS: dict[Panel, Callable[[SensitivityView], Chart]] = {
    MAP: map_chart,
    WORST: worst_chart,
    CURVE: curve_chart,
    AGREEMENT: agreement_chart,
}
