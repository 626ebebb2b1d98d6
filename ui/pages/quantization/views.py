"""What the Quant page shows of a choice: each view is a figure, a note and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from backend.statistics.names import FAN
from backend.store import frames, queries
from backend.store.tables import Result
from jobs.evaluation.report import SPEED_UP
from ui.charts.heatmap import cells, heatmap_note, layer_heatmap
from ui.charts.lines import curves
from ui.format import NONE, count, esc, href, number, size
from ui.pages.quantization.charts import (
    FIGURES,
    GroupMap,
    code_usage,
    code_usage_note,
    group_history,
    group_map,
    group_map_note,
    group_weights,
    group_weights_note,
    magnitude_bands,
)
from ui.pages.quantization.selection import CODES, QuantSelection, QuantView
from ui.widgets.chart import note_html
from ui.widgets.html import Cell, data_table
from ui.widgets.weight_tables import layers_table

View = tuple[Any, str, str]  # figure, note, table
DISTILLED = "dlqat-kd"  # the stage whose loss is of another kind
QUESTIONS = {
    "loss": "Is it learning, and is it stable?",
    "rate": "How large were the steps of A and B?",
    "changed": "How many weights have moved to another code?",
    "m": "How far do the magnitudes move from 1, and do they still?",
}
TITLES = {"loss": "Loss, nats per token", "rate": "Learning rate", "changed": "Codes changed, %"}
FAITHFUL = "Does it come nearer to the dense model?"
DIVERGENCE = "KL divergence from dense, nats per token"
LAYERS = "Which layers' outputs suffered most?"
NO_LAYERS = "Errors of the layers appear here when the run has looked at all its stages."
USAGE = "Are all codes used, and evenly?"
HISTORY = "Did training move this group, and has it settled?"
WEIGHTS = "Is the grid used well, and do weights lie beyond its ends?"
NO_WEIGHTS = "At the end of training the worst groups of each tensor are kept weight by weight."
GAIN = 1.8  # of packed decoding over dense, where reading weights takes the time
OVERHEAD = "in a model this small, other things than reading weights take the time"
SHOWN = 500  # groups in a table
LAST = 10**9  # step: behind all others


def head_html(looked: QuantView) -> str:
    """HTML: the run, bits, groups, what they cost, and what the file takes."""
    quant, stage = looked.quant, looked.choice.stage
    results = {(r.stage, r.metric): r for r in queries.results([quant.job.id])}
    link = f'<a href="{esc(href("run", id=quant.job.run))}">{esc(quant.job.run)}</a>'
    facts = [link, *_facts(quant.job.config, results, stage)]
    return '<p class="quiet">' + " · ".join(facts) + "</p>"


def _facts(
    config: Mapping[str, Any], results: Mapping[tuple[str, str], Result], stage: str
) -> list[str]:
    group = config.get("group_size")
    facts = [
        f"{esc(config.get('bits', NONE))} bits",
        f"groups of {esc(group)}" if group else "one group a row",
        "symmetric grid" if config.get("symmetric") else "grid with zero-points",
    ]
    bits = next((r for (_, m), r in results.items() if m == "bits_per_weight"), None)
    if bits:
        facts.append(f"{number(bits.value)} stored bits a weight, scales counted")
    for (_, metric), result in results.items():
        if metric.startswith("bytes/"):
            written = f"{size(result.value)} in {esc(metric.removeprefix('bytes/'))}"
            facts.append(f"whole model {written}")
    ends = (results.get((of, "perplexity")) for of in (stage, "dense"))
    of_stage, of_dense = (number(r.value) if r else NONE for r in ends)
    if of_stage != NONE:
        facts.append(f"perplexity {of_stage}, dense {of_dense}")
    gain = next((r.value for (_, m), r in results.items() if m == SPEED_UP), None)
    if gain is not None:
        facts.append(f"decodes packed at {number(gain, 3)} × the speed of dense bfloat16")
        if gain < GAIN:
            facts.append(OVERHEAD)
    return facts


def curve_view(looked: QuantView) -> View:
    """One of the curves of all trained stages, or the fan of one stage's magnitudes. Losses are
    drawn beside those that measure the same."""
    choice, labels = looked.choice, looked.quant.labels
    points = frames.curves(looked.quant.job.id)
    points = points[points["name"].str.startswith(f"{choice.curve}/")]
    question, title = QUESTIONS[choice.curve], TITLES.get(choice.curve, "")
    if choice.curve == "loss":
        distilled = points["name"] == f"loss/{DISTILLED}"
        points = points[distilled if choice.stage == DISTILLED else ~distilled]
        if choice.stage == DISTILLED:
            question, title = FAITHFUL, DIVERGENCE
    note = note_html(question, _points(points))
    table = _curves_table(points, f"{choice.run}-{choice.curve}")
    if choice.curve == "m":
        return _fan(points, choice), note, table
    names = [*points["name"].unique()]
    if not names:
        return None, note, ""
    if choice.curve == "changed":
        points = points.assign(value=100 * points["value"])
    figure = curves(points, names, labels=labels, y_title=title)
    if choice.curve == "loss":
        figure.update_yaxes(rangemode="normal")  # from 0, all of what is learned were a flat line
    return figure, note, table


def _fan(points: pd.DataFrame, choice: QuantSelection) -> Any:
    found = {}
    for name in FAN:
        rows = points[points["name"] == f"m/{choice.stage}/{name}"]
        found[name] = dict(zip(rows["step"], rows["value"], strict=True))
    return magnitude_bands(found, choice.stage) if found["p50"] else None


def _points(points: pd.DataFrame) -> str:
    return f"n = {count(len(points))} points." if len(points) else ""


def _curves_table(points: pd.DataFrame, name: str) -> str:
    rows: list[list[Cell]] = [
        [esc(row.name_), count(row.step), (number(row.value), float(row.value))]
        for row in points.rename(columns={"name": "name_"}).itertuples()
    ]
    return data_table(["Curve", "Step", "Value"], rows, name) if rows else ""


def layers_view(looked: QuantView) -> View:
    """Relative output error of every layer at the chosen stage."""
    choice = looked.choice
    table = frames.tensor_table(looked.quant.job.id)
    if table.empty or "relative_error" not in table or choice.stage not in {*table["stage"]}:
        return NO_LAYERS, note_html(LAYERS), ""
    rows = cells(table, choice.stage, "relative_error")
    figure = layer_heatmap(table, choice.stage, "relative_error", choice.tensor)
    title = "Relative output error, %"
    listed = layers_table(rows, "relative_error", f"{choice.run}-{choice.stage}-errors", title)
    return figure, note_html(LAYERS, heatmap_note(rows)), listed


def map_view(looked: QuantView) -> View:
    """One figure of every group of the chosen tensor."""
    choice, step = looked.choice, looked.step
    values, last = looked.figure_at(choice.figure, step), looked.figure_at(choice.figure, LAST)
    shown = FIGURES[choice.figure]
    view = f"{choice.tensor}/{choice.figure}"
    mapped = GroupMap.of(values, choice.figure, last)
    figure = group_map(mapped, view, looked.group)
    counted = f"As of step {step}. {group_map_note(mapped)}"
    name = f"{choice.run}-{choice.tensor}-{choice.figure}-{step}"
    rows: list[list[Cell]] = [
        [str(row), str(group), (shown.say(values[row, group]), float(values[row, group]))]
        for row, group in looked.worst_first[:SHOWN]
    ]
    table = data_table(["Row", "Group", shown.label], rows, name)
    if values.size > SHOWN:
        table = Markup("<p>The {} groups with the largest error.</p>{}").format(SHOWN, table)
    return figure, note_html(shown.question, counted), table


def history_view(looked: QuantView) -> View:
    """The chosen group's magnitude over training."""
    steps, group = looked.magnitudes, looked.group
    row, k = group
    title = f"{HISTORY} Row {row}, group {k}."
    rows: list[list[Cell]] = [
        [str(step), (number(float(m[group]), 5), float(m[group]))]
        for step, m in sorted(steps.items())
    ]
    table = data_table(["Step", "Magnitude m"], rows, f"{looked.choice.run}-row-{row}-group-{k}")
    figure = group_history(steps, group, looked.choice.stage)
    return figure, note_html(title, f"n = {len(steps)} steps."), table


def weights_view(looked: QuantView) -> View:
    """The chosen group weight by weight."""
    shown, (row, k) = looked.weights, looked.group
    if shown is None:
        return NO_WEIGHTS, note_html(WEIGHTS), ""
    name = f"{looked.choice.run}-row-{row}-group-{k}-weights"
    rows: list[list[Cell]] = [
        [str(n), (number(float(a), 5), float(a)), (number(float(b), 5), float(b))]
        for n, (a, b) in enumerate(zip(shown.dense, shown.moved, strict=True))
    ]
    figure = group_weights(shown, name, looked.choice.stage)
    table = data_table(["Weight", "Dense", "On the grid"], rows, name)
    return figure, note_html(WEIGHTS, group_weights_note(shown)), table


def usage_view(looked: QuantView) -> View:
    """How often each code is used in the chosen tensor."""
    usage = looked.of_steps(CODES)
    if not usage:
        return None, note_html(USAGE), ""
    first, last = usage[min(usage)], usage[max(usage)]
    rows: list[list[Cell]] = [
        [str(code), (count(int(a)), float(a)), (count(int(b)), float(b))]
        for code, (a, b) in enumerate(zip(first, last, strict=True))
    ]
    heads = ["Code", f"Weights, step {min(usage)}", f"Weights, step {max(usage)}"]
    table = data_table(heads, rows, f"{looked.choice.run}-{looked.choice.tensor}-codes")
    return code_usage(usage, looked.choice.stage), note_html(USAGE, code_usage_note(usage)), table


def group_html(looked: QuantView) -> str:
    """HTML: the chosen group in figures, at the first and the last picture of training."""
    row, k = looked.group
    place, groups = looked.worst_first.index(looked.group) + 1, looked.errors.size
    width = _width(looked)
    inputs = f"inputs {k * width:,} to {(k + 1) * width - 1:,}" if width else f"group {k}"
    head = (
        f"<p><strong>Row {row}, group {k}</strong> ({inputs}): number {place:,} of {groups:,} "
        "by error, the worst first.</p>"
    )
    steps = looked.quant.steps[looked.choice.stage, "error"]
    ends = sorted({steps[0], steps[-1]})
    rows: list[list[Cell]] = []
    for name, figure in FIGURES.items():
        values = [float(looked.figure_at(name, step)[looked.group]) for step in ends]
        rows.append([esc(figure.label), *((figure.say(v), v) for v in values)])
    columns = ["Figure", *(f"Step {step}" for step in ends)]
    return head + data_table(columns, rows, f"{looked.choice.run}-row-{row}-group-{k}-figures")


def _width(looked: QuantView) -> int:
    """Weights in a group, from how many codes there are; 0 where that is not known."""
    usage = looked.of_steps(CODES)
    return round(usage[max(usage)].sum(dtype=float) / looked.errors.size) if usage else 0
