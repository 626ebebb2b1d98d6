"""The charts of the Quant page: of a view each makes a figure, a note and a frame."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
from markupsafe import Markup

from backend.quantization import GRID_NAMES
from backend.statistics.tensors import FAN
from backend.store import frames, queries
from jobs.metrics import BITS_PER_WEIGHT, BYTES, PERPLEXITY, SPEED_UP
from ui.charts.chart import Chart
from ui.charts.lines import reduced_note
from ui.format import NONE, count, href, number, of_unit, share, size
from ui.pages.quantization.charts import (
    code_usage,
    code_usage_headline,
    code_usage_note,
    group_weights,
    group_weights_note,
    input_energy_chart,
    magnitude_bands,
)
from ui.pages.quantization.group_map import FIGURES, GroupMap, group_map, group_map_note
from ui.pages.quantization.selection import QuantView
from ui.runs.weights import DENSE, weights_of
from ui.templates import fragments
from ui.widgets.panel import Panel

HTML = fragments("pages/quantization/page.html")
GAIN = 1.8  # of packed decoding over dense, where reading weights takes the time
OVERHEAD = "in a model this small, reading weights is not the bottleneck"
LISTED = 500  # groups in a table
LAST_STEP = 10**9  # step: behind all others
PRUNED = 0.01  # share of zeros in the weights before that makes them pruned


THEORY = {
    "map": "DL-QAT learns the magnitude of each group apart from the direction of its weights (Ke "
    "et al. 2024), as DoRA does for whole columns (Liu et al. 2024).",
    "weights": "Rounding to nearest moves a weight by at most half a step; GPTQ moves some further "
    "to make up for the errors of others (Frantar et al. 2022).",
    "magnitudes": "A learned magnitude takes the place of the learned step size of LSQ (Esser et "
    "al. 2020).",
    "usage": "The entropy of the codes says how few bits each could take (Shannon 1948).",
    "energy": "GPTQ protects weights that meet large inputs by compensation (Frantar et al. 2022), "
    "AWQ by scaling them up (Lin et al. 2023).",
}


def _panel(name: str, title: str, question: str = "") -> Panel:
    return Panel(name, title, question, 400, f"{name}-chart", THEORY[name])


MAP = _panel("map", "Groups of one tensor")
WEIGHTS = _panel(
    "weights",
    "One group on its grid",
    "Is the grid used well, and do weights lie beyond its ends?",
)
MAGNITUDES = _panel(
    "magnitudes",
    "Magnitudes of all groups",
    "How far did training move the magnitudes from 1, and have they settled?",
)
USAGE = _panel("usage", "Codes of the tensor", "Are all codes used, and evenly?")
ENERGY = _panel(
    "energy",
    "Errors and inputs",
    "Do groups that meet large inputs have small errors? Rounding hurts toward the upper right.",
)


def head_html(view: QuantView) -> Markup:
    job, results = view.quant.job, queries.results([view.quant.job.id])
    stage = view.selection.stage
    group, grid = job.config.get("group_size"), job.config.get("grid")
    form = [f"{job.config.get('bits', NONE)} bits"]
    form += [f"groups of {group}" if group else "one group per row"]
    form += [GRID_NAMES[grid]] if grid else []
    facts = {"Format": ", ".join(form)}
    by_metric = {r.metric: r.value for r in reversed(results)}
    perplexity = {r.stage: number(r.value) for r in results if r.metric == PERPLEXITY}
    if (bits := by_metric.get(BITS_PER_WEIGHT)) is not None:
        facts["Stored bits per weight"] = f"{number(bits)}, scales included"
    saved = [(m.series, v) for m, v in by_metric.items() if m.family == BYTES and m.series]
    if saved:
        facts["Whole model"] = ", ".join(f"{size(value)}, {series}" for series, value in saved)
    if stage in perplexity:
        facts["Perplexity"] = f"{perplexity[stage]}, dense {perplexity.get('dense', NONE)}"
    if (gain := by_metric.get(SPEED_UP)) is not None:
        why = f": {OVERHEAD}" if gain < GAIN else ""
        facts["Packed decoding"] = f"{of_unit(gain, '×', 3)}, over dense bfloat16{why}"
    if stored := weights_of(job.run):
        before, now = map(stored.zero_share, (DENSE, stage))
        if before and before >= PRUNED:
            facts["Zeros"] = f"{share(now)}, {share(before)} in the model it began with"
    weights = href("weights", run=job.run, tensor=view.selection.tensor, stage=stage)
    return HTML.head(job.run, facts, weights)


def magnitudes_chart(view: QuantView) -> Chart:
    """How far training moved the magnitudes of all groups of the model."""
    stage, labels = view.selection.stage, view.quant.labels
    points = frames.chart_curves(view.quant.job.id)
    points = points[(points["family"] == "m") & (points["stage"] == stage)]
    quantiles = {
        key.series: dict(zip(rows["step"], rows["value"], strict=True))
        for key, rows in frames.by_key(points).items()
    }
    if not quantiles.keys() >= {*FAN}:
        return Chart(f"{labels.get(stage, stage)} has recorded no magnitudes over its training.")
    low, high = (quantiles[name][max(quantiles[name])] for name in ("p01", "p99"))
    frame = points[["series", "step", "value"]].set_axis(
        ["Quantile", "Step", "Magnitude m"], axis=1
    )
    most = share(max(abs(low - 1), abs(high - 1)))
    title = f"Training moved 98 % of the group scales by at most {most}"
    note = f"n = {count(len(points))} points.{reduced_note(points)}"
    name = f"{view.selection.run}-magnitudes"
    return Chart(magnitude_bands(quantiles, stage), frame, note, name=name, headline=title)


def map_chart(view: QuantView) -> Chart:
    selection, step = view.selection, view.step
    figure = FIGURES[selection.figure]
    values, last = (view.figure_at(selection.figure, at) for at in (step, LAST_STEP))
    mapped = GroupMap.of(values, selection.figure, last)
    rows, groups = zip(*view.worst_first[:LISTED], strict=True)
    frame = pd.DataFrame(
        {"Row": rows, "Group": groups, figure.column: figure.listed(values)[rows, groups]}
    ).astype({"Group": str})
    note = f"As of step {step}. {group_map_note(mapped)}"
    if values.size > LISTED:
        note += f" The table holds the {LISTED} groups with the largest error."
    shown = f"{selection.tensor}/{selection.figure}"
    name = f"{selection.run}-{selection.tensor}-{selection.figure}-{step}"
    drawn = group_map(mapped, shown, view.group)
    return Chart(drawn, frame, note, figure.question, name, figure.headline(values))


def weights_chart(view: QuantView) -> Chart:
    weights, (row, k), width = view.weights, view.group, view.group_size
    inputs = f"inputs {k * width:,} to {(k + 1) * width - 1:,}" if width else f"group {k}"
    place = f"Row {row}, {inputs}: number {view.worst_first.index(view.group) + 1:,} of "
    place += f"{view.errors.size:,} by error, the worst first."
    if weights is None:
        kept = (
            "Only the worst groups of each tensor are stored weight by weight, when training ends."
        )
        return Chart(f"{place} {kept}")
    name = f"{view.selection.run}-row-{row}-group-{k}-weights"
    frame = pd.DataFrame({"Dense": weights.dense, "On the grid": weights.quantized})
    figure = group_weights(weights, name, view.selection.stage)
    frame = frame.rename_axis("Weight").reset_index()
    many = f"{weights.elsewhere} of {len(weights.dense)} weights"
    title = f"{many} are not at their nearest grid point"
    note = f"{place} {group_weights_note(weights)}"
    return Chart(figure, frame, note, name=name, headline=title)


def usage_chart(view: QuantView) -> Chart:
    usage = view.codes
    if not usage:
        return Chart(None)
    ends = sorted({min(usage), max(usage)})
    frame = pd.DataFrame({f"Weights, step {step}": usage[step].astype(int) for step in ends})
    return Chart(
        code_usage(usage, view.selection.stage),
        frame.rename_axis("Code").reset_index(),
        code_usage_note(usage),
        headline=code_usage_headline(usage),
        name=f"{view.selection.run}-{view.selection.tensor}-codes",
    )


def energy_chart(view: QuantView) -> Chart:
    selection, every = view.selection, view.input_groups
    if not any(one.tensor == selection.tensor for one in every):
        return Chart("This run has stored no input statistics; runs started from now on do.")
    label = view.quant.tensors[selection.tensor]
    chart = input_energy_chart(every, selection.tensor, label, selection.stage)
    return replace(chart, name=f"{selection.run}-{selection.tensor}-inputs")


CHARTS: dict[Panel, Callable[[QuantView], Chart]] = {
    MAP: map_chart,
    WEIGHTS: weights_chart,
    MAGNITUDES: magnitudes_chart,
    USAGE: usage_chart,
    ENERGY: energy_chart,
}
