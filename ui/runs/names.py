"""Names of runs that are shown together: the settings in which they differ, and what they share."""

from collections.abc import Sequence

from backend.store.tables import Job
from jobs.sweep import varied
from ui.runs.results import fields_of, kind_title, setting_summary, setting_text

MAX_LETTERS = 32  # length of a name


def run_labels(jobs: Sequence[Job]) -> dict[str, str]:
    """The name of each run: its kind if kinds differ, and its values of the settings in which runs
    of that kind differ, such as "50% · wanda". If nothing differs or that would be too long, the
    names that people gave, else ids. Equal names also have the id."""
    kinds = {job.kind for job in jobs}
    fields = {kind: varied([job for job in jobs if job.kind == kind]) for kind in kinds}
    labels = {}
    for job in jobs:
        known, values = fields_of(job.kind), job.config
        parts = [setting_text(known.get(f), f, values.get(f)) for f in fields[job.kind]]
        labels[job.run] = " · ".join([kind_title(job), *parts] if len(kinds) > 1 else parts)
    for named in (labels, {job.run: job.name for job in jobs}):
        names = [*named.values()]
        if len({*names}) > 1 and all(0 < len(name) <= MAX_LETTERS for name in names):
            return {
                run: name if names.count(name) == 1 else f"{name} · {run}"
                for run, name in named.items()
            }
    return {run: run for run in labels}


def shared_description(jobs: Sequence[Job]) -> str:
    """Kind, model and settings that all of these runs share: "SDS pruning · toy · wanda"."""
    described = [
        [kind_title(job), str(job.config.get("model", "")), *setting_summary(job)] for job in jobs
    ]
    shared = (text for text in described[0] if all(text in texts for texts in described))
    return " · ".join(filter(None, shared))
