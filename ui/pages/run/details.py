"""What is known of a run besides its figures, as HTML: settings, texts, environment, attempts,
reproductions; and what it left: disk space, folders and files, how a model is loaded, what can be
downloaded. Whatever is missing is left out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from backend.live.address import WORKBENCH
from backend.queue.actor import Actor
from backend.queue.removal import CHECKPOINTS, disk_use
from backend.queue.service import SIZES
from backend.settings import settings
from backend.store import queries
from backend.store.tables import Artifact, Attempt, Job
from jobs.estimates import WORK
from jobs.kind import kinds
from jobs.reproduction import compare, reproduced
from jobs.submit import command_line
from ui.format import NONE, duration, size
from ui.pages.run.outcome import sentence_case
from ui.runs.actions import group_buttons
from ui.runs.results import fields_of
from ui.templates import fragments
from ui.widgets.config_form import spoken, title
from ui.widgets.html import AT_MOST, time_tag

HTML = fragments("pages/run/page.html")
NAMED_LAYERS = 4  # of a part of the plan
NOT_ENVIRONMENT = (  # shown elsewhere
    "variables",
    "text",
    "warnings",
    "estimated_seconds",
    "estimated_bytes",
    "kept_reason",
    *SIZES,
    WORKBENCH,
    WORK,
)
LABELS = {
    "sha256": "sha256",
    "weights_sha256": "Checksum of the weights",
    "cpu": "Processor",
    "dtype": "Precision",
    "windows": "Segments or windows",
    "context": "Context, tokens",
}
MAX_FILES = 200
LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({path!r})
tokenizer = AutoTokenizer.from_pretrained({path!r})"""


def config_card(job: Job) -> Markup:
    fields = fields_of(job.kind)
    changed = [
        [title(n, fields[n]), spoken(fields[n], v), spoken(fields[n], fields[n].default)]
        for n, v in job.config.items()
        if n in fields and v != fields[n].default
    ]
    command = command_line(job.kind, job.config) if fields else ""
    return HTML.configuration(changed, json.dumps(job.config, indent=1), command)


def plan_card(job: Job) -> Markup:
    """What the run does to how many layers; the layers by name, except those of the largest part.
    Empty for a run without a plan, or with one that cannot be read."""
    expected, stored = kinds()[job.kind].plan if job.kind in kinds() else None, queries.plan(job.id)
    try:
        parts = expected.model_validate(stored).parts if expected and stored else {}
    except ValidationError:
        parts = {}
    largest = max(map(len, parts.values()), default=0)
    rows = [
        [len(names), what, "all others" if len(names) == largest else _few(names)]
        for what, names in sorted(parts.items(), key=lambda part: -len(part[1]))
    ]
    return HTML.plan(rows)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_LAYERS} more" if len(names) > NAMED_LAYERS else ""
    return ", ".join(names[:NAMED_LAYERS]) + more


def texts_card(environment: Mapping[str, Any]) -> Markup:
    slices = environment.get("text")
    roles = slices.items() if isinstance(slices, Mapping) else ()
    about = {role: facts for role, facts in roles if isinstance(facts, Mapping)}
    keys = dict.fromkeys(key for facts in about.values() for key in facts)
    heads = ["", *(str(role).capitalize() for role in about)]
    rows = [[label(k), *(HTML.recorded(k, facts.get(k)) for facts in about.values())] for k in keys]
    return HTML.texts(heads, rows)


def environment_card(job: Job) -> Markup:
    facts = {k: v for k, v in job.environment.items() if k not in NOT_ENVIRONMENT}
    pairs = {label(key): HTML.recorded(key, value) for key, value in facts.items()}
    return HTML.environment(pairs)


def label(key: str) -> str:
    return LABELS.get(key) or sentence_case(key.replace("_", " "))


def attempts_card(attempts: Sequence[Attempt], now: int) -> Markup:
    rows = [
        [
            a.n,
            time_tag(a.started_at or a.launched_at, now),
            _lasted(a),
            a.outcome or "working",
            NONE if a.exit_code is None else a.exit_code,
            a.resumed_from or NONE,
        ]
        for a in attempts
    ]
    return HTML.attempts(rows, now)


def _lasted(attempt: Attempt) -> str:
    if attempt.started_at is None or attempt.ended_at is None:
        return NONE
    return duration((attempt.ended_at - attempt.started_at) / 1000)


def reproduction_card(job: Job) -> Markup:
    own = reproduced(job)
    others = [compare(job.id, other.id) for other in queries.reproductions(job.id)]
    pairs = [(own, own.first)] if own else []
    return HTML.reproductions([*pairs, *((each, each.second) for each in others)])


def disk_card(job: Job, user: Actor) -> Markup:
    use = disk_use(job.run)
    if not use:
        return Markup()
    total = {"Total": size(sum(use.values()))} if len(use) > 1 else {}
    parts = {sentence_case(part): size(length) for part, length in use.items()}
    free = group_buttons(job, user, "disk") if CHECKPOINTS in use else ""
    return HTML.disk(parts | total, free)


def artefacts(run: str, rows: Sequence[Artifact]) -> Markup:
    return Markup().join(_artefact(run, row) for row in rows)


def _artefact(run: str, row: Artifact) -> Markup:
    path = settings().artifacts / row.path
    load = LOAD.format(path=str(path)) if row.kind == "model" else ""
    return HTML.artefact(
        sentence_case(row.kind),
        str(path),
        size(row.bytes),
        row.sha256,
        not path.exists(),
        load,
        run,
        _files(run, row),
    )


def _files(run: str, row: Artifact) -> list[list[str]]:
    """Files with their sizes, and downloads of the small ones."""
    root = settings().artifacts.resolve()
    path = (root / row.path).resolve()
    if not path.is_relative_to(root) or not path.exists():
        return []
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [_file(run, file, path, root) for file in files[:MAX_FILES]]


def _file(run: str, file: Path, artefact: Path, root: Path) -> list[str]:
    name = file.relative_to(artefact) if file != artefact else file.name
    length = file.stat().st_size
    limit = size(AT_MOST) if length > AT_MOST else ""
    return [
        HTML.file_name(name),
        size(length),
        HTML.download(run, str(file.relative_to(root)), limit),
    ]
