"""Which texts there are and whether a run could read them now.

Does not import torch and asks no network: the web process lists corpora.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from huggingface_hub import is_offline_mode

from backend.checkpoints import Checkpoints
from backend.errors import DatasetError
from backend.settings import settings
from backend.text import files

Role = Literal["calibration", "evaluation"]
WIKIPEDIA, ARTICLES = "wikipedia", "articles.jsonl"


@dataclass(frozen=True)
class CorpusInfo:
    """What the form tells about a text.

    Attributes:
        name: how configs call it.
        ready: whether a run could read it now; `note` says what is missing.
        roles: what it may be used for.
    """

    name: str
    title: str
    licence: str
    note: str
    ready: bool = True
    roles: tuple[Role, ...] = ("calibration", "evaluation")


def prepared() -> Checkpoints:
    """Where texts that were set up once are kept."""
    return Checkpoints(settings().cache_dir.expanduser() / "text")


def _wikipedia() -> CorpusInfo:
    ready = prepared().find(WIKIPEDIA) is not None
    note = "89 articles of 2016, as plain prose."
    if not ready:
        note = "It is set up once, by `python -m backend.text.setup`."
    return CorpusInfo(WIKIPEDIA, "Wikipedia sample", "CC BY-SA 3.0 / GFDL", note, ready)


def _hub(name: str, title: str, licence: str, note: str) -> CorpusInfo:
    online = not is_offline_mode()
    return CorpusInfo(
        name,
        title,
        licence,
        note if online else "It needs the Hugging Face hub; this machine is offline.",
        online,
    )


def _local(name: str) -> CorpusInfo:
    return CorpusInfo(files.PREFIX + name, name, "your own", "A local text.")


def corpora() -> list[CorpusInfo]:
    """All texts a run can name, whether ready or not. Asks no network."""
    return [
        CorpusInfo(
            "toystories", "Toy stories", "Apache-2.0", "Generated; suits the built-in model."
        ),
        _wikipedia(),
        _hub("wikitext2", "WikiText-2 (raw)", "CC BY-SA 3.0 / GFDL", "As published; from the hub."),
        _hub("c4", "C4 (English)", "ODC-By 1.0", "Web pages, streamed from the hub."),
        *map(_local, files.names()),
        CorpusInfo(
            "self",
            "Sampled from the model",
            "that of the model",
            "No text at all: the dense model writes it.",
            roles=("calibration",),
        ),
    ]


def require_corpus(name: str, field: str) -> CorpusInfo:
    """The corpus of that name, if a run could read it now for that field.

    Args:
        field: the config field that names it: "calibration_text" or "evaluation_text".

    Raises:
        DatasetError: unknown, not ready, or not meant for the role.
    """
    known = {corpus.name: corpus for corpus in corpora()}
    inner = name.removeprefix(files.PREFIX)
    if inner != name and files.paths(inner):  # also a file inside a folder, which is not listed
        return _local(inner)
    if name not in known:
        raise DatasetError(
            f"There is no text called {name[:80]!r}.",
            "Local texts are .txt and .jsonl files, or folders of them, inside SLIMSCOPE_TEXT_DIR.",
            f"Choose one of: {', '.join(known)}.",
            field,
        )
    corpus = known[name]
    if field not in {f"{role}_text" for role in corpus.roles}:
        raise DatasetError(
            f"{corpus.title} cannot be the text a model is judged by.",
            "How well a model predicts its own words says little.",
            "Choose a corpus.",
            field,
        )
    if not corpus.ready:
        raise DatasetError(
            f"{corpus.title} is not at hand.",
            corpus.note,
            "Make it available, or choose another text.",
            field,
        )
    return corpus
