"""The cards of *Home*, one per method with its gain over a rival, and the weights of one layer at
each stage of the newest run that recorded them. Without runs, the bundled examples are shown."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from backend.statistics.tensors import RELATIVE_ERROR, TensorSnapshot
from backend.store import queries, tensors
from backend.store.states import LIVE, State
from backend.store.tables import Job
from jobs.benchmark.kind import NAME as BENCHMARK
from jobs.benchmark.report import LOOKUP, decoder_reports
from jobs.kind import Kind, kinds
from jobs.metrics import PERPLEXITY, SPEED_UP, metric
from jobs.wording import distinguishable, times
from ui.charts.headlines import lower
from ui.charts.series import rebinned
from ui.format import NBSP, number, share, size, threads
from ui.runs.results import RunResults, real_models_first, speed_conditions, uses_toy_model
from ui.runs.rows import RunRow, all_rows
from ui.runs.weights import RunWeights, weights_of
from ui.theme import declared, name_colors, stage_style

BARS = 96  # bars of the histogram
DRAFTER = "Amphista"  # method of the card about drafters
WIDTH = 0.7  # shown share of the stored histogram; the rest is nearly empty
LOOKED_AT = 20  # newest runs searched, in addition to the examples
FILM_STAGES = 3  # minimum number of stages
TOY_NAME = "The toy"  # name of the run queued by the button
Bar = tuple[str, str, str, float]  # label, color, value as text, length from 0 to 1


@dataclass(frozen=True)
class Exhibit:
    """A method with its key figure and that of its strongest rival. `facts` are conditions and
    secondary results."""

    title: str
    job: Job
    value: str
    label: str
    bars: Sequence[Bar]
    caption: str
    facts: Sequence[str]


def newest(*kind_names: str, states: Sequence[str] = (State.SUCCEEDED,)) -> list[RunRow]:
    """The newest runs of some kinds and all their examples. Live runs are first, then runs that
    include the main stage of the method."""

    def rank(row: RunRow) -> tuple[bool, bool]:
        stage, measured = kinds()[row.head.kind].default_stage, {s for s, _ in row.result_keys}
        return row.head.state not in LIVE, bool(stage) and stage not in measured

    rows = [r for r in all_rows() if r.head.kind in kind_names and r.head.state in states]
    rows = rows[:LOOKED_AT] + [row for row in rows[LOOKED_AT:] if row.head.id < 0]
    return sorted(rows, key=rank)


def exhibits() -> list[Exhibit]:
    """One card for each compression method, then one for draft tokens."""
    methods = [kind for kind in kinds().values() if kind.compresses and kind.has_models]
    cards = [next(_of_kind(kind), None) for kind in methods]
    cards.append(next(_drafting(), None))
    return [card for card in cards if card]


def _of_kind(kind: Kind) -> Iterator[Exhibit]:
    """Cards of the newest runs. Runs of a real model with a rival are first."""
    rows = newest(kind.name)
    known = {row.job.id: row.figures for row in rows}
    for job in real_models_first(row.job for row in rows):
        results, figure = known[job.id], known[job.id].key_figure
        if figure is None:
            continue
        main = [s for s in results.stages if s in kind.styles and kind.styles[s].main]
        shown = [s for s in results.stages if s in main or s in figure.rivals]
        values = {s: v for s in shown if (v := results.value(s, PERPLEXITY)) is not None}
        caption = f"{metric(PERPLEXITY).title}, lower is better"
        labels = {stage: results.label(stage) for stage in values}
        certainty = f" ({interval})" if (interval := results.interval) else ""
        yield Exhibit(
            figure.title or kind.title,
            job,
            figure.value,
            f"{figure.label}{certainty}",
            _bars(values, labels, partial(number, digits=3)),
            caption,
            _facts(job, results),
        )


def _drafting() -> Iterator[Exhibit]:
    """Cards of the newest benchmarks: Amphista, else the fastest drafter, and prompt lookup."""
    for row in newest(BENCHMARK):
        decoders = {d.name: d for d in decoder_reports(row.job.run) if not d.peer}
        drafters = [d for d in decoders.values() if d.kind and not d.combined]
        if not drafters:
            continue
        best = next((d for d in drafters if d.kind == DRAFTER), drafters[0])
        compared = [best, *(d for name, d in decoders.items() if name == LOOKUP)]
        peak = f"{best.accepted:.2f} tokens per step with trees of up to {best.nodes} nodes"
        speeds = {name: d.speed_up for name, d in decoders.items()}
        conditions = speed_conditions(row.job, queries.results([row.job.run]))
        yield Exhibit(
            f"{best.kind} against {'prompt lookup' if compared[1:] else 'plain decoding'}",
            row.job,
            " against ".join(times(decoder.speed_up) for decoder in compared),
            "speed-up over plain decoding",
            _bars(speeds, {name: d.title or d.label for name, d in decoders.items()}, times),
            "Speed-up, higher is better",
            [peak, f"{conditions.partition('. ')[0]}."],
        )


def _bars(
    values: Mapping[str, float], labels: Mapping[str, str], text: Callable[[float], str]
) -> list[Bar]:
    longest, paint = max(values.values(), default=1.0), name_colors(values)
    return [(labels[s], paint[s], text(v), v / longest) for s, v in values.items()]


def _facts(job: Job, results: RunResults) -> list[str]:
    """Model, size compared with 16 bits, and speed with the number of threads; and warnings if the
    conditions favor the result."""
    facts = [str(job.config.get("model", ""))]
    if results.parameters and results.saved_bytes:
        facts.append(f"{size(2 * results.parameters)} in 16 bits → {size(results.saved_bytes)}")
    if faster := results.value(results.kept, SPEED_UP):
        used = job.environment.get("threads")  # a speed needs its number of threads
        facts.append(f"{times(faster)} as fast{f' on {threads(used)}' if used else ''}")
    texts = job.environment.get("text")
    known = texts.items() if isinstance(texts, Mapping) else ()
    corpora = {use: of.get("corpus") for use, of in known if isinstance(of, Mapping)}
    if "training" in corpora and corpora["training"] == corpora.get("evaluation"):
        facts.append("trained and evaluated on the same kind of text")
    source = str(job.environment.get("source") or "")
    if rounded := re.search(r"dequanti[sz]ed from I?Q(\d)", source):
        facts.append(f"source was already rounded to {rounded[1]} bits")
    return facts


def film(toy: str = "") -> dict[str, Any] | None:
    """One tensor as it passes through the stages of a method, for `assets/scripts/hero.js`: of the
    run `toy`, else of the newest run with weights, those on a real model first; while it works
    the stages that it has recorded so far.

    Returns:
        run, model, title, tensor, live, edge (the axis runs from -edge to edge), and for each
        stage: name, label, color, said, zeros (share of all weights) and heights (share of all
        weights in each of `BARS` bins, relative to the height of the axis).
    """
    methods = [kind for kind in kinds().values() if kind.compresses and kind.has_models]
    for kind in methods:
        rows = newest(kind.name, states=(State.SUCCEEDED, *LIVE))
        rows.sort(key=lambda row: (row.head.run != toy, uses_toy_model(row.job)))
        for row in rows:
            weights = weights_of(row.head.run) if queries.weights_mark(row.head.run) else None
            if not weights or not weights.tensors:
                continue
            tensor, live = weights.example_tensor, row.head.state in LIVE
            stored = {s.stage: s for s in tensors.tensor_snapshots(row.head.id, tensor)}
            main = [stage for stage, style in kind.styles.items() if style.main]
            drawn = [stored[stage] for stage in main if stage in stored]  # readable ones
            if len(drawn) >= (1 if live else FILM_STAGES):
                title = layer_effect(weights, tensor) or f"{kind.title} of {weights.model}"
                return _film(row, drawn, tensor) | {"title": title, "live": live}
    return None


def layer_effect(weights: RunWeights, tensor: str) -> str:
    """The output error of one layer before and after the method, and that of its rival; empty if
    it was not measured, or if the method trades it for the loss of the whole model."""
    effect = weights.effect  # before, after, rival
    stages = [stage for stage in effect.values() if stage and effect["before"]]
    table = weights.table[weights.table["tensor"] == tensor].set_index("stage").reindex(stages)
    errors = [100 * float(error) for error in table.get(RELATIVE_ERROR, ())]
    if len(errors) < 2 or np.isnan(errors).any() or declared(stages[1]).trained:
        return ""
    before, after, *rival = distinguishable(errors)
    _, name, *other = (declared(stage).short or weights.labels[stage] for stage in stages)
    verb = "cuts" if errors[1] < errors[0] else "raises"
    beside = f"; {lower(other[0])} reaches {rival[0]}{NBSP}%" if rival else ""
    where = weights.tensors[tensor]
    return f"{where}: {name} {verb} the output error {before} → {after}{NBSP}%{beside}"


def _film(row: RunRow, drawn: Sequence[TensorSnapshot], tensor: str) -> dict[str, Any]:
    edge = WIDTH * drawn[0].hi
    edges = np.linspace(-edge, edge, BARS + 1)
    heights = [rebinned(snapshot, edges).counts / snapshot.n for snapshot in drawn]
    highest, dense = max(float(h.max()) for h in heights), float(heights[0].max())
    top = min(highest, 1.1 * dense) or 1.0  # the height of the axis
    shown = []
    for snapshot, height in zip(drawn, heights, strict=True):
        perplexity = row.figures.value(snapshot.stage, PERPLEXITY)
        above = height[height > top]
        said = [f"{share(above.sum(), 0)} lie in the middle peak, which is cut off"] * bool(
            len(above)
        )
        said += [f"perplexity of the model {number(perplexity, 3)}"] * (perplexity is not None)
        shown.append(
            {
                "name": snapshot.stage,
                "label": row.figures.label(snapshot.stage),
                "said": "; ".join(said),
                "zeros": round(snapshot.zeros / snapshot.n, 4),
                "color": stage_style(snapshot.stage).color,
                "heights": [round(min(1.0, float(h / top)), 4) for h in height],
            }
        )
    model = str(row.job.config.get("model", ""))
    return {"run": row.job.run, "model": model, "tensor": tensor, "edge": edge, "stages": shown}
