"""Runs compared with a baseline: differing settings, results, and generated texts, word by word."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property, partial
from math import inf
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup
from pydantic.fields import FieldInfo

from backend.metric_key import MetricKey
from backend.statistics.paired import paired_ratio
from backend.statistics.ratio import PairedRatio
from backend.store.states import State
from jobs.evaluation.kind import evaluations, load_samples
from jobs.fields.models import has_saved, original_model
from jobs.metrics import (
    BYTES,
    DURATION,
    PEAK,
    PERPLEXITY,
    SIZE,
    ZERO_SHARE,
    Metric,
    metric,
    ordered,
)
from jobs.wording import StageComparison
from ui.charts.chart import Chart
from ui.charts.headlines import lower
from ui.format import NONE, number, share
from ui.help import explained
from ui.runs.deltas import delta_html, incomparable_because, values_html
from ui.runs.html import elapsed, run_description
from ui.runs.names import run_labels
from ui.runs.results import (
    GAINS,
    WINDOW_METRICS,
    fields_of,
    format_stderr,
    format_value,
    kind_title,
    setting_title,
    speed_conditions,
    window_losses,
)
from ui.runs.rows import RunRow
from ui.runs.weights import weights_of
from ui.templates import fragments
from ui.theme import LIGHT, OKABE_ITO, YELLOW, LineStyle
from ui.widgets.config_form import value_with_unit

HTML = fragments("pages/compare/page.html")
ALWAYS = {SIZE.family, *GAINS}  # shown even if only some runs have them
COLORS = [c for c in OKABE_ITO if c != YELLOW]  # yellow is invisible on white
MODEL_SIZE = MetricKey(BYTES)
WORD = re.compile(r"\s*\S+")  # with the space before it
MAX_PROMPTS = 6
Texts = dict[str, str]  # prompt -> text


class ComparedRun(NamedTuple):
    row: RunRow
    label: str
    description: Markup
    stroke: LineStyle


@dataclass(frozen=True)
class RunComparison:
    rows: Sequence[RunRow]
    base: RunRow

    @property
    def runs(self) -> list[str]:
        return [row.job.run for row in self.rows]

    @cached_property
    def labels(self) -> dict[str, str]:
        """Names of the runs on the page."""
        return run_labels([row.job for row in self.rows])

    def names(self, runs: Iterable[str]) -> str:
        return ", ".join(self.labels[run] for run in runs)

    @property
    def strokes(self) -> dict[str, LineStyle]:
        others = [run for run in self.runs if run != self.base.job.run]
        colored = {run: LineStyle(COLORS[i % len(COLORS)]) for i, run in enumerate(others)}
        return {run: colored.get(run, LineStyle(LIGHT.text)) for run in self.runs}

    @property
    def columns(self) -> list[ComparedRun]:
        drawn, labels = self.strokes, self.labels
        return [
            ComparedRun(row, labels[run], run_description(row.job), drawn[run])
            for run, row in zip(self.runs, self.rows, strict=True)
        ]


def settings_of(row: RunRow) -> dict[str, Any]:
    config = {setting_title(row.job.kind, name): value for name, value in row.job.config.items()}
    known = row.job.environment or {}
    environment = {k: known[k] for k in ("device", "cpu", "threads", "python") if k in known}
    versions = known.get("versions")
    machine = {f"{name.capitalize()} used": value for name, value in environment.items()}
    if isinstance(versions, Mapping):
        machine |= {f"Version of {name}": value for name, value in versions.items()}
    return {"Kind": kind_title(row.job), **config, **machine}


def differing(comparison: RunComparison) -> dict[str, list[Any]]:
    """Settings that differ: title -> one value per run; None if a run has no such setting."""
    settings = [settings_of(row) for row in comparison.rows]
    titles = dict.fromkeys(name for one in settings for name in one)
    values = {name: [one.get(name) for one in settings] for name in titles}
    return {name: each for name, each in values.items() if any(v != each[0] for v in each)}


def config_card(comparison: RunComparison) -> Markup:
    """A row for each setting that differs. Settings that only some runs have are collapsed."""
    found, place = differing(comparison), comparison.rows.index(comparison.base)
    same = len({name for row in comparison.rows for name in settings_of(row)}) - len(found)
    known = {
        setting_title(row.job.kind, name): info
        for row in comparison.rows
        for name, info in fields_of(row.job.kind).items()
    }
    rows = {
        name: [(_value(v, known.get(name)), v != values[place]) for v in values]
        for name, values in found.items()
    }
    shared = {name: cells for name, cells in rows.items() if None not in found[name]}
    single = {name: cells for name, cells in rows.items() if name not in shared}
    return HTML.settings(comparison.columns, comparison.base, shared, single, same)


def _value(value: Any, info: FieldInfo | None = None) -> str:
    return NONE if value is None else value_with_unit(info, value)


class ComparedFigure(NamedTuple):
    """A cell of the results; `delta` is its difference from the baseline."""

    value: str
    stderr: str = ""
    delta: str = ""


def measured(comparison: RunComparison) -> list[MetricKey]:
    """Metrics with a final value in at least one of the runs; sizes of all file formats are one."""
    keys = {key for row in comparison.rows for key in row.figures.final_keys}
    return ordered(MODEL_SIZE if key.family == BYTES else key for key in keys)


def _size(shown: Metric, base: RunRow, row: RunRow, _: PairedRatio | None) -> ComparedFigure:
    """Size of the saved model, with its file format."""
    before, (name, value) = _saved(base)[1], _saved(row)
    text = f"{format_value(shown, value)}, {name}".removesuffix(", ")
    return ComparedFigure(text, delta=values_html(shown.key, row, base, (value, before)))


def _saved(row: RunRow) -> tuple[str, float | None]:
    """Format and bytes of the smallest saved model; None without one."""
    figures = row.figures
    sizes = {k.series: figures.final(k) for k in figures.final_keys if k.family == BYTES}
    saved = {name: value for name, value in sizes.items() if value}
    return min(saved.items(), key=lambda size: size[1], default=("", None))


def figure_rows(comparison: RunComparison) -> list[tuple[Metric, list[ComparedFigure]]]:
    """A row for each metric, with a figure for each run."""
    alike, base = on_one_text(comparison), comparison.base
    ratios = [
        ratio_of(row, base) if row in alike and row is not base else None for row in comparison.rows
    ]
    rows = []
    for key in measured(comparison):
        figure = partial(_size if key == MODEL_SIZE else _figure, metric(key), base)
        rows.append((metric(key), [*map(figure, comparison.rows, ratios)]))
    return rows


def ratio_of(row: RunRow, rival: RunRow) -> PairedRatio | None:
    """Ratio of the perplexities of two kept stages on the same windows; None if unknown."""
    mine, theirs = (window_losses(r.job).get(r.figures.kept or "") for r in (row, rival))
    return None if mine is None or theirs is None else paired_ratio(mine, theirs)


def verdict(comparison: RunComparison) -> str:
    """The run with the lowest perplexity, compared with the next one and the model that it
    started from; empty unless all runs have measured a perplexity."""
    rows = on_one_text(comparison)
    if any(row.figures.final() is None for row in comparison.rows):
        return ""
    if len(rows) < len(comparison.rows):
        return "Not comparable: the runs differ in model or text."
    perplexity = {row.job.run: row.figures.final() or inf for row in rows}
    best, rival = sorted(rows, key=lambda row: perplexity[row.job.run])[:2]
    compared = StageComparison(perplexity, lambda *_: ratio_of(best, rival))
    labels, runs = comparison.labels, (best.job.run, rival.job.run)
    clause = compared.clause(runs[0], {runs[1]: labels[runs[1]]})
    figures = " against ".join(number(perplexity[run]) for run in runs)
    first = [f"; {lower(name)} {number(p)}" for name, p in best.figures.rivals.items()][-1:]
    told = f"{labels[runs[0]]} {clause}: {figures}{''.join(first)}."
    return told if compared.order(*runs) else f"Undecided: {told}"


def kept_labels(comparison: RunComparison) -> list[str]:
    return [r.figures.label(r.figures.kept) if r.figures.kept else NONE for r in comparison.rows]


def metrics_card(comparison: RunComparison) -> Markup:
    rows = figure_rows(comparison)
    recorded: dict[MetricKey, list[float | None]] = {
        DURATION: [elapsed(row.job, row.now) for row in comparison.rows],
        PEAK: [row.job.peak_bytes for row in comparison.rows],
        SIZE: [row.size for row in comparison.rows],
    }
    for key, values in recorded.items():
        shown, base = metric(key), comparison.base
        before = values[comparison.rows.index(base)]
        is_judged = key != DURATION  # a single time is noise
        cells = [
            ComparedFigure(
                format_value(shown, value),
                delta=values_html(key, row, base, (value, before), is_significant=is_judged),
            )
            for row, value in zip(comparison.rows, values, strict=True)
        ]
        rows += [(shown, cells)] if any(values) else []
    single = [
        row for row in rows if row[0].key.family not in ALWAYS and NONE in (f.value for f in row[1])
    ]
    shared = [row for row in rows if row not in single]
    kept = kept_labels(comparison)
    found = {r.job.run: speed_conditions(r.job, r.figures.rows.values()) for r in comparison.rows}
    told: dict[str, list[str]] = {}
    for run, text in found.items():
        told.setdefault(text, []).append(run)
    told.pop("", None)
    conditions = [
        f"{comparison.names(x)}: {text}" if len(told) > 1 else text for text, x in told.items()
    ]
    return HTML.results(
        comparison.columns, comparison.base, kept, shared, single, conditions, explained
    )


def _figure(shown: Metric, base: RunRow, row: RunRow, ratio: PairedRatio | None) -> ComparedFigure:
    figure = row.figures.final_row(shown.key)
    if figure is None:
        weights = weights_of(row.job.run) if shown.key == ZERO_SHARE else None
        # those among the recorded weights of the kept stage, of a run that was not to prune
        zeros = weights.zero_share(row.figures.kept or "") if weights else None
        return ComparedFigure(format_value(shown, zeros))
    # of losses on the same windows, a difference whose interval holds 1 is neither better nor worse
    is_significant = shown.key not in WINDOW_METRICS or ratio is None or ratio.is_significant
    delta = delta_html(shown.key, row, base, relative=True, is_significant=is_significant)
    if ratio and shown.key == PERPLEXITY:
        delta += HTML.interval(ratio)
    return ComparedFigure(
        format_value(shown, figure.value), format_stderr(shown, figure.stderr), delta
    )


def on_one_text(comparison: RunComparison) -> list[RunRow]:
    base = comparison.base
    rows = [row for row in comparison.rows if row.figures.final() is not None]
    return [r for r in rows if base in rows and not incomparable_because(r, base, PERPLEXITY)]


def results_chart(comparison: RunComparison) -> Chart:
    rows = [["Kept stage", *kept_labels(comparison)]]
    rows += [[shown.title, *(f.value for f in each)] for shown, each in figure_rows(comparison)]
    return Chart(None, pd.DataFrame(rows, columns=["Figure", *comparison.labels.values()]))


@dataclass(frozen=True)
class Passage:
    """Consecutive words of a text. `change`: "" if both texts have them, "ins" if only this text
    has them, "del" if only the baseline has them."""

    text: str
    change: str = ""


@dataclass(frozen=True)
class ComparedTexts:
    """Texts that the runs generated for one prompt. `kept`: share of the baseline's words kept in
    order, by run."""

    prompt: str
    passages: Mapping[str, list[Passage]]
    kept: Mapping[str, float]


def word_changes(before: str, after: str) -> list[Passage]:
    """Words of `after`, and the words of `before` that are missing, in reading order."""
    old, new = WORD.findall(before), WORD.findall(after)
    passages = []
    for tag, i, j, k, m in SequenceMatcher(None, _bare(old), _bare(new), False).get_opcodes():
        if tag == "equal":
            passages.append(Passage("".join(new[k:m])))
            continue
        passages += [Passage("".join(old[i:j]), "del")] if i < j else []
        passages += [Passage("".join(new[k:m]), "ins")] if k < m else []
    return passages


def kept_share(before: str, after: str) -> float:
    """Share of the words of `before` that `after` contains in the same order, 0 to 1."""
    old, new = _bare(WORD.findall(before)), _bare(WORD.findall(after))
    blocks = SequenceMatcher(None, old, new, False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(old) if old else 1.0


def _bare(words: Sequence[str]) -> list[str]:
    return [word.strip() for word in words]


def texts_of(row: RunRow) -> Texts:
    """Texts of the run's kept model, from the run itself or from its newest successful
    evaluation."""
    own = load_samples(row.job.run, row.figures.kept or "")
    if not own:
        done = (e for e in evaluations(row.job.run) if e.state == State.SUCCEEDED)
        own = next(
            (s for e in done if (s := load_samples(e.run, str(e.kept_stage or "model")))), []
        )
    return {str(sample["prompt"]): str(sample.get("text", "")) for sample in own}


def compared_texts(comparison: RunComparison) -> list[ComparedTexts]:
    written = {row.job.run: texts_of(row) for row in comparison.rows}
    base = comparison.base.job.run
    found = []
    for prompt, before in written[base].items():
        others = {r: t[prompt] for r, t in written.items() if r != base and prompt in t}
        if others:
            passages = {run: word_changes(before, after) for run, after in others.items()}
            kept = {run: kept_share(before, after) for run, after in others.items()}
            found.append(ComparedTexts(prompt, {base: [Passage(before)]} | passages, kept))
    return found


def headline(prompts: Sequence[ComparedTexts], labels: Mapping[str, str]) -> str:
    runs = dict.fromkeys(run for each in prompts for run in each.kept)
    means = {run: fmean(e.kept[run] for e in prompts if run in e.kept) for run in runs}
    if not means:
        return ""
    best = max(means, key=means.__getitem__)
    first = f"{labels[best]} writes {share(means[best], 0)} of the baseline's words"
    worst = min(means, key=means.__getitem__)
    return first if worst == best else f"{first}, {labels[worst]} {share(means[worst], 0)}"


def texts_card(comparison: RunComparison) -> Markup:
    prompts = compared_texts(comparison)
    if not prompts:
        return HTML.no_texts(comparison.runs)
    shown = prompts[:MAX_PROMPTS]
    return HTML.texts(
        comparison.columns, comparison.base, headline(prompts, comparison.labels), shown
    )


def trace_card(comparison: RunComparison) -> Markup:
    """A form that traces which blocks of a run change a text. Requires runs that saved a version of
    the same model."""
    first = original_model(comparison.base.job.run)
    saved = [
        row.job.run
        for row in comparison.rows
        if has_saved(row.job, "model") and original_model(row.job.run) == first
    ]
    if not saved:
        return Markup()
    written = texts_of(comparison.base)
    usual = "The capital of France is Paris."
    text = next((prompt + answer for prompt, answer in written.items()), usual)
    saved.sort(key=comparison.base.job.run.__eq__)  # the baseline last
    runs = {run: comparison.labels[run] for run in saved}
    return HTML.trace(runs, {first: f"dense {first}"} | runs, text[:250].strip())


def texts_chart(comparison: RunComparison) -> Chart:
    prompts = compared_texts(comparison)
    rows = [
        {"Prompt": each.prompt}
        | {
            comparison.labels[run]: "".join(p.text for p in passages if p.change != "del")
            for run, passages in each.passages.items()
        }
        for each in prompts[:MAX_PROMPTS]
    ]
    none = "No two of these runs have written after the same prompts. An evaluation does that."
    return Chart(
        None if rows else none, pd.DataFrame(rows), headline=headline(prompts, comparison.labels)
    )
