"""What stands around the charts of the Speed page: verdict, facts, and the figures as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from backend.store import frames, queries
from backend.store.states import ACTIVE
from backend.store.tables import Job
from jobs.fields.drafters import DRAFTER_FOLDER, expected_hits
from jobs.speed.report import DecoderReport, verdicts
from ui.format import NONE, badge, esc, href
from ui.pages.speed.bars import PARTS
from ui.pages.speed.curves import ACCEPTED, EVEN, SPEED_UP, reached, sizes_of
from ui.pages.speed.draft_tree import guess_of
from ui.runs.actions import clone_link
from ui.runs.results import display_units
from ui.widgets.data_table import Cell, data_table
from ui.widgets.html import (
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

NEW = ("launch?kind=speed", "Run a benchmark")
WAITING = "The figures appear here when the run has ended."
NONE_YET = (
    "No decoding speed has been measured yet. A benchmark decodes the same prompts with and "
    "without guesses, on this machine."
)


@dataclass(frozen=True)
class DrafterInfo:
    """What is known of a drafter from the run that trained it.

    Attributes:
        hits: path of a guess -> share of held-out anchors at which it was right.
        weights, steps: of its training; None where the run is gone.
    """

    hits: Mapping[tuple[int, ...], float] = field(default_factory=dict)
    weights: float | None = None
    steps: float | None = None

    def expected(self, arm: DecoderReport) -> float | None:
        """Tokens a pass over the arm's tree on held-out answers."""
        known = self.hits and arm.hits  # those of combined arms are not recorded
        return 1 + sum(self.hits.get(path, 0.0) for path in arm.hits) if known else None


def drafter_of(run: str) -> DrafterInfo:
    """The facts of the run's drafter."""
    found = {row.metric: row.value for row in queries.results([run]) if row.stage == DRAFTER_FOLDER}
    return DrafterInfo(expected_hits(run), found.get("parameters"), found.get("steps"))


def head_curves(run: str) -> pd.DataFrame:
    """How often each head's first guess was right while it learnt, %: columns name ("Head 1"),
    step, value."""
    curves = display_units(frames.curves(run))
    tops = curves[curves["name"].str.startswith("top1/")]
    names = tops["name"].str.removeprefix("top1/").str.capitalize()
    return tops.assign(name=names)


def nothing() -> str:
    """HTML: what the page is for, before there is a run."""
    return empty(NONE_YET, NEW, ("launch?kind=amphista", "Train a drafter"))


def head(job: Job, reports: Sequence[DecoderReport]) -> str:
    """HTML: the run, its verdict in words, and under which conditions its figures hold."""
    said = verdicts(reports)
    words = "".join(f"<li>{esc(text)}</li>" for text in said)
    verdict = f'<ul class="plain long" data-testid="speed-verdict">{words}</ul>' if said else ""
    if job.state in ACTIVE:
        verdict = f'<p class="quiet">{WAITING}</p>'
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
    prompts = (here.get("text") or {}).get("prompts", {})
    return {
        "Model": model_name(config["model"]),
        "Processor": esc(here["cpu"] if here.get("device") == "cpu" else here.get("device", "–")),
        "Threads": esc(here.get("threads", "–")),
        "Precision": esc(here.get("precision", config["precision"])),
        "Prompts": f"{esc(prompts.get('count', '–'))} of {esc(prompts.get('corpus', '–'))}, "
        f"{esc(config['rounds'])} rounds",
        "Answers": f"up to {esc(config['max_new_tokens'])} tokens, batch 1, greedy",
    }


def command(job: Job) -> str:
    """HTML: the shell line of such a benchmark."""
    drafters = str(job.config["drafters"]).replace(",", " ")
    return shell(" ".join(f"slimscope bench {drafters} --model {job.config['model']}".split()))


def speed_data(arms: Sequence[DecoderReport], name: str) -> str:
    """HTML: the figures of the first chart."""
    columns = ["Decoder", "Speed-up, ×", "Lowest", "Highest", "Tokens/s", "Same texts, %"]
    rows: list[list[Cell]] = []
    for arm in arms:
        spread = arm.ranges.get("speed_up", (arm.speed_up, arm.speed_up))
        values = (arm.speed_up, *spread, arm.speed, 100 * arm.same)
        rows.append([esc(arm.label), *((f"{value:.2f}", value) for value in values)])
    return data_table(columns, rows, name)


def yield_data(
    arms: Sequence[DecoderReport], drafters: Mapping[str, DrafterInfo], name: str
) -> str:
    """HTML: tokens a pass beside what was expected of them, and what they cost."""
    columns = [
        "Decoder", "Tokens a pass", "Expected", "Break-even", "Nodes", "Weights", "Steps",
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for arm in arms:
        known = drafters.get(arm.name, DrafterInfo())
        rows.append([
            esc(arm.label), (f"{arm.accepted:.2f}", arm.accepted), _known(known.expected(arm), 2),
            (f"{arm.break_even:.2f}", arm.break_even), (f"{arm.nodes}", float(arm.nodes)),
            _known(known.weights), _known(known.steps),
        ])  # fmt: skip
    return data_table(columns, rows, name)


def _known(value: float | None, digits: int = 0) -> Cell:
    return NONE if value is None else (f"{value:,.{digits}f}", value)


def task_data(arms: Sequence[DecoderReport], name: str) -> str:
    """HTML: speed-up and tokens a pass of every decoder on every task."""
    columns = ["Decoder and prompts", "Speed-up, ×", "Lowest", "Highest", "Tokens a pass"]
    rows: list[list[Cell]] = []
    for arm in arms:
        for task, (up, accepted) in arm.tasks.items():
            values = (up, *arm.ranges.get(f"speed_up/{task}", (up, up)), accepted)
            label = f"{esc(arm.label)}, {esc(task)}"
            rows.append([label, *((f"{value:.2f}", value) for value in values)])
    return data_table(columns, rows, name)


def time_data(arms: Sequence[DecoderReport], name: str) -> str:
    """HTML: milliseconds of a pass by its parts."""
    columns = ["Decoder", *(f"{words}, ms" for words, _ in PARTS.values())]
    rows: list[list[Cell]] = [
        [esc(arm.label), *((f"{arm.milliseconds[p]:.3f}", arm.milliseconds[p]) for p in PARTS)]
        for arm in arms
    ]
    return data_table(columns, rows, name)


def length_data(arms: Sequence[DecoderReport], name: str) -> str:
    """HTML: passes by the tokens they yielded."""
    longest = max((length for arm in arms for length in arm.lengths), default=1)
    columns = ["Decoder", "Passes", *(f"{n} token{'s' * (n > 1)}" for n in range(1, longest + 1))]
    rows: list[list[Cell]] = []
    for arm in arms:
        counts = [arm.lengths.get(n, 0) for n in range(1, longest + 1)]
        rows.append([esc(arm.label), *((f"{c:,}", float(c)) for c in (sum(counts), *counts))])
    return data_table(columns, rows, name)


def right_data(arms: Sequence[DecoderReport], conditional: bool, name: str) -> str:
    """HTML: share of passes with at least k right guesses."""
    shares = {arm.label: reached(arm, conditional) for arm in arms}
    deepest = max((k for found in shares.values() for k in found), default=1)
    columns = ["Decoder", *(f"{k} or more, %" for k in range(1, deepest + 1))]
    rows: list[list[Cell]] = []
    for label, found in shares.items():
        values = [100 * found.get(k, 0.0) for k in range(1, deepest + 1)]
        rows.append([esc(label), *((f"{value:.1f}", value) for value in values)])
    return data_table(columns, rows, name)


def size_data(curves: pd.DataFrame, arms: Sequence[DecoderReport], name: str) -> str:
    """HTML: the curves over the size of the tree."""
    columns = ["Decoder and nodes", "Tokens a pass", "Break-even", "Speed-up, ×"]
    rows: list[list[Cell]] = []
    for arm in arms:
        found = sizes_of(curves, arm.name)
        for n in found[ACCEPTED].index if found else ():
            values = [float(found[curve][n]) for curve in (ACCEPTED, EVEN, SPEED_UP)]
            rows.append([f"{esc(arm.label)}, {n}", *((f"{v:.2f}", v) for v in values)])
    return data_table(columns, rows, name)


def tree_data(arm: DecoderReport, drafter: DrafterInfo, name: str) -> str:
    """HTML: every guess of the tree with how often it was right."""
    columns = ["Guess", "Right, % of passes", "On held-out answers, %"]
    rows: list[list[Cell]] = []
    for path, share in arm.hits.items():
        known = drafter.hits.get(path)
        rows.append([
            esc(guess_of(path)), (f"{100 * share:.1f}", 100 * share),
            _known(None if known is None else 100 * known, 1),
        ])  # fmt: skip
    return data_table(columns, rows, name)


def head_data(points: pd.DataFrame, name: str) -> str:
    """HTML: the curves of the heads, a row for each look at them."""
    wide = points.pivot_table("value", "step", "name")
    rows: list[list[Cell]] = [
        [f"{step}", *((f"{value:.1f}", float(value)) for value in values)]
        for step, values in wide.T.items()
    ]
    return data_table(["Step", *(f"{head}, %" for head in wide.columns)], rows, name)


def cost_data(costs: Mapping[int, float], name: str) -> str:
    """HTML: what a pass over n tokens takes."""
    rows: list[list[Cell]] = [[str(n), (f"{cost:.3f}", cost)] for n, cost in costs.items()]
    return data_table(["Tokens at once", "Time, in passes over one"], rows, name)
