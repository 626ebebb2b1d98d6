"""What stands around the charts of the Speed page: verdict, facts, and the figures as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from backend.store.tables import Job
from jobs.speed_words import Arm, Row, sentences
from ui.charts.speed_bars import PARTS
from ui.charts.speed_curves import ACCEPTED, EVEN, SPEED_UP, reached, sizes_of
from ui.components.actions import clone_link
from ui.components.cards import (
    card,
    empty,
    error_of,
    facts,
    model_name,
    named_link,
    progress,
    shell,
    stack,
)
from ui.components.data_table import Cell, data_table
from ui.format import badge, esc, href

NEW = ("launch?kind=speed", "Run a benchmark")
NONE_YET = (
    "No decoding speed has been measured yet. A benchmark decodes the same prompts with and "
    "without guesses, on this machine."
)


def nothing() -> str:
    """HTML: what the page is for, before there is a run."""
    return empty(NONE_YET, NEW, ("launch?kind=amphista", "Train a drafter"))


def head(job: Job, results: Sequence[Row]) -> str:
    """HTML: the run, its verdict in words, and under which conditions its figures hold."""
    said = sentences(results)
    words = "".join(f"<li>{esc(text)}</li>" for text in said)
    verdict = f'<ul class="plain long" data-testid="speed-verdict">{words}</ul>' if said else ""
    return stack(
        card(
            "Verdict",
            verdict + progress(job) + error_of(job) + facts(conditions(job)) + command(job),
            f"{named_link(job)} {badge(job.state)} {clone_link(job)} "
            f'<a class="button small" href="{href("launch", kind="speed")}">New benchmark</a>',
        )
    )


def conditions(job: Job) -> dict[str, str]:
    """What a figure of speed means nothing without."""
    here, config = job.environment, job.config
    text = here.get("text") or {}
    return {
        "Model": model_name(config["model"]),
        "Processor": esc(here["cpu"] if here.get("device") == "cpu" else here.get("device", "–")),
        "Threads": esc(here.get("threads", "–")),
        "Precision": esc(here.get("precision", config["precision"])),
        "Prompts": f"{esc(text.get('count', '–'))} of {esc(text.get('prompts', '–'))}",
        "Answers": f"up to {esc(config['max_new_tokens'])} tokens, batch 1, greedy",
        "Rounds": esc(config["rounds"]),
    }


def command(job: Job) -> str:
    """HTML: the shell line of such a benchmark."""
    drafters = str(job.config["drafters"]).replace(",", " ")
    return shell(" ".join(f"slimscope bench {drafters} --model {job.config['model']}".split()))


def speed_data(arms: Sequence[Arm], task: str, name: str) -> str:
    """HTML: the figures of the first chart, and those that explain them."""
    columns = ["Decoder", "Speed-up, ×", "Tokens/s", "Tokens a pass", "Break-even", "Same texts, %"]
    rows: list[list[Cell]] = []
    for arm in arms:
        up, accepted = arm.tasks[task] if task else (arm.speed_up, arm.accepted)
        values = (up, arm.speed, accepted, arm.break_even, 100 * arm.same)
        rows.append([esc(arm.label), *((f"{value:.2f}", value) for value in values)])
    return data_table(columns, rows, name)


def time_data(arms: Sequence[Arm], name: str) -> str:
    """HTML: milliseconds of a pass by its parts."""
    columns = ["Decoder", *(f"{words}, ms" for words, _ in PARTS.values())]
    rows: list[list[Cell]] = [
        [esc(arm.label), *((f"{arm.milliseconds[p]:.3f}", arm.milliseconds[p]) for p in PARTS)]
        for arm in arms
    ]
    return data_table(columns, rows, name)


def length_data(arms: Sequence[Arm], name: str) -> str:
    """HTML: passes by the tokens they yielded."""
    longest = max((length for arm in arms for length in arm.lengths), default=1)
    columns = ["Decoder", "Passes", *(f"{n} token{'s' * (n > 1)}" for n in range(1, longest + 1))]
    rows: list[list[Cell]] = []
    for arm in arms:
        counts = [arm.lengths.get(n, 0) for n in range(1, longest + 1)]
        rows.append([esc(arm.label), *((f"{c:,}", float(c)) for c in (sum(counts), *counts))])
    return data_table(columns, rows, name)


def right_data(arms: Sequence[Arm], name: str) -> str:
    """HTML: share of passes with at least k right guesses."""
    shares = {arm.label: reached(arm) for arm in arms}
    deepest = max((k for found in shares.values() for k in found), default=1)
    columns = ["Decoder", *(f"{k} or more, %" for k in range(1, deepest + 1))]
    rows: list[list[Cell]] = []
    for label, found in shares.items():
        values = [100 * found.get(k, 0.0) for k in range(1, deepest + 1)]
        rows.append([esc(label), *((f"{value:.1f}", value) for value in values)])
    return data_table(columns, rows, name)


def size_data(curves: pd.DataFrame, arms: Sequence[Arm], name: str) -> str:
    """HTML: the curves over the size of the tree."""
    columns = ["Decoder and nodes", "Tokens a pass", "Break-even", "Speed-up, ×"]
    rows: list[list[Cell]] = []
    for arm in arms:
        found = sizes_of(curves, arm.name)
        for n in found[ACCEPTED].index if found else ():
            values = [float(found[curve][n]) for curve in (ACCEPTED, EVEN, SPEED_UP)]
            rows.append([f"{esc(arm.label)}, {n}", *((f"{v:.2f}", v) for v in values)])
    return data_table(columns, rows, name)


def cost_data(costs: Mapping[int, float], name: str) -> str:
    """HTML: what a pass over n tokens takes."""
    rows: list[list[Cell]] = [[str(n), (f"{cost:.3f}", cost)] for n, cost in costs.items()]
    return data_table(["Tokens at once", "Time, in passes over one"], rows, name)
