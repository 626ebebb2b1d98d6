"""Where a run's model came from, and what was made of it: model, pruned, quantised, drafted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from backend.queue.scheduling import connected
from backend.store import queries
from backend.store.queries import StoredResult
from backend.store.tables import Job
from jobs.metrics import PERPLEXITY, metric
from ui.format import href
from ui.runs.results import RunResults, find_job, format_value, kind_of, setting_summary
from ui.runs.rows import by_job
from ui.templates import fragments

HTML = fragments("pages/run/page.html")
MAX_CHILDREN = 12  # runs that started from this one, the newest


@dataclass(frozen=True)
class LineageNode:
    """Model of the catalogue, or a run with its `change` to the model before and its perplexity."""

    name: str
    href: str = ""
    change: str = ""
    figure: str = ""
    state: str = ""


def lineage_card(job: Job) -> Markup:
    """Chain from the first model to this run, and runs that started from it; empty if alone."""
    before, after = ancestors(job), queries.runs_from(job.run, MAX_CHILDREN)
    if len(before) < 2 and not after:
        return Markup()
    runs = [each for each in (*before, job, *after) if isinstance(each, Job)]
    stored = by_job(queries.results([each.run for each in runs]))
    chain = [node(each, stored) for each in before]
    whole = href("pipeline", id=job.run) if len(connected(job.id)) > 1 else ""
    return HTML.lineage(chain, node(job, stored), [node(each, stored) for each in after], whole)


def ancestors(job: Job) -> list[Job | str]:
    """Models before this run: the spec it began with, then runs; a deleted run is a name."""
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
