"""A sweep as HTML: its runs, and the table of means over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from backend.queue import roles
from backend.queue.service import Actor
from backend.store.session import now_ms
from backend.store.states import ACTIVE, LIVE, RESUMABLE
from backend.store.tables import Job
from jobs import sweep
from jobs.metrics import METRICS, Metric
from jobs.sweep import SweepRow
from ui.format import NONE, esc, number, runs
from ui.runs.html import model_name, progress, run_link, took
from ui.runs.results import RUN, format_value, kind_of, kind_title
from ui.widgets.config_form import title
from ui.widgets.html import Cell, badge, card, data_table, off, table

SPREAD = "± is the sample standard deviation over seeds; a single run has none."


def stage_rows(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """The figures measured at stages; those of a run as a whole are left out."""
    return [row for row in rows if row.stage != RUN]


def metrics(rows: Sequence[SweepRow]) -> list[str]:
    """The metrics a sweep has measured at its stages, the known ones first."""
    found = {row.metric for row in stage_rows(rows)}
    return [m for m in METRICS if m in found] + sorted(found - METRICS.keys())


def head_html(jobs: Sequence[Job], who: Actor) -> str:
    """HTML: what was swept, how far it is, and what can be done to all runs."""
    states = Counter(job.state for job in jobs)
    counted = " ".join(f"{n} {badge(state)}" for state, n in states.items())
    first = jobs[0]
    name = f'<p class="run-name">{esc(first.name)}</p>' if first.name else ""
    model = model_name(first.config["model"]) if "model" in first.config else ""
    fields = ", ".join(esc(heading(jobs, field)) for field in sweep.varied(jobs))
    what = " · ".join(filter(None, (esc(kind_title(first)), model, f"{len(jobs)} runs")))
    return (
        f'<div class="run-title"><h1>Sweep {esc(first.run)}</h1>{counted}'
        f'<div class="actions">{_buttons(jobs, who)}</div></div>{name}'
        f'<p class="quiet">{what} over {fields}</p>'
    )


def heading(jobs: Sequence[Job], field: str) -> str:
    """The title of a config field."""
    kind = kind_of(jobs[0])
    known = kind.config.model_fields.get(field) if kind else None
    return title(field, known) if known else field


def _buttons(jobs: Sequence[Job], who: Actor) -> str:
    run = esc(jobs[0].run)
    going = [job for job in jobs if job.state in ACTIVE and job.desired == "run"]
    ended = [job for job in jobs if job.state in RESUMABLE]
    closed = off(roles.may_not_change(who))
    parts = []
    if going:
        ask = f"Cancel {runs(len(going))}? Those that run stop at the next safe point."
        parts.append(("cancel-sweep", f"Cancel {runs(len(going))}", ask))
    if ended:
        parts.append(("resume-sweep", f"Resume {runs(len(ended))}", ""))
    return "".join(
        f'<button type="button" class="small" data-testid="{deed}" data-do="{deed}" '
        f'data-run="{run}" data-ask="{ask}"{closed}>{words}</button>'
        for deed, words, ask in parts
    )


def means_table(
    jobs: Sequence[Job], rows: Sequence[SweepRow], of: Metric, labels: Mapping[str, str]
) -> str:
    """HTML: one line a combination, one column a stage; `rows` are of one metric."""
    if not rows:
        return ""
    stages = [*dict.fromkeys(row.stage for row in rows)]
    fields = [*rows[0].values]
    lines: dict[str, dict[str, SweepRow]] = {}
    for row in rows:
        lines.setdefault(repr(row.values), {})[row.stage] = row
    titles = (heading(jobs, field) for field in fields)
    heads = [*titles, *(labels.get(stage, stage) for stage in stages), "n"]
    cells = [_line(line, fields, stages, of) for line in lines.values()]
    numeric = range(len(fields), len(heads))
    return table(heads, cells, numeric) + f'<p class="quiet">{SPREAD}</p>'


def _line(
    line: Mapping[str, SweepRow], fields: Sequence[str], stages: Sequence[str], of: Metric
) -> list[str]:
    any_row = next(iter(line.values()))
    counts = sorted({row.n for row in line.values()})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    values = [esc(any_row.values[field]) for field in fields]
    return [*values, *(_cell(line.get(stage), of) for stage in stages), n]


def _cell(row: SweepRow | None, of: Metric) -> str:
    if row is None:
        return NONE
    scale = 100 if of.form == "share" else 1
    spread = "" if row.spread is None else f" ± {number(scale * row.spread, 2)}"
    return f'{format_value(of, row.mean)}<span class="quiet">{spread}</span>'


def data(rows: Sequence[SweepRow], of: Metric, labels: Mapping[str, str], name: str) -> str:
    """HTML: the same figures one by one, to be saved as CSV with full precision."""
    heads = ["Combination", "Stage", of.title, "±", "n"]
    cells: list[list[Cell]] = [
        [
            esc(row.label),
            esc(labels.get(row.stage, row.stage)),
            (format_value(of, row.mean), row.mean),
            NONE if row.spread is None else (number(row.spread, 2), row.spread),
            str(row.n),
        ]
        for row in rows
    ]
    return data_table(heads, cells, name)


def runs_card(jobs: Sequence[Job]) -> str:
    """HTML: the runs with what is theirs alone."""
    fields, now = sweep.varied(jobs), now_ms()
    live = any(job.state in LIVE for job in jobs)
    heads = ["Run", *(heading(jobs, field) for field in fields), "State"]
    heads += ["Progress", "Duration"] if live else ["Duration"]
    rows = [
        [run_link(job), *(esc(job.config.get(field)) for field in fields), badge(job.state),
         *([progress(job)] if live else []), took(job, now)]
        for job in jobs
    ]  # fmt: skip
    return card("Runs", table(heads, rows, numeric=(len(heads) - 1,)))
