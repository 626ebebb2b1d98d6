"""The choices in forms: the models, corpora, saved models and drafters there are today."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from backend.models.sources import catalog
from backend.store import queries
from backend.text import corpora
from jobs.fields.drafters import finished_drafters
from jobs.fields.gguf import TYPES
from jobs.fields.models import has_saved
from ui.runs.results import setting_summary
from ui.widgets.dropdown import Choices


def models() -> Choices:
    return [
        (f"{e.title} (not supported)" if e.refused else _titled(e.title, e.ready), e.name)
        for e in catalog.entries()
    ]


def texts(role: str) -> Choices:
    named = [(_titled(c.title, c.ready), c.name) for c in corpora.corpora() if role in c.roles]
    return [("Auto (suits the model)", "auto"), *named]


def _titled(title: str, ready: bool) -> str:
    return title if ready else f"{title} (not set up)"


def saved() -> Choices:
    jobs = queries.jobs()
    sizes = queries.model_bytes(job.id for job in jobs)
    there = [job for job in jobs if job.id in sizes and has_saved(job, "model")]
    return [*((f"{job.run} {job.name}".strip(), job.run) for job in there), *models()]


def answering() -> Choices:
    """All that can answer a prompt."""
    known = {name for _, name in models()}
    compressed = [(label, name) for label, name in saved() if name not in known]
    return [*models(), *trained_drafters(), *compressed]


def trained_drafters() -> Choices:
    return [
        (f"{job.run} for {job.config['model']}: {', '.join(setting_summary(job))}", job.run)
        for job in finished_drafters()
    ]


CHOICES: Mapping[str, Callable[[], Choices]] = MappingProxyType(
    {
        "drafters": lambda: [("None", ""), *trained_drafters()],
        "gguf_types": lambda: [(type, type) for type in TYPES],
        "model": models,
        "saved": saved,
        "calibration_text": partial(texts, "calibration"),
        "evaluation_text": partial(texts, "evaluation"),
    }
)
