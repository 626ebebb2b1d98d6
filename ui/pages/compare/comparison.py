"""Runs side by side: what was asked differently, and what came out, against one baseline."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.metrics import METRICS, Metric, metric
from ui.format import NONE, esc, href, number
from ui.pages.compare.charts import BASELINE, strokes
from ui.runs.deltas import delta, delta_html, difference_html, incomparable_because
from ui.runs.html import elapsed, model_and_settings
from ui.runs.results import format_value, kind_of, kind_title
from ui.runs.rows import RunRow
from ui.runs.table import safe
from ui.theme import LineStyle
from ui.widgets.config_form import title
from ui.widgets.html import badge, card, scroll_box

ENVIRONMENT = ("device", "cpu", "threads", "python", "versions")


@dataclass(frozen=True)
class RunComparison:
    """The runs compared, and the one the others are seen against."""

    rows: Sequence[RunRow]
    base: RunRow

    @property
    def runs(self) -> list[str]:
        return [row.job.run for row in self.rows]

    @property
    def strokes(self) -> dict[str, LineStyle]:
        """Run -> colour and dash."""
        return strokes(self.runs, self.base.job.run)


# what was asked -----------------------------------------------------------------------------------


def asked(row: RunRow) -> dict[str, Any]:
    """Title -> value of everything that was asked, and of what the run was carried out with."""
    kind = kind_of(row.job)
    fields = kind.config.model_fields if kind else {}
    config = {
        title(n, fields[n]) if n in fields else n: value for n, value in row.job.config.items()
    }
    about = {k: v for k, v in (row.job.environment or {}).items() if k in ENVIRONMENT}
    versions = about.pop("versions", None)
    if isinstance(versions, Mapping):
        about |= {f"Version of {name}": value for name, value in versions.items()}
    told = {k if k.startswith("Version") else k.capitalize() + " used": v for k, v in about.items()}
    return {"Kind": kind_title(row.job), **config, **told}


def differing(of: RunComparison) -> dict[str, list[Any]]:
    """Title -> values, one a run, of what is not the same everywhere; None: no such setting."""
    settings = [asked(row) for row in of.rows]
    names = dict.fromkeys(name for one in settings for name in one)
    found = {name: [one.get(name) for one in settings] for name in names}
    return {name: values for name, values in found.items() if any(v != values[0] for v in values)}


def config_card(of: RunComparison) -> str:
    """HTML: a row for each setting that differs; values unlike the baseline's are marked."""
    found, place = differing(of), of.rows.index(of.base)
    same = len({name for row in of.rows for name in asked(row)}) - len(found)
    told = f'<p class="quiet">{same} settings are the same in all of them.</p>'
    if not found:
        return card("What was asked differently", told)
    body = "".join(
        f'<tr><th scope="row">{esc(name)}</th>{_values(values, place)}</tr>'
        for name, values in found.items()
    )
    return card("What was asked differently", _table(of, body, "Settings that differ") + told)


def _values(values: Sequence[Any], place: int) -> str:
    return "".join(_value(v, i != place and v != values[place]) for i, v in enumerate(values))


def _value(value: Any, changed: bool) -> str:
    text = NONE if value is None else esc(str(value).lower() if isinstance(value, bool) else value)
    mark = '<span class="hidden"> (differs)</span>' if changed else ""
    return f'<td class="num{" changed" if changed else ""}">{text}{mark}</td>'


def _table(of: RunComparison, body: str, label: str) -> str:
    heads = "".join(
        f'<th scope="col" class="num">{swatch(of.strokes[run])}<a class="mono" '
        f'href="{href("run", id=run)}">{esc(run)}</a>{_is_base(of, run)}</th>'
        for run in of.runs
    )
    return scroll_box(
        label,
        f'<table class="data compared"><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table>",
    )


def _is_base(of: RunComparison, run: str) -> str:
    return '<span class="under">baseline</span>' if run == of.base.job.run else ""


def swatch(stroke: LineStyle) -> str:
    """HTML: the line a run is drawn with."""
    style = "solid" if stroke.dash == "solid" else "dashed"
    colour = "var(--muted)" if stroke == BASELINE else stroke.colour
    return f'<i class="swatch" style="border-top:3px {style} {colour}"></i>'


# what came out ------------------------------------------------------------------------------------


def measured(of: RunComparison) -> list[str]:
    """Metrics any of the runs ended with, the described ones first in their order."""
    found = {name for row in of.rows for name in row.figures.final_names}
    return [m for m in METRICS if m in found] + sorted(found - METRICS.keys())


def metrics_card(of: RunComparison) -> str:
    """HTML: a row for each metric of the kept stage, with its delta to the baseline."""
    body = _kept_row(of) + "".join(_metric_row(of, name) for name in measured(of))
    body += "".join(_plain_row(of, *one) for one in _besides(of))
    told = (
        '<p class="quiet">Of the stage each run kept. ▲ up, ▼ down; green is better, red is worse, '
        "as each metric declares; nothing is judged that was measured on another text or device."
        "</p>"
    )
    return card("What came out", _table(of, body, "Figures") + told)


def _kept_row(of: RunComparison) -> str:
    cells = "".join(
        f'<td class="num">{esc(r.figures.label(r.figures.kept)) if r.figures.kept else NONE}</td>'
        for r in of.rows
    )
    return f'<tr><th scope="row">Kept stage</th>{cells}</tr>'


def _metric_row(of: RunComparison, name: str) -> str:
    known = metric(name)
    cells = "".join(f'<td class="num">{_figure(known, r, of.base)}</td>' for r in of.rows)
    return f'<tr><th scope="row">{heading(known)}</th>{cells}</tr>'


def heading(of: Metric) -> str:
    """HTML: the title of a metric, its definition on hover."""
    about = f' title="{esc(of.definition)}"' if of.definition else ""
    return f"<span{about}>{esc(of.title)}</span>"


def _figure(of: Metric, row: RunRow, base: RunRow) -> str:
    figure = row.figures.final_row(of.name)
    if figure is None:
        return NONE
    spread = f' <span class="quiet">± {number(figure.stderr, 2)}</span>' if figure.stderr else ""
    change = delta_html(of.name, row, base, relative=True)
    return f"{format_value(of, figure.value)}{spread}{change}"


def _besides(of: RunComparison) -> list[tuple[Metric, list[float | None]]]:
    """What was not recorded as a figure, but can be compared."""
    found: dict[str, list[float | None]] = {
        "took": [elapsed(row.job, row.now) for row in of.rows],
        "peak": [row.job.peak_bytes for row in of.rows],
        "size": [row.size for row in of.rows],
    }
    return [(METRICS[n], values) for n, values in found.items() if any(v for v in values)]


def _plain_row(of: RunComparison, known: Metric, values: Sequence[float | None]) -> str:
    base = values[of.rows.index(of.base)]
    cells = ""
    for row, value in zip(of.rows, values, strict=True):
        told = ""
        if value is not None and base is not None and row is not of.base:
            told = difference_html(known, delta(known, value, base), value, relative=True)
        cells += f'<td class="num">{format_value(known, value)}{told}</td>'
    return f'<tr><th scope="row">{heading(known)}</th>{cells}</tr>'


def on_one_text(of: RunComparison) -> list[RunRow]:
    """The runs whose perplexity was measured on the baseline's text."""
    held = [row for row in of.rows if row.figures.final() is not None]
    return [
        row
        for row in held
        if of.base in held and not incomparable_because(row, of.base, "perplexity")
    ]


# head and files -----------------------------------------------------------------------------------


def head_html(of: RunComparison) -> str:
    """HTML: the runs, what can be done to each, and to all of them."""
    items = "".join(_run(of, row) for row in of.rows)
    ids = ",".join(of.runs)
    change = href("runs", pick=ids, base=of.base.job.run)
    return (
        f'<ul class="plain compare-runs">{items}</ul><div class="actions">'
        f'<a class="button" href="{change}">Choose other runs</a>'
        '<button type="button" class="button" data-copy="">Copy link</button>'
        '<button type="button" class="button" data-testid="compare-csv" data-do="csv">Export CSV'
        '</button><button type="button" class="button" data-do="json">Export JSON</button></div>'
    )


def _run(of: RunComparison, row: RunRow) -> str:
    run, is_base = row.job.run, row is of.base
    rest = [other for other in of.runs if other != run]
    view = esc(json.dumps({"base": run}))
    drop = esc(json.dumps({"ids": ",".join(rest)}))
    pressed = str(is_base).lower()
    overlay = (
        ""
        if is_base
        else f'<a class="button small" href="{href("weights", run=run, vs=of.base.job.run)}">'
        "Weights over the baseline's</a>"
    )
    less = (
        f'<button type="button" class="small" data-view="{drop}" aria-label="Leave out {esc(run)}">'
        "Leave out</button>"
        if len(of.rows) > 2
        else ""
    )
    name = f'<span class="clip">{esc(row.job.name)}</span>' if row.job.name else ""
    return (
        f'<li>{swatch(of.strokes[run])}<a class="mono" href="{href("run", id=run)}">{esc(run)}</a>'
        f'{name}<span class="quiet one-line">{model_and_settings(row.job)}</span>'
        f"{badge(row.job.state)}"
        f'<span class="actions"><button type="button" class="small" aria-pressed="{pressed}" '
        f'data-testid="base-{esc(run)}" data-view="{view}">Baseline</button>{overlay}{less}</span>'
        "</li>"
    )


def records(of: RunComparison) -> list[dict[str, Any]]:
    """Every line of both tables as plain data."""
    found: list[dict[str, Any]] = []
    for name, values in differing(of).items():
        for run, value in zip(of.runs, values, strict=True):
            found.append({"section": "setting", "name": name, "run": run, "value": value})
    for name in measured(of):
        found += [_record(name, row, of.base) for row in of.rows if row.figures.final_row(name)]
    return found


def _record(name: str, row: RunRow, base: RunRow) -> dict[str, Any]:
    mine, against = row.figures.final_row(name), base.figures.final(name)
    assert mine is not None
    why = incomparable_because(row, base, name) if against is not None else "no baseline"
    return {
        "section": "figure",
        "name": name,
        "run": row.job.run,
        "value": mine.value,
        "stderr": mine.stderr,
        "delta": None if against is None or why else mine.value - against,
        "not_compared": why,
    }


def to_csv(of: RunComparison) -> str:
    """Both tables in long form."""
    out = io.StringIO()
    columns = ["section", "name", "run", "value", "stderr", "delta", "not_compared"]
    writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for record in records(of):
        writer.writerow({k: safe(v) for k, v in record.items()})
    return out.getvalue()


def to_json(of: RunComparison) -> str:
    """Both tables, and which run is the baseline."""
    whole = {"baseline": of.base.job.run, "runs": of.runs, "lines": records(of)}
    return json.dumps(whole, indent=1, ensure_ascii=False)
