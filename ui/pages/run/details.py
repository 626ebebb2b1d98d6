"""Everything that is known of a run, as HTML. Whatever is missing is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from backend.settings import settings
from backend.store import queries
from backend.store.tables import Artifact, Attempt, Job
from jobs.metrics import Metric, metric
from jobs.submit import command_line
from ui.format import NONE, count, duration, esc, number, size
from ui.runs.html import elapsed
from ui.runs.results import ResultRow, RunResults, format_value, kind_of
from ui.theme import stage_style
from ui.widgets.config_form import extra, title
from ui.widgets.download import AT_MOST
from ui.widgets.html import card, copy_button, facts, shell, table, time_tag

HASH_SHOWN = 12
FILES_SHOWN = 200
WORDS = {
    "sha256": "sha256", "weights_sha256": "sha256 of the weights", "cpu": "Processor",
    "dtype": "Computed in", "windows": "Segments or windows", "context": "Context, tokens",
}  # fmt: skip


def hash_tag(digest: str) -> str:
    """HTML: the first signs of a hash, the whole on hover."""
    return f'<code title="{esc(digest)}">{esc(digest[:HASH_SHOWN])}…</code>' if digest else NONE


def stage_table(figures: RunResults) -> str:
    """HTML: one row a stage, one column a metric; the kept stage is marked. Stages that have no
    metric in common stand apart: one alone as a list, several as a table of their own."""
    groups = figures.alike()
    return "".join(_alike(figures, stages, alone=len(groups) == 1) for stages in groups)


def _alike(figures: RunResults, stages: Sequence[str], alone: bool) -> str:
    names = [n for n in figures.metrics if any(figures.get(s, n) for s in stages)]
    if len(stages) == 1 and not alone:
        return facts({metric(n).title: _cell(figures, stages[0], n) for n in names})
    heads = ["Stage", *(metric(n).title for n in names)]
    rows = [[_stage(figures, s), *(_cell(figures, s, n) for n in names)] for s in stages]
    return table(heads, rows, numeric=range(1, len(heads)))


def _stage(figures: RunResults, stage: str) -> str:
    kept = ' <span class="tag">kept</span>' if stage == figures.kept else ""
    colour = stage_style(stage).colour
    dot = f'<i class="stage" style="background:{colour}" aria-hidden="true"></i>'
    return f"{dot}{esc(figures.label(stage))}{kept}"


def _cell(figures: RunResults, stage: str, name: str) -> str:
    row = figures.get(stage, name)
    if row is None:
        return NONE
    spread = f' <span class="quiet">± {number(row.stderr, 2)}</span>' if row.stderr else ""
    return format_value(metric(name), row.value) + spread


def outcome(job: Job, figures: RunResults, now: int) -> str:
    """HTML: the figures of the run as a whole."""
    pairs: dict[str, str] = {}
    if figures.kept:
        pairs["Kept stage"] = esc(figures.label(figures.kept))
    pairs |= {metric(n).title: _of_run(metric(n), r) for n, r in figures.of_run.items()}
    steps = figures.seconds
    if len(steps) == 1:
        pairs |= {sentence_case(step): duration(seconds) for step, seconds in steps.items()}
    if job.started_at:
        pairs["Duration"] = duration(elapsed(job, now))
    if job.peak_bytes:
        pairs["Peak memory"] = size(job.peak_bytes)
    return facts(pairs) + _verdict(job, figures) + _decision(figures)


def _of_run(of: Metric, row: ResultRow) -> str:
    """The figure, and whose it is where one of several stands for the run."""
    whose = row.details.get("of")
    return format_value(of, row.value) + (
        f' <span class="quiet under">{esc(whose)}</span>' if whose else ""
    )


def _verdict(job: Job, figures: RunResults) -> str:
    """In words: whether the method helped on this model."""
    kind = kind_of(job)
    values = {s: r.value for (s, m), r in figures.rows.items() if m == "perplexity"}
    said = kind.verdict(values) if kind and figures.kept else ""
    return f"<p>{esc(said)}</p>" if said else ""


def _decision(figures: RunResults) -> str:
    """In words: how the kept stage was chosen."""
    losses = {s: figures.value(s, "heldout_loss") for s in figures.stages}
    held = {s: v for s, v in losses.items() if v is not None}
    kept = figures.kept
    if kept is None or kept not in held or len(held) < 2:
        return ""
    others = ", ".join(f"{esc(figures.label(s))} {number(v)}" for s, v in held.items() if s != kept)
    return (
        f'<p class="quiet">On text held out from the calibration, {esc(figures.label(kept))} had '
        f"the loss {number(held[kept])}; {others}.</p>"
    )


def times(figures: RunResults) -> str:
    """HTML: how long each step took, as bars; nothing where there is but one."""
    seconds = figures.seconds if len(figures.seconds) > 1 else {}
    longest = max([*seconds.values(), 1e-9])
    rows = "".join(
        f"<div><dt>{esc(sentence_case(step.replace('_', ' ')))}</dt><dd>"
        f'<i style="width:{100 * value / longest:.1f}%"></i></dd><dd>{duration(value)}</dd></div>'
        for step, value in seconds.items()
    )
    return f'<dl class="facts bars">{rows}</dl>' if rows else ""


def sentence_case(text: str) -> str:
    """With a capital at its head; "DL-QAT" stays as it is."""
    return text[:1].upper() + text[1:]


def config_card(job: Job) -> str:
    """HTML: what differs from the defaults, and the whole config."""
    kind = kind_of(job)
    fields = kind.config.model_fields if kind else {}
    changed = [
        [esc(title(n, fields[n])), _value(v, extra(fields[n])), _value(fields[n].default, {})]
        for n, v in job.config.items()
        if n in fields and v != fields[n].default
    ]
    body = (
        table(["Setting", "This run", "Default"], changed)
        if changed
        else '<p class="quiet">Everything is as the defaults say.</p>'
    )
    whole = json.dumps(job.config, indent=1)
    command = command_line(job.kind, job.config) if kind else ""
    more = f"<details><summary>Whole config</summary><pre>{esc(whole)}</pre></details>"
    return card("Config", body + more + (shell(command) if command else ""))


def _value(value: Any, more: Mapping[str, Any]) -> str:
    unit = f" {more['unit']}" if "unit" in more else ""
    return f"{esc(value)}{esc(unit)}"


def text_card(environment: Mapping[str, Any]) -> str:
    """HTML: the texts the run read, well enough to cut the same slices again."""
    slices = environment.get("text")
    if not isinstance(slices, Mapping) or not slices:
        return ""
    about = {role: v for role, v in slices.items() if isinstance(v, Mapping)}
    keys = list(dict.fromkeys(key for v in about.values() for key in v))
    heads = ["", *(esc(role).capitalize() for role in about)]
    rows = [[_words(k), *(_fact(k, v.get(k)) for v in about.values())] for k in keys]
    return card("Texts", table(heads, rows))


def _words(key: str) -> str:
    return WORDS.get(key) or esc(key).replace("_", " ").capitalize()


def _fact(key: str, value: Any) -> str:
    if value is None or value == "":
        return NONE
    if "sha256" in key:
        return hash_tag(str(value))
    if isinstance(value, Mapping):
        return "<br>".join(f"{esc(k)} {esc(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "<br>".join(map(esc, value)) or NONE
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value) if key != "seed" else str(value)
    return f'<span class="long">{esc(value)}</span>'


def environment_card(job: Job) -> str:
    """HTML: where it ran, and with which versions."""
    known = {k: v for k, v in job.environment.items() if k not in ("text", "warnings")}
    if not known:
        return ""
    pairs = {_words(key): _fact(key, value) for key, value in known.items()}
    return card("Environment", facts(pairs))


def warnings(job: Job) -> str:
    """HTML: what the method warned of."""
    found = job.environment.get("warnings") or []
    return "".join(f'<p class="warn">⚠ {esc(text)}</p>' for text in found)


def attempts_card(job: Job, attempts: list[Attempt], now: int) -> str:
    """HTML: every process that worked on the run."""
    if not attempts:
        return ""
    rows = [
        [
            str(a.n), time_tag(a.started_at or a.launched_at, now), _lasted(a),
            esc(a.outcome or "working"), NONE if a.exit_code is None else str(a.exit_code),
            esc(a.resumed_from or NONE),
        ]
        for a in attempts
    ]  # fmt: skip
    heads = ["Attempt", "Started", "Lasted", "Outcome", "Exit code", "Went on from"]
    return card("Attempts", table(heads, rows, numeric=(0, 4)))


def _lasted(attempt: Attempt) -> str:
    if attempt.started_at is None or attempt.ended_at is None:
        return NONE
    return duration((attempt.ended_at - attempt.started_at) / 1000)


# what it left -------------------------------------------------------------------------------------


def artefacts(run: str, found: list[Artifact]) -> str:
    """HTML: files and folders a run produced, and how a model is loaded."""
    return "".join(_artefact(run, artifact) for artifact in found)


def _artefact(run: str, artifact: Artifact) -> str:
    path = settings().artifacts / artifact.path
    about = facts(
        {
            "Path": f"<code>{esc(path)}</code> {copy_button(str(path))}",
            "Size": size(artifact.bytes),
            "sha256": f"<code>{esc(artifact.sha256)}</code>" if artifact.sha256 else NONE,
        },
        lines=True,
    )
    gone = "" if path.exists() else '<p class="warn">⚠ It is not there any more.</p>'
    load = _load(str(path)) if artifact.kind == "model" else ""
    return card(artifact.kind.capitalize(), about + gone + load + _files(run, artifact))


def _load(path: str) -> str:
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({path!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({path!r})"
    )
    return f"<h3>Load it with plain transformers</h3>{shell(code)}"


def _files(run: str, artifact: Artifact) -> str:
    """Files with their sizes; the small ones can be downloaded."""
    root = settings().artifacts.resolve()
    path = (root / artifact.path).resolve()
    if not path.is_relative_to(root) or not path.exists():
        return ""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    rows = [
        [f"<code>{esc(f.relative_to(path) if f != path else f.name)}</code>",
         size(f.stat().st_size), _download(run, str(f.relative_to(root)), f.stat().st_size)]
        for f in files[:FILES_SHOWN]
    ]  # fmt: skip
    return table(["File", "Size", ""], rows, numeric=(1,))


def _download(run: str, path: str, length: int) -> str:
    if length > AT_MOST:
        return f'<span class="quiet">over {size(AT_MOST)}: copy it from the folder</span>'
    return (
        f'<button type="button" class="small" data-do="download" data-run="{esc(run)}" '
        f'data-file="{esc(path)}">Download</button>'
    )


def may_be_given(run: str, path: str) -> bool:
    """Whether the path lies in one of the artefacts recorded for the run."""
    root = settings().artifacts.resolve()
    file = (root / path).resolve()
    folders = [(root / a.path).resolve() for a in queries.artifacts(run)]
    return any(file.is_relative_to(folder) for folder in folders)
