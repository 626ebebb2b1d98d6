"""What the runs write after the same prompts, word by word against the baseline."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from statistics import fmean

import pandas as pd
from markupsafe import Markup

from backend.store.states import State
from jobs.evaluation.kind import evaluations, samples_of
from jobs.fields.models import first_model, has_saved
from ui.charts.chart import Chart
from ui.format import share
from ui.pages.compare.comparison import HTML, RunComparison
from ui.runs.rows import RunRow

WORD = re.compile(r"\s*\S+")  # with the space before it
MAX_PROMPTS = 6  # prompts
MODEL, USUAL_TEXT = "model", "The capital of France is Paris."
MOST_LETTERS = 250  # of a text that is traced, unless somebody writes another one
NO_TEXTS = "No two of these runs have written after the same prompts. An evaluation does that."
Texts = dict[str, str]  # prompt -> text


@dataclass(frozen=True)
class Passage:
    """Consecutive words of a text; `change`: "" in both, "ins" only here, "del" only in the
    baseline's."""

    text: str
    change: str = ""


@dataclass(frozen=True)
class ComparedTexts:
    """Texts of the runs after one prompt; `kept`: share of the baseline's words kept in order, by
    run."""

    prompt: str
    passages: Mapping[str, list[Passage]]
    kept: Mapping[str, float]


def word_changes(before: str, after: str) -> list[Passage]:
    """Words of `after` and the missing ones of `before`, in reading order."""
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
    """Share of the words of `before` that `after` has in the same order, 0 to 1."""
    old, new = _bare(WORD.findall(before)), _bare(WORD.findall(after))
    blocks = SequenceMatcher(None, old, new, False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(old) if old else 1.0


def _bare(words: Sequence[str]) -> list[str]:
    return [word.strip() for word in words]


def texts_of(row: RunRow) -> Texts:
    """Texts of the run's kept model, of the run itself or of its newest successful evaluation."""
    own = samples_of(row.job.run, row.figures.kept or "")
    if not own:
        done = (e for e in evaluations(row.job.run) if e.state == State.SUCCEEDED)
        own = next((s for e in done if (s := samples_of(e.run, str(e.kept_stage or "model")))), [])
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


def headline(prompts: Sequence[ComparedTexts]) -> str:
    runs = dict.fromkeys(run for each in prompts for run in each.kept)
    means = {run: fmean(e.kept[run] for e in prompts if run in e.kept) for run in runs}
    if not means:
        return ""
    best = max(means, key=means.__getitem__)
    first = f"{best} writes {share(means[best], 0)} of the baseline's words"
    worst = min(means, key=means.__getitem__)
    return first if worst == best else f"{first}, {worst} {share(means[worst], 0)}"


def texts_card(comparison: RunComparison) -> Markup:
    prompts = compared_texts(comparison)
    if not prompts:
        return Markup()
    shown = prompts[:MAX_PROMPTS]
    html: Markup = HTML.texts(comparison.columns, comparison.base, headline(prompts), shown)
    return html


def trace_card(comparison: RunComparison) -> Markup:
    """Asks the live model which blocks of a run lose a text; of runs saved of one model."""
    first = first_model(comparison.base.job.run)
    saved = [
        row.job.run
        for row in comparison.rows
        if has_saved(row.job, MODEL) and first_model(row.job.run) == first
    ]
    if not saved:
        return Markup()
    written = texts_of(comparison.base)
    text = next((prompt + answer for prompt, answer in written.items()), USUAL_TEXT)
    models = {first: f"dense {first}"} | {run: run for run in saved}
    saved.sort(key=comparison.base.job.run.__eq__)  # the baseline last
    html: Markup = HTML.trace(saved, models, text[:MOST_LETTERS].strip())
    return html


def texts_chart(comparison: RunComparison) -> Chart:
    prompts = compared_texts(comparison)
    rows = [
        {"Prompt": each.prompt}
        | {
            run: "".join(p.text for p in passages if p.change != "del")
            for run, passages in each.passages.items()
        }
        for each in prompts[:MAX_PROMPTS]
    ]
    return Chart(None if rows else NO_TEXTS, pd.DataFrame(rows), headline=headline(prompts))
