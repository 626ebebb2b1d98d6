"""Where a model comes from, for the model cards of what is made of it: its name on the Hub and its
licence, read from its own card, and the files with its terms. Does not import torch."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load

from backend.models.sources import hub, smollm2
from backend.models.sources.cache import UNKNOWN, CacheOrigin, prepared
from backend.models.sources.catalogue import local_folder
from backend.models.sources.spec import TOY, TOY_FOLDER, is_hub_id

CARD = "README.md"
TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")
OTHER = "other"


@dataclass(frozen=True)
class ModelOrigin:
    """The origin of a base model, for the card of what is made of it; "" for what is not known.

    Attributes:
        base_model: id on the Hub.
        licence: its identifier on the Hub, such as apache-2.0; `name`, `link` of one without.
        folder: with the files that state its terms.
    """

    base_model: str = ""
    licence: str = ""
    name: str = ""
    link: str = ""
    folder: Path | None = None


def origin_of(spec: str) -> ModelOrigin:
    """The origin of the model `spec`, as far as its files tell."""
    if spec == TOY:
        return ModelOrigin(licence="apache-2.0", folder=TOY_FOLDER)
    if spec == smollm2.NAME:
        return ModelOrigin(smollm2.HUB_ID, "apache-2.0", folder=prepared(smollm2.NAME))
    folder = hub.cached(spec) if is_hub_id(spec) else Path(spec)
    if spec.endswith(".gguf"):
        folder = local_folder(spec)  # where it was converted to
    card: dict[str, Any] = {}
    if folder and (folder / CARD).is_file():
        with suppress(Exception):  # on malformed YAML its parser raises errors of its own
            card = metadata_load(folder / CARD) or {}
    known = CacheOrigin.read(folder) if folder else None
    base = spec if is_hub_id(spec) else str(card.get("base_model") or "")
    base = base or (known.base_model if known else "")
    licence = known.licence.lower() if known and known.licence != UNKNOWN else ""
    return ModelOrigin(
        base_model=base,
        licence=str(card.get("license") or licence),
        name=str(card.get("license_name") or ""),
        link=str(card.get("license_link") or ""),
        folder=folder,
    )


def front_matter(
    origin: ModelOrigin,
    tags: Sequence[str],
    relation: str | None = None,
    library: str | None = None,
) -> str:
    """The YAML block that the Hub reads. `tags`: what was done to the model; `relation`: as the Hub
    calls it (quantized, finetune); `library`: that loads the model."""
    data = ModelCardData(
        base_model=origin.base_model or None,
        base_model_relation=relation if origin.base_model else None,
        license=origin.licence or None,
        license_name=origin.name or None,
        license_link=origin.link or None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["slimscope", *tags],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def licence_note(origin: ModelOrigin) -> str:
    """A sentence for people."""
    base = origin.base_model or "the base model"
    if not origin.licence:
        return f"The licence of {base} applies; it is not known here. Add it before you publish."
    named = origin.name if origin.licence == OTHER and origin.name else origin.licence
    return f"The licence and the terms of {base} apply: {named}."


def copy_terms(origin: ModelOrigin, folder: Path) -> None:
    """Put the files that state the terms of the base model into a new model folder."""
    if origin.folder is None or not origin.folder.is_dir():
        return
    for pattern in TERMS:
        for file in sorted(origin.folder.glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
