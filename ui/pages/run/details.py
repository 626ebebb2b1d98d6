"""Facts about a run other than its metrics, as HTML: settings, texts, environment, attempts,
reproductions; the origin and the descendants of its model; disk space, files and downloads. Missing
facts are omitted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from backend.live.address import WORKBENCH
from backend.queue.actor import Actor
from backend.queue.removal import CHECKPOINTS, disk_use
from backend.queue.service import SIZES
from backend.settings import settings
from backend.store import queries
from backend.store.queries import StoredResult
from backend.store.tables import Artifact, Attempt, Job
from jobs.estimates import WORK
from jobs.kind import capital, kinds
from jobs.metrics import PERPLEXITY, metric
from jobs.reproduction import compare, reproduced
from jobs.submit import command_line
from ui.format import NONE, duration, href, size
from ui.runs.actions import group_buttons
from ui.runs.results import RunResults, fields_of, find_job, format_value, kind_of, setting_summary
from ui.runs.rows import by_job
from ui.templates import fragments
from ui.widgets.config_form import title, value_with_unit
from ui.widgets.html import AT_MOST, time_tag

HTML = fragments("pages/run/page.html")
NAMED_LAYERS = 4  # layers named per part of the plan
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
LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({path!r})
tokenizer = AutoTokenizer.from_pretrained({path!r})"""


def config_card(job: Job) -> Markup:
    fields = fields_of(job.kind)
    changed = [
        [
            title(n, fields[n]),
            value_with_unit(fields[n], v),
            value_with_unit(fields[n], fields[n].default),
        ]
        for n, v in job.config.items()
        if n in fields and v != fields[n].default
    ]
    command = command_line(job.kind, job.config) if fields else ""
    return HTML.configuration(changed, json.dumps(job.config, indent=1), command)


def plan_card(job: Job) -> Markup:
    """Operations of a run with their layers; the layers of the largest part are not listed. Empty
    for a run without a readable plan."""
    expected, stored = kinds()[job.kind].plan if job.kind in kinds() else None, queries.plan(job.id)
    try:
        parts = expected.model_validate(stored).parts if expected and stored else {}
    except ValidationError:
        parts = {}
    largest = max(map(len, parts.values()), default=0)
    rows = []
    for what, names in sorted(parts.items(), key=lambda part: -len(part[1])):
        more = f" and {len(names) - NAMED_LAYERS} more" if len(names) > NAMED_LAYERS else ""
        named = ", ".join(names[:NAMED_LAYERS]) + more
        rows.append([len(names), what, "all others" if len(names) == largest else named])
    return HTML.plan(rows)


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
    return LABELS.get(key) or capital(key.replace("_", " "))


def attempts_card(attempts: Sequence[Attempt], now: int) -> Markup:
    rows = [
        [
            a.n,
            time_tag(a.started_at or a.launched_at, now),
            duration((a.ended_at - a.started_at) / 1000) if a.started_at and a.ended_at else NONE,
            a.outcome or "working",
            NONE if a.exit_code is None else a.exit_code,
            a.resumed_from or NONE,
        ]
        for a in attempts
    ]
    return HTML.attempts(rows, now)


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
    parts = {capital(part): size(length) for part, length in use.items()}
    free = group_buttons(job, user, "disk") if CHECKPOINTS in use else ""
    return HTML.disk(parts | total, free)


def artifacts(run: str, rows: Sequence[Artifact]) -> Markup:
    """Folders and files with their sizes, and downloads of the small ones."""
    cards, root = [], settings().artifacts.resolve()
    for row in rows:
        path = settings().artifacts / row.path
        load = LOAD.format(path=str(path)) if row.kind == "model" else ""
        real, listed = path.resolve(), []
        found = sorted(real.rglob("*")) if real.is_dir() else [real]
        files = [file for file in found if file.is_file() and real.is_relative_to(root)]
        for file in files[:200]:
            nbytes = file.stat().st_size
            name = file.relative_to(real) if file != real else file.name
            limit = size(AT_MOST) if nbytes > AT_MOST else ""
            download = HTML.download(run, str(file.relative_to(root)), limit)
            listed.append([HTML.file_name(name), size(nbytes), download])
        card = HTML.artifact(
            capital(row.kind),
            str(path),
            size(row.bytes),
            row.sha256,
            not path.exists(),
            load,
            run,
            listed,
        )
        cards.append(card)
    return Markup().join(cards)


@dataclass(frozen=True)
class LineageNode:
    """A model of the catalog, or a run with its `change` to the preceding model and its
    perplexity."""

    name: str
    href: str = ""
    change: str = ""
    figure: str = ""
    state: str = ""


def lineage_card(job: Job) -> Markup:
    """The chain from the first model to this run, and the runs that started from it; empty if there
    are none."""
    before, after = ancestors(job), queries.runs_from(job.run, 12)  # the newest
    if len(before) < 2 and not after:
        return Markup()
    runs = [each for each in (*before, job, *after) if isinstance(each, Job)]
    stored = by_job(queries.results([each.run for each in runs]))
    chain = [node(each, stored) for each in before]
    return HTML.lineage(chain, node(job, stored), [node(each, stored) for each in after])


def ancestors(job: Job) -> list[Job | str]:
    """Models before this run: the first model, then runs; deleted runs are names only."""
    chain: list[Job | str] = []
    seen, spec = {job.run}, str(job.config.get("model") or "")
    while (run := find_job(spec)) and run.run not in seen:
        seen.add(run.run)
        chain.insert(0, run)
        spec = str(run.config.get("model") or "")
    return [spec, *chain] if spec else chain


def node(each: Job | str, stored: Mapping[int, Sequence[StoredResult]]) -> LineageNode:
    if isinstance(each, str):
        return LineageNode(each)
    results = RunResults(kind_of(each), stored.get(each.id, []), each)
    value = results.final(PERPLEXITY)
    figure = f"perplexity {format_value(metric(PERPLEXITY), value)}" if value is not None else ""
    change = ", ".join(setting_summary(each))
    return LineageNode(each.run, href("run", id=each.run), change, figure, each.state)
