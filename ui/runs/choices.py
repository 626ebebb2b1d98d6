"""Choices of form fields: available models, corpora, saved models and drafters."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from backend.models.sources import catalog
from backend.store import queries
from backend.text import corpora
from jobs.fields.drafters import available_drafters
from jobs.fields.gguf import TYPES
from jobs.fields.models import has_saved
from ui.runs.results import setting_summary
from ui.widgets.dropdown import Choices


def models() -> Choices:
    """All models of the catalog; unsupported and missing ones are marked."""
    return [
        (f"{e.title} (not supported)" if e.refused else _label(e.title, e.ready), e.name)
        for e in catalog.entries()
    ]


def texts(role: str) -> Choices:
    """The corpora for a role, "calibration" or "evaluation"."""
    corpus_choices = [
        (_label(c.title, c.ready), c.name) for c in corpora.corpora() if role in c.roles
    ]
    return [("Auto (suits the model)", "auto"), *corpus_choices]


def _label(title: str, is_ready: bool) -> str:
    return title if is_ready else f"{title} (not set up)"


def saved_models() -> Choices:
    """The models that runs have saved, followed by the catalog."""
    jobs = queries.jobs()
    sizes = queries.model_bytes(job.id for job in jobs)
    available = [job for job in jobs if job.id in sizes and has_saved(job, "model")]
    return [*((f"{job.run} {job.name}".strip(), job.run) for job in available), *models()]


def answering() -> Choices:
    """All models and drafters that can answer a prompt."""
    catalog_names = {name for _, name in models()}
    compressed = [(label, name) for label, name in saved_models() if name not in catalog_names]
    return [*models(), *trained_drafters(), *compressed]


def trained_drafters() -> Choices:
    """The drafters that runs have saved."""
    return [
        (f"{job.run} for {job.config['model']}: {', '.join(setting_summary(job))}", job.run)
        for job in available_drafters()
    ]


CHOICES: Mapping[str, Callable[[], Choices]] = MappingProxyType(
    {
        "drafters": lambda: [("None", ""), *trained_drafters()],
        "gguf_types": lambda: [(type, type) for type in TYPES],
        "model": models,
        "saved": saved_models,
        "calibration_text": partial(texts, "calibration"),
        "evaluation_text": partial(texts, "evaluation"),
    }
)
