"""Key figures and moving histogram of the newest successful run of each method, until there are any
of the bundled examples; and what the best run of all changed. The toy is shown only where no real
model is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from operator import itemgetter
from typing import Any

import numpy as np

from backend.backup.examples import recorded_turn
from backend.queue.conversations import Turn
from backend.store import queries, tensors
from backend.store.states import State
from backend.store.tables import Job
from jobs.kind import KeyFigure, Kind, kinds
from jobs.metrics import BITS_PER_WEIGHT, PERPLEXITY, SPEED_UP, metric
from jobs.serving.transcript import Transcript, parse_transcript
from jobs.wording import SMALL_LOSS
from ui.charts.series import rebinned
from ui.format import NBSP, number, of_unit, share, size, threads
from ui.runs.results import (
    RunResults,
    find_job,
    kind_of,
    real_models_first,
    speed_conditions,
    stage_comparison,
    uses_toy_model,
)
from ui.runs.rows import all_rows
from ui.runs.weights import DENSE, weights_of
from ui.theme import name_colors, stage_style

BARS = 96  # of the histogram
WIDTH = 0.7  # of the stored histogram is shown; the rest is nearly empty
LOOKED_AT = 20  # of the newest runs of a kind
RACED_STEPS = 120  # of a text that is replayed


@dataclass(frozen=True)
class Shown:
    """Finished run of a kind with a key figure. `bars`: (label, color, value as text, length from
    0 to 1) of the key metric by stage; `conditions` apply where it is a speed."""

    job: Job
    kind: Kind
    figure: KeyFigure
    verdict: str
    bars: list[tuple[str, str, str, float]]
    caption: str
    conditions: str
    results: RunResults

    @property
    def model(self) -> str:
        """Model it was measured on: figures of two models are not comparable."""
        return str(self.job.config.get("model", ""))


def showcase() -> list[Shown]:
    shown = (_newest(kind) for kind in kinds().values())
    return [each for each in shown if each]


def _newest(kind: Kind) -> Shown | None:
    """One that went through the method's own stage, which the summary tells of, before others."""
    if kind.key_figure is None:
        return None
    others: list[Shown] = []
    for job in islice(real_models_first(queries.jobs([State.SUCCEEDED], kind.name)), LOOKED_AT):
        if uses_toy_model(job) and others and not uses_toy_model(others[0].job):
            break
        if shown := _shown(kind, job):
            if not kind.default_stage or kind.default_stage in shown.results.stages:
                return shown
            others.append(shown)
    return next(iter(others), None)


def _shown(kind: Kind, job: Job) -> Shown | None:
    """The run as it is shown; None without a key figure."""
    rows = queries.results([job.id])
    results = RunResults(kind, rows, job)
    figure = results.key_figure
    if figure is None:
        return None
    verdict = kind.verdict(stage_comparison(job, results.perplexity)) if results.kept else ""
    conditions = speed_conditions(job, rows) if kind.key_metric == SPEED_UP else ""
    shown = metric(kind.key_metric)
    caption = f"{shown.title}, by stage. {shown.better.capitalize()} is better."
    values = {s: v for s in results.stages if (v := results.value(s, kind.key_metric)) is not None}
    styled = [s for s in values if s in kind.styles]
    main = [s for s in styled if kind.styles[s].main] or [*values]
    longest = max((values[stage] for stage in main), default=1.0)
    paint = name_colors(values)
    bars = [(results.label(s), paint[s], number(values[s]), values[s] / longest) for s in main]
    return Shown(job, kind, figure, verdict, bars, caption, conditions, results)


def changes() -> tuple[Job, list[tuple[str, str, str]], str] | None:
    """What compression changed: (what, before, after), and what its figures rest on. Of the newest
    runs that measured size or speed, too, and the examples it is the one that lost least
    perplexity, `SMALL_LOSS` counting as none: of several the one of which most is known, then the
    newest."""
    compressing = {name for name, kind in kinds().items() if kind.compresses}
    runs = [
        row
        for row in all_rows()
        if (DENSE, PERPLEXITY) in row.result_keys
        and row.head.kind in compressing
        and row.head.state == State.SUCCEEDED
    ]
    runs = runs[:LOOKED_AT] + [row for row in runs[LOOKED_AT:] if row.head.id < 0]
    found = [
        (loss, _changes(row.job, row.figures), row.job)
        for row in runs
        if (loss := row.figures.change()) is not None
    ]
    best = max(
        (each for each in found if len(each[1]) > 1),
        default=None,
        key=lambda each: (not uses_toy_model(each[2]), -max(each[0], SMALL_LOSS - 1), len(each[1])),
    )
    return (best[2], best[1], _source(best[2])) if best else None


def _source(job: Job) -> str:
    """That the model had been rounded before, and that it was evaluated on text like that it was
    trained on; empty of a source that was not rounded."""
    source, texts = job.environment.get("source"), job.environment.get("text")
    known = texts.items() if isinstance(texts, Mapping) else ()
    corpora = {use: of.get("corpus") for use, of in known if isinstance(of, Mapping)}
    alike = "training" in corpora and corpora["training"] == corpora.get("evaluation")
    same = " Trained and evaluated on the same kind of text." if alike else ""
    if not (rounded := re.search(r"dequanti[sz]ed from I?Q(\d)", str(source or ""))):
        return f"Source: {source}.{same}" if source else ""
    file, bits = f"a{'n' if rounded[1] == '8' else ''} {rounded[1]}-bit file", rounded[1]
    told = f"The model was downloaded as {file} and unpacked"
    kept = job.config.get("bits")
    cheap = isinstance(kept, int) and kept >= int(bits)
    return f"{told}{f', so {kept} bits cost it little' if cheap else ''}.{same}"


def _changes(job: Job, results: RunResults) -> list[tuple[str, str, str]]:
    """Bits, file, decoding speed and perplexity, as far as they were measured. Of speeds the ratio:
    those of two runs seldom agree. Against 16 bits: files of the source may hold 4 or 32."""
    rows = []
    if bits := results.value(results.kept, BITS_PER_WEIGHT):
        rows.append(("Bits per weight", "16", number(bits, 3)))
    if results.parameters and results.saved_bytes:
        before, after = size(2 * results.parameters), size(results.saved_bytes)
        rows.append(("Size, from 16 bits", before.removesuffix(after.lstrip("0123456789.")), after))
    if faster := results.value(results.kept, SPEED_UP):
        change = f"1{NBSP}×", of_unit(faster, "×", 3)
        used = job.environment.get("threads")  # without which a speed says little
        rows.append((f"Speed, {threads(used)}" if used else "Speed", *change))
    dense, kept = (results.value(stage, PERPLEXITY) for stage in (DENSE, results.kept))
    if dense is not None and kept is not None:
        rows.append(("Perplexity", number(dense, 3), number(kept, 3)))
    return rows


def moving_histogram() -> dict[str, Any] | None:
    """One tensor as it passes through the stages of a method, for `assets/scripts/hero.js`: of the
    newest runs of a kind the one with most stages.

    Returns:
        run, tensor, edge (the axis runs from -edge to edge), and for each stage: name, label,
        color, said, zeros (share of all weights) and heights (share of all weights in each of
        `BARS` bins, relative to the height of the axis).
    """
    compressing = [kind for kind in kinds().values() if kind.compresses and kind.has_models]
    for toy, kind in product((False, True), compressing):
        jobs = (
            job for job in queries.jobs([State.SUCCEEDED], kind.name) if uses_toy_model(job) == toy
        )
        runs = [shown for job in islice(jobs, 6) if (shown := _shown(kind, job))]
        for each in sorted(runs, key=lambda shown: -len(shown.bars)):
            stages = [stage for stage, style in kind.styles.items() if style.main]
            weights = weights_of(each.job.run)
            if weights and len([s for s in stages if s in weights.stages]) > 2:
                return _histogram(each, stages, weights.example_tensor)
    return None


def _histogram(each: Shown, stages: Sequence[str], tensor: str) -> dict[str, Any]:
    newest = {s.stage: s for s in tensors.tensor_snapshots(each.job.id, tensor)}
    drawn = [newest[stage] for stage in stages if stage in newest]
    edge = WIDTH * drawn[0].hi
    edges = np.linspace(-edge, edge, BARS + 1)
    heights = [rebinned(snapshot, edges).counts / snapshot.n for snapshot in drawn]
    highest, dense = max(float(h.max()) for h in heights), float(heights[0].max())
    top = min(highest, 1.1 * dense) or 1.0  # the height of the axis
    perplexity = {label: text for label, _, text, _ in each.bars}
    shown = []
    for snapshot, height in zip(drawn, heights, strict=True):
        label, zeros = each.kind.stages[snapshot.stage], snapshot.zeros / snapshot.n
        above = height[height > top]
        said = f"{share(zeros, 0)} of these weights are exactly zero"
        if len(above):
            said += f", {share(above.sum(), 0)} lie in the middle peak, which is cut off"
        whole = f"; perplexity of the whole model: {perplexity.get(label)}."
        said += whole if perplexity.get(label) else "."
        shown.append(
            {
                "name": snapshot.stage,
                "label": label,
                "said": said,
                "zeros": round(zeros, 4),
                "color": stage_style(snapshot.stage).color,
                "heights": [round(min(1.0, float(h / top)), 4) for h in height],
            }
        )
    return {"run": each.job.run, "tensor": tensor, "edge": edge, "stages": shown}


@dataclass(frozen=True)
class Race:
    """Two answers to one prompt, replayed as fast as they were written: that of the first model and
    the fastest other. `lanes` are for `assets/scripts/race.js`; `gain`: how much faster the second
    decoded."""

    turn: Turn
    gain: float
    lanes: list[dict[str, Any]]
    threads: str


def race() -> Race | None:
    """The answers of the recorded conversation; None if it was deleted. Those of other
    conversations were written at the same time, which slows each down."""
    turn = recorded_turn()
    if turn is None:
        return None
    texts = ((turn.names[n - 1], parse_transcript(x.transcript)) for n, x in turn.answers.items())
    timed = [(text.speed, name, text) for name, text in texts if text.complete and text.speed]
    if len(timed) < 2:
        return None
    first, other = timed[0], max(timed[1:], key=itemgetter(0))
    lanes = [_lane(name, text, speed) for speed, name, text in (first, other)]
    together = first[2].threads
    return Race(turn, other[0] / first[0], lanes, threads(together) if together else "")


def _lane(name: str, text: Transcript, speed: float) -> dict[str, Any]:
    job = find_job(name)
    known = RunResults(kind_of(job), queries.results([job.id]), job) if job else None
    said = [of_unit(speed, "tokens/s", 3)]
    if known and known.saved_bytes:
        said.append(size(known.saved_bytes))
    if known and (perplexity := known.final()) is not None:
        said.append(f"perplexity {number(perplexity, 3)}")
    steps = [
        [round(step.ms, 1), "".join(token for token, _ in step.tokens)]
        for step in text.passes[:RACED_STEPS]
    ]
    if text.end == "limit" or len(text.passes) > RACED_STEPS:
        steps.append([0.0, "…"])
    return {"name": name, "said": " · ".join(said), "steps": steps}
