"""Small pieces of HTML that several pages show. All text in them is escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath

from backend.errors import SlimscopeError
from backend.queue.roles import ASK
from backend.store.states import LIVE
from backend.store.tables import Job
from ui.format import NONE, duration, esc, eta, href, problem, share
from ui.runs.results import kind_title, setting_summary
from ui.widgets.data_table import scroll_box


def off(reason: str) -> str:
    """HTML attributes of a button that would be refused for `reason`; none where it would not."""
    return f' disabled title="{esc(reason)} {ASK}"' if reason else ""


def run_link(job: Job) -> str:
    """HTML: a link to the run's page."""
    return f'<a class="mono" href="{href("run", id=job.run)}">{esc(job.run)}</a>'


def named_link(job: Job, beside: str = "") -> str:
    """HTML: the link, `beside` it what is given, and under it the run's name if it has one."""
    name = f'<span class="clip quiet under" title="{esc(job.name)}">{esc(job.name)}</span>'
    return run_link(job) + beside + (name if job.name else "")


def tags_html(tags: Iterable[str]) -> str:
    """HTML: the tags of a run; each shows the runs that have it."""
    return " ".join(
        f'<a class="tag" href="{href("runs", q=f"tag:{tag}")}">{esc(tag)}</a>' for tag in tags
    )


def model_name(spec: object) -> str:
    """HTML: a model; of a path only its last part, the whole on hover."""
    text = str(spec)
    short = PurePath(text).name if text.startswith(("/", "~", ".")) else text
    return f'<span title="{esc(text)}">{esc(short)}</span>'


def described(job: Job) -> str:
    """HTML: what was done to what: "SDS pruning · smollm2-135m · 2:4 · wanda"."""
    parts = [esc(kind_title(job))]
    if "model" in job.config:
        parts.append(model_name(job.config["model"]))
    return " · ".join([*parts, *map(esc, setting_summary(job))])


def treated(job: Job) -> str:
    """HTML: the model, and under it what was chosen of the method."""
    return model_name(job.config.get("model", NONE)) + _chosen(job)


def in_two_lines(job: Job) -> str:
    """HTML: as `described`, on two lines: "SDS pruning · smollm2-135m" over "2:4 · wanda"."""
    model = f" · {model_name(job.config['model'])}" if "model" in job.config else ""
    return esc(kind_title(job)) + model + _chosen(job)


def _chosen(job: Job) -> str:
    text = esc(" · ".join(setting_summary(job)))
    return f'<span class="clip quiet under" title="{text}">{text}</span>' if text else ""


def progress(job: Job) -> str:
    """HTML: bar, percentage and stage of a live job; nothing for others."""
    if job.state not in LIVE:
        return ""
    done = job.share
    value = "" if done is None else f' value="{done:.4f}"'
    words = " · ".join(filter(None, (share(done, 0) if done is not None else "", esc(job.stage))))
    return (
        f'<div class="job-progress"><progress max="1"{value} aria-label="{esc(job.run)}">'
        f"</progress><span>{words}</span></div>"
    )


def time_left(job: Job) -> str:
    """When the job may end, in words; nothing when nobody knows."""
    return eta(job.eta_s) if job.state in LIVE and job.eta_s is not None else ""


def elapsed(job: Job, now: int) -> float | None:
    """Seconds a job has run, or ran."""
    if job.started_at is None:
        return None
    return ((job.finished_at or now) - job.started_at) / 1000


def took(job: Job, now: int) -> str:
    return duration(elapsed(job, now))


def facts(pairs: Mapping[str, str], *, lines: bool = False) -> str:
    """HTML: a list of names and values, one a line or side by side; values are HTML already."""
    rows = "".join(f"<div><dt>{esc(k)}</dt><dd>{v}</dd></div>" for k, v in pairs.items())
    return f'<dl class="facts{" lines" if lines else ""}">{rows}</dl>'


def card(title: str, body: str, tail: str = "") -> str:
    """HTML: a titled card; `tail` stands at the right of the title."""
    head = f'<div class="card-head"><h2>{esc(title)}</h2>{tail}</div>'
    return f'<section class="card">{head}{body}</section>'


def skeleton(height: int) -> str:
    """HTML: the room something will take, in pixels, so that nothing moves when it arrives."""
    return f'<div class="skeleton" style="min-height:{height}px" aria-hidden="true"></div>'


def stack(*parts: str) -> str:
    """HTML: cards under each other, those that are empty left out."""
    return f'<div class="cards">{"".join(parts)}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """HTML: a plain table of cells that are HTML already; `numeric` columns stand right."""
    kind = [' class="num"' if i in numeric else "" for i in range(len(heads))]
    head = "".join(f'<th scope="col"{kind[i]}>{esc(h)}</th>' for i, h in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{kind[i]}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    shown = f'<table class="data"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return scroll_box(", ".join(filter(None, heads)), shown)


def empty(sentence: str, *links: tuple[str, str]) -> str:
    """HTML: why there is nothing here, and what to do about it. Links are (address, words); the
    first is what most people want."""
    buttons = "".join(
        f'<a class="button{"" if place else " primary"}" href="{to}">{esc(words)}</a>'
        for place, (to, words) in enumerate(links)
    )
    return f'<div class="empty"><p>{esc(sentence)}</p>{buttons}</div>'


def error_of(job: Job) -> str:
    """HTML: why a job failed; nothing when it did not."""
    if not job.error:
        return ""
    parts = (str(job.error.get(part) or "") for part in ("what", "why", "do"))
    return problem(SlimscopeError(*parts))


def attribute(value: object) -> str:
    """JSON that may stand in an HTML attribute."""
    return esc(json.dumps(value))


def shell(text: str, words: str = "Copy") -> str:
    """HTML: lines to be copied; works inside a `Board`."""
    whole_options = re.sub(r"--[\w-]+", r'<span class="nowrap">\g<0></span>', esc(text))
    return f'<div class="shell"><code>{whole_options}</code>{copy_button(text, words)}</div>'


def copy_button(text: str, words: str = "Copy") -> str:
    """HTML: a button that copies `text`; works inside a `Board`."""
    return f'<button type="button" class="small" data-copy="{esc(text)}">{esc(words)}</button>'
