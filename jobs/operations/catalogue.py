"""Operations that list what a config may name: kinds, models, texts."""

from collections.abc import Sequence
from dataclasses import asdict

from backend.models.sources.catalogue import entries
from backend.text.corpora import corpora
from jobs.kind import kinds
from jobs.operations.registry import Record, operation
from jobs.wording import table


def _kinds_text(records: Sequence[Record]) -> str:
    rows = ((kind["name"], kind["title"], ", ".join(kind["presets"])) for kind in records)
    return table(("kind", "what it is", "presets"), rows)


@operation("kinds", database="none", said=_kinds_text)
def list_kinds() -> list[Record]:
    """The kinds of run: title, recipes, presets, and the JSON schema of the config."""
    return [
        {
            "name": kind.name,
            "title": kind.title,
            "summary": kind.summary,
            "presets": {name: dict(values) for name, values in kind.presets.items()},
            "recipes": {name: dict(values) for name, values in kind.recipes.items()},
            "notes": dict(kind.notes),
            "schema": kind.config.model_json_schema(),
        }
        for kind in kinds().values()
    ]


def _models_text(records: Sequence[Record]) -> str:
    rows = (
        (
            entry["name"],
            "yes" if entry["ready"] else "refused" if entry["refused"] else "no",
            entry["refused"] or entry["title"],
            entry["licence"],
        )
        for entry in records
    )
    return table(("model", "ready", "what it is", "licence"), rows)


@operation("models", database="none", said=_models_text)
def list_models() -> list[Record]:
    """The models that can be chosen: name, title, origin, licence, and whether they are set up."""
    return [asdict(entry) for entry in entries()]


@operation("texts", database="none")
def list_texts() -> list[Record]:
    """The texts that can be chosen, what each can be used for, and whether it can be read now."""
    return [asdict(corpus) for corpus in corpora()]
